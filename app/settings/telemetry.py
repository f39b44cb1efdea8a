"""What the service says of itself."""

from typing import Literal

from pydantic import BaseModel, Field

LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


class Telemetry(BaseModel):
    """Logs."""

    log_format: LogFormat = Field("auto", description="json, console, or auto: console on a terminal.")
    log_level: LogLevel = Field("info", description="debug, info, warning or error.")
