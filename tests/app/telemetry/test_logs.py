"""What is logged, and what is not."""

import io
import json
import logging

import pytest
import structlog

from app.telemetry.logs import REDACTED, configure_logs


@pytest.fixture
def stream():
    """A stream to log to; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def test_a_line_is_one_json_object(stream):
    """With its time, level, event and members."""
    configure_logs("json", stream=stream)
    structlog.get_logger().info("started", num_jobs=3)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["num_jobs"]) == ("started", "info", 3)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_prompts_and_keys_never_reach_the_log(stream, log_format):
    """By name and at any depth, in either form, and in a traceback's locals neither."""
    configure_logs(log_format, stream=stream)
    log = structlog.get_logger()
    hush = "hush-hush"
    log.info("e", prompt=hush, negative_prompt=hush, api_key=hush, key=hush, headers={"Authorization": hush})
    log.info("e", jobs=[{"request": {"prompt": hush}}], redis_url=hush)
    try:
        [][len(hush)]
    except IndexError:
        log.exception("failed", authorization=hush)
    text = stream.getvalue()
    assert hush not in text
    assert text.count(REDACTED) == 8
    assert "IndexError" in text


def test_the_level_is_kept_and_libraries_speak_the_same_form(stream):
    """What is below the level is dropped; a warning of the standard library is a JSON line as well."""
    configure_logs("json", "warning", stream=stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("some.library").info("quiet")
    logging.getLogger("some.library").warning("loud %d", 1)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == ("loud 1", "warning")


def test_auto_is_json_where_nobody_watches(stream):
    """A stream that is no terminal gets JSON."""
    configure_logs("auto", stream=stream)
    structlog.get_logger().warning("seen")
    assert json.loads(stream.getvalue())["event"] == "seen"
