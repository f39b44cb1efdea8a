"""Reading the environment, which happens here alone, and saying what is wrong with it."""

import os
import re
from dataclasses import dataclass

from pydantic import ValidationError

from app.errors import ConfigurationError
from app.settings.explaining import explain, nearest
from app.settings.otlp_headers import fault_in_headers
from app.settings.settings import Settings

_COMMANDS_VARIABLES = {"SPARKE_API_KEY"}  # of `sparke batch` and the like, which are clients
_OF_KUBERNETES = re.compile(r"SPARKE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")


def load_settings(**overrides: object) -> Settings:
    """The settings of this process: `overrides` (None leaves a setting alone), then the environment, then defaults.

    Raises ConfigurationError with one line for each setting that is wrong.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks the values, and this is the place
    except ValidationError as error:
        raise ConfigurationError("\n".join(explain(error, Settings))) from error


def unknown_variables() -> dict[str, str]:
    """The variables SPARKE_* of this process that are no setting, so that nothing heeds them, and what may have been meant.

    Those that Kubernetes sets for a Service with that name are nobody's mistake.
    """
    known = {f"SPARKE_{name.upper()}" for name in Settings.model_fields} | _COMMANDS_VARIABLES
    names = sorted(name for name in os.environ if name.upper().startswith("SPARKE_"))
    return {
        name: nearest(name.upper(), Settings.model_fields)
        for name in names
        if name.upper() not in known and not _is_of_kubernetes(name, os.environ[name])
    }


def _is_of_kubernetes(name: str, value: str) -> bool:
    return _OF_KUBERNETES.fullmatch(name) is not None or value.startswith(("tcp://", "udp://"))


@dataclass(frozen=True, slots=True)
class TracesWanted:
    """Whether spans are to be sent somewhere; or why they are not, though somebody seems to want it."""

    is_wanted: bool
    refusal: str = ""


def traces_wanted() -> TracesWanted:
    """What OpenTelemetry's own variables say. They are no settings of ours: its SDK reads these and all others itself."""
    asked = os.environ.get
    endpoint = asked("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or asked("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = (asked("OTEL_TRACES_EXPORTER") or "otlp").strip().lower()
    if not endpoint or exporter == "none" or asked("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return TracesWanted(False)
    if exporter != "otlp":
        return TracesWanted(
            False, f"OTEL_TRACES_EXPORTER is {exporter!r}, and otlp and none are what there is"
        )
    protocol = asked("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or asked("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip().lower() != "http/protobuf":
        how = "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, and the endpoint to that port, usually 4318"
        return TracesWanted(False, f"the protocol is {protocol!r}, and http/protobuf is what there is: {how}")
    own, general = "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"
    variable = own if asked(own) else general  # the other one is not read
    fault = fault_in_headers(variable, asked(variable, ""))
    return TracesWanted(not fault, fault)


def let_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise. Call it before torch loads.

    By default they spin. Where anything else wants the cores, each then waits for another that is not running: an
    image of the demo model took four to ten times as long on two busy cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
