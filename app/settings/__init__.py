"""Every setting of the service, read once in a main from `SPARKE_*` and then passed on as values.

Nothing else in the service reads the environment. A wrong value stops the process with a `ConfigurationError` that
names the variable, what is expected and what was found. Each theme is a class in a file of its own; `settings.py` puts
them together, and `environment.py` reads them.
"""

from app.settings.environment import let_threads_sleep, load_settings, traces_wanted, unknown_variables
from app.settings.settings import Settings
from app.settings.telemetry import LogFormat, LogLevel

__all__ = [
    "LogFormat",
    "LogLevel",
    "Settings",
    "let_threads_sleep",
    "load_settings",
    "traces_wanted",
    "unknown_variables",
]
