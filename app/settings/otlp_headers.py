"""What is wrong with OTEL_EXPORTER_OTLP_HEADERS, said without what is in it: OpenTelemetry's own log line repeats a part that it cannot read."""

import re
from urllib.parse import unquote

_HEADER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*=([ -~]*)")
_UNREADABLE = re.compile(r'[";\\]')
_HOW = "give name=value,name=value, with %20, %22, %2C and %3B for a blank, a quote, a comma and a semicolon in a value"


def fault_in_headers(variable: str, text: str) -> str:
    """Which part of a variable's value is no header, by its number, and what to do; empty where all are."""
    for number, part in enumerate(re.split(r"[ \t]*,[ \t]*", text), start=1):
        if part and not _is_header(part.strip()):
            return f"part {number} of {variable} is no header: {_HOW}"
    return ""


def _is_header(part: str) -> bool:
    found = _HEADER.fullmatch(part)
    if found is None or _UNREADABLE.search(found[2]):
        return False
    value = unquote(found[2])
    try:  # what cannot be sent would be repeated by the client of HTTP
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return not value or value.isprintable()
