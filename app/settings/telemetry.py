"""What the service says of itself."""

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import NoDecode

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HOW = "write MODULE=LEVEL, separated by commas, such as app.worker=debug,httpx=info"


class Telemetry(BaseModel):
    """Logs."""

    READ_BY: ClassVar[Mapping[str, str]] = {"": "serve, API, workers, commands"}

    log_format: LogFormat = Field("auto", description="json, console, or auto: console on a terminal.")
    log_level: LogLevel = Field("info", description="debug, info, warning or error.")
    log_levels: Annotated[Mapping[str, LogLevel], NoDecode] = Field(
        {},
        description="Other levels for modules and all that is in them: app.worker=debug,app.http=warning,httpx=info."
        " Libraries write from warnings on unless named here.",
    )
    log_prompts: bool = Field(
        False,
        description="Whether logs may hold prompts, and with them what libraries say while they work on one. Secrets never.",
    )

    @field_validator("log_levels", mode="before")
    @classmethod
    def _split_levels(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        found: dict[str, str] = {}
        for pair in filter(None, (part.strip() for part in value.split(","))):
            module, _, level = (part.strip() for part in pair.partition("="))
            if _MODULE.fullmatch(module) is None or level.lower() not in get_args(LogLevel):
                raise ValueError(
                    f"{_HOW}; levels are {', '.join(get_args(LogLevel))}; {pair!r} is no such pair"
                )
            found[module] = level.lower()
        return found

    @field_validator("log_levels")
    @classmethod
    def _check_modules(cls, value: Mapping[str, LogLevel]) -> Mapping[str, LogLevel]:
        for module in value:
            package, *rest = module.split(".")
            if package in ("app", "sparke_engine") and not _is_there(package, rest):
                raise ValueError(f"there is no module {module}, so its level would change nothing; {_HOW}")
        return value


def _is_there(package: str, rest: list[str]) -> bool:
    place = files(package).joinpath(*rest)
    return place.is_dir() or files(package).joinpath(*rest[:-1], f"{rest[-1]}.py").is_file() if rest else True
