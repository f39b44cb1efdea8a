"""What passes here OpenTelemetry reads without a word; what does not is said without what is in it."""

from unittest import TestCase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.util.re import parse_env_headers
from requests import Request

from app.settings.otlp_headers import fault_in_headers

NAME = "OTEL_EXPORTER_OTLP_HEADERS"
_PIECES = st.sampled_from(
    ["a", "=", ";", '"', "\\", " ", "\t", "%", "%0a", "%20", "%C3%A9", "%e2%82%ac", "é", "\n"]
)
_VALUES = st.lists(_PIECES | st.characters(), max_size=6).map("".join)
TEXTS = st.lists(_VALUES | _VALUES.map("k={}".format), max_size=3).map(",".join)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "api-key=c2VjcmV0",
        "Authorization=Basic%20c2VjcmV0",
        "authorization=Basic c2VjcmV0==, x-scope=acme",
        "a=b,,c=",
        "api-key=caf%C3%A9",
    ],
)
def test_what_collectors_documents_show_passes(text):
    """Percent-encoded or not, with blanks around commas; an empty part is none."""
    assert fault_in_headers(NAME, text) == ""
    assert len(parse_env_headers(text, liberal=True)) == sum(bool(part) for part in text.split(","))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("c2VjcmV0", 1),
        ("Authorization: Basic c2VjcmV0", 1),
        ("a=b,c2VjcmV0", 2),
        ("a=b,=c2VjcmV0", 2),
        ('api-key="c2VjcmV0"', 1),
        ("api-key=c2VjcmV0;x=y", 1),
        ("api-key=c2VjcmV0%0d%0aX-Other:%201", 1),
        ("api-key=c2VjcmV0%E2%82%AC", 1),
    ],
)
def test_what_is_wrong_is_said_by_number(text, number):
    """The variable and the part; nothing of a secret, and what cannot be sent is wrong too."""
    fault = fault_in_headers(NAME, text)
    assert fault.startswith(f"part {number} of {NAME} is no header: give name=value")
    assert "c2VjcmV0" not in fault


@given(TEXTS)
@example("k=v\n")
@example("k=a;b")
@example("k=a%0ab")
@example(" ")
def test_opentelemetry_says_nothing_of_what_passes(text):
    """Its reader logs no line, and the client of HTTP would take every value."""
    if fault_in_headers(NAME, text) == "":
        with TestCase().assertNoLogs("opentelemetry"):
            headers = parse_env_headers(text, liberal=True)
        for value in headers.values():
            Request("POST", "http://127.0.0.1/", headers={"x": value.strip()}).prepare()
