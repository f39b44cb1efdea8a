"""What is checked of the address of the API: it is free, or this service answers there."""

import errno

import httpx

from app.doctor.finding import Finding, ok, problem, warning
from app.errors import ConfigurationError
from app.http.process.server import bind, url_of
from app.settings import Settings

_PATIENCE_S = 5.0
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask whom that listens everywhere


def examine_port(settings: Settings) -> Finding:
    """The address that the API would listen on."""
    host, port = settings.host, settings.port
    if port == 0:
        return ok("port", "SPARKE_PORT is 0: a free one is taken")
    try:
        with bind(host, port) as listener:
            return ok("port", f"{url_of(listener)} is free")
    except ConfigurationError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            return judge_listener(f"{host} port {port}", ask_state(host, port))
        return problem("port", error.message, "correct SPARKE_HOST and SPARKE_PORT")


def judge_listener(where: str, state: str | None) -> Finding:
    """Who listens there: ours says its state, of anybody else it is None."""
    if state is None:
        return problem(
            "port",
            f"{where} is taken, and not by this service",
            "stop what listens there (`ss -ltnp`), or set SPARKE_PORT",
        )
    if state != "ready":
        return warning(
            "port",
            f"this service answers at {where}, and is not ready: {state}",
            "see its logs and its workers",
        )
    return ok("port", f"this service answers at {where}, and is ready")


def ask_state(host: str, port: int) -> str | None:
    """The state that `/readyz` of this service tells, None where something else answers."""
    plain = host.strip("[]")
    plain = _ANYWHERE.get(plain, plain)
    shown = f"[{plain}]" if ":" in plain else plain
    try:
        answer = httpx.get(f"http://{shown}:{port}/readyz", timeout=_PATIENCE_S, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        return None
    state = answer.get("state") if isinstance(answer, dict) else None
    return state if isinstance(state, str) else None
