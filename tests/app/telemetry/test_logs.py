"""What is logged, and what is not."""

import io
import json
import logging

import pytest
import structlog
import torch

from app.errors import ConfigurationError
from app.settings import load_settings
from app.telemetry.faults import WITHHELD
from app.telemetry.logs import OURS, adopt_loggers, configure_logs
from app.telemetry.redaction import REDACTED


@pytest.fixture
def stream():
    """A stream to log to; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level, config = root.handlers[:], root.level, structlog.get_config()
    yield io.StringIO()
    structlog.configure(**config)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in (*OURS, "app.worker", "app.http", "some.library"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines_of(stream):
    """What was logged."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object(stream):
    """With its time, level, event and members."""
    configure_logs("json", stream=stream)
    structlog.get_logger("app.worker").info("started", num_jobs=3)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["num_jobs"]) == ("started", "info", 3)
    assert line["logger"] == "app.worker"
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_prompts_and_keys_never_reach_the_log(stream, log_format):
    """By name and at any depth, in either form, and in a traceback's locals neither."""
    configure_logs(log_format, stream=stream)
    log = structlog.get_logger("app.http")
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
    structlog.get_logger("app.http").info("quiet")
    logging.getLogger("some.library").info("quiet")
    logging.getLogger("some.library").warning("loud %d", 1)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == ("loud 1", "warning")


def test_auto_is_json_where_nobody_watches(stream):
    """A stream that is no terminal gets JSON."""
    configure_logs("auto", stream=stream)
    structlog.get_logger().warning("seen")
    assert json.loads(stream.getvalue())["event"] == "seen"


def test_a_level_holds_for_a_module_and_what_is_in_it(stream):
    """Ours and those of libraries; the others stay as they were."""
    levels = {"app.worker": "debug", "app.http": "error", "some.library": "info"}
    configure_logs("json", stream=stream, levels=levels)
    structlog.get_logger("app.worker.course.runner").debug("detail")
    structlog.get_logger("app.jobs.queue").debug("no detail")
    structlog.get_logger("app.http.errors").warning("hushed")
    logging.getLogger("some.library.part").info("asked for")
    logging.getLogger("another.library").info("not asked for")
    assert [line["event"] for line in lines_of(stream)] == ["detail", "asked for"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("app.worker", "write MODULE=LEVEL"),
        ("app.worker=loud", "levels are debug, info, warning, error; 'app.worker=loud'"),
        ("app.wroker=debug", "there is no module app.wroker"),
        ("app.worker.loops.loop.run=debug", "there is no module app.worker.loops.loop.run"),
        ("a b=info", "'a b=info' is no such pair"),
    ],
)
def test_levels_that_would_change_nothing_are_refused(given, said):
    """A level that does not exist, and a module of ours that does not, with what to write."""
    with pytest.raises(ConfigurationError, match=said) as found:
        load_settings(log_levels=given)
    assert found.value.message.startswith("SPARKE_LOG_LEVELS: ")


def test_levels_are_read_as_they_are_written():
    """With blanks and capitals, for packages, modules, and libraries of any name."""
    found = load_settings(
        log_levels="app.worker = DEBUG, app.http.errors=error,httpx=info,,app=warning"
    ).log_levels
    assert found == {"app.worker": "debug", "app.http.errors": "error", "httpx": "info", "app": "warning"}


SECRETS = (
    "https://h/v1/images/img_1?tenant=a&expires=1&signature=SECRET",
    "Authorization: Bearer SECRET",
    "key sk-sparke-SECRET-x_y refused",
    "rediss://default:SECRET@redis:6379/0",
    "redis+sentinel://one:26379,two:26379/main?sentinel_username=u&sentinel_password=SECRET",
)


# Names of their own: pytest keeps those of tests in a file, where `make secrets` would find a password.
@pytest.mark.parametrize("text", SECRETS, ids=["signature", "bearer", "key", "password", "sentinel"])
@pytest.mark.parametrize("shows_prompts", [False, True])
def test_what_looks_like_a_secret_is_not_logged(stream, text, shows_prompts):
    """In a message, a member, at any depth, in a library's line and in an error, prompts shown or not."""
    configure_logs("json", stream=stream, shows_prompts=shows_prompts)
    log = structlog.get_logger("app.http")
    log.info(text, found=[{"at": text}])
    logging.getLogger("some.library").warning("asked for %s", text)
    log.warning("failed", exc_info=OSError(text))
    assert "SECRET" not in stream.getvalue()
    assert stream.getvalue().count(REDACTED) == 4


PROMPT = "purple heron"


class _Worker:
    """What reads a prompt and fails with it."""

    def fail(self, kind, prompt):
        """Raises an error that repeats what it was given, as the cause of another."""
        try:
            {}[prompt]
        except KeyError as error:
            raise kind(f"cannot read {prompt}") from error


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_error_says_where_and_not_what_it_was_given(stream, log_format):
    """Also its cause, those of a group, and locals; its class and its place are there."""
    configure_logs(log_format, stream=stream)
    log = structlog.get_logger("app.worker")
    for raises in (ValueError, TypeError, RuntimeError):
        try:
            _Worker().fail(raises, PROMPT)
        except raises as error:
            log.warning("job_not_generated", exc_info=error)
            log.warning("group", exc_info=ExceptionGroup(PROMPT, [error]))
    text = stream.getvalue()
    assert "heron" not in text
    assert text.count("in fail") >= 6
    assert "ValueError" in text
    assert "KeyError" in text
    assert WITHHELD in text


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), MemoryError("9 GiB"), ImportError("libcuda")]
)
def test_errors_of_the_machine_are_told(stream, error):
    """They repeat no prompts, and are what somebody looks for."""
    configure_logs("json", stream=stream)
    structlog.get_logger("app.worker").warning("failed", exc_info=error)
    assert str(error) in lines_of(stream)[0]["exception"]


def test_what_torch_says_is_told(stream):
    """An error that came out of torch speaks of shapes and devices."""
    configure_logs("json", stream=stream)
    try:
        torch.nn.Linear(3, 3)(torch.ones(1, 2))
    except RuntimeError:
        structlog.get_logger("app.worker").warning("plain", exc_info=True)
    assert "shapes cannot be multiplied" in lines_of(stream)[0]["exception"]


def test_libraries_do_not_speak_of_a_job(stream):
    """While a job or a request is in hand, where a library's line comes from is told, and not what it says."""
    configure_logs("json", stream=stream)
    with structlog.contextvars.bound_contextvars(job_id="job_1"):
        logging.getLogger("some.library").warning("your input was truncated: %s", "purple heron")
    logging.getLogger("some.library").warning("no GPU")
    logging.getLogger("asyncio").error("never retrieved\nfuture: <Task exception=ValueError('purple heron')>")
    during, beside, orphan = lines_of(stream)
    assert "heron" not in stream.getvalue()
    assert during["event"] == WITHHELD
    assert during["where"].startswith("test_logs.py:")
    assert (during["logger"], during["job_id"], beside["event"]) == ("some.library", "job_1", "no GPU")
    assert orphan["event"] == "never retrieved"


def test_prompts_are_shown_to_those_who_ask_for_them(stream):
    """By name, in errors, and in what libraries say."""
    configure_logs("json", stream=stream, shows_prompts=True)
    structlog.get_logger("app.worker").info("job_ended", prompt="purple heron", api_key="hush-hush")
    with structlog.contextvars.bound_contextvars(job_id="job_1"):
        logging.getLogger("some.library").warning(
            "truncated: %s", "purple heron", exc_info=ValueError("purple heron")
        )
    assert stream.getvalue().count("purple heron") == 3
    assert "hush-hush" not in stream.getvalue()


def test_a_library_that_writes_by_itself_writes_into_the_logs(stream):
    """Its own handler goes, and its level is what the settings say."""
    configure_logs("json", stream=stream, levels={"some.library": "info"})
    own, logger = io.StringIO(), logging.getLogger("some.library")
    logger.addHandler(logging.StreamHandler(own))
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    adopt_loggers(("some.library",), {"some.library": "info"})
    logger.info("loaded")
    assert own.getvalue() == ""
    assert [line["event"] for line in lines_of(stream)] == ["loaded"]
