"""Settings: defaults, the environment, and messages that say what to do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from app.errors import ConfigurationError
from app.settings import Settings, load_settings
from app.settings.explaining import takes

ROOT = Path(__file__).resolve().parents[2]


def _explain(**environment):
    """What a process with this environment says."""
    program = (
        "from app.settings import load_settings\n"
        "from app.errors import ConfigurationError\n"
        "try:\n    print(load_settings())\nexcept ConfigurationError as error:\n    print(error.message)\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("SPARKE_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_defaults_serve_one_machine():
    """Loopback, an embedded Redis, images in the data directory."""
    settings = Settings()
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 8000, None)
    assert settings.image_store_url.startswith("file:///")
    assert settings.image_store_url.endswith("/data/images")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "redis_url"),
        ({"redis_url": "redis://r", "redis_replicas_timeout_s": 10}, "less than redis_timeout_s"),
    ],
)
def test_replicas_need_a_shared_redis_and_time_to_answer(given, said):
    """An embedded Redis has none, and a command that may take as long as they are waited for would end before."""
    with pytest.raises(ConfigurationError, match=said):
        load_settings(redis_replicas=1, **given)


def test_the_environment_is_read_with_its_prefix():
    """Numbers and lists arrive as such."""
    said = _explain(
        SPARKE_PORT="9001", SPARKE_MODELS="sdxl, sparke-demo", SPARKE_REDIS_URL="redis://r:6379/0"
    )
    assert "port=9001" in said
    assert "models=('sdxl', 'sparke-demo')" in said
    assert "redis_url='redis://r:6379/0'" in said


def test_every_wrong_setting_is_named_in_one_message():
    """Variable, expectation and what was found, a line each."""
    said = _explain(SPARKE_PORT="99999", SPARKE_DEVICE="gpu", SPARKE_REDIS_URL="localhost:6379")
    lines = said.strip().splitlines()
    assert len(lines) == 3
    assert any(line.startswith("SPARKE_PORT:") and "65,535" in line and "99999" in line for line in lines)
    assert any(line.startswith("SPARKE_DEVICE:") for line in lines)
    assert any(line.startswith("SPARKE_REDIS_URL:") and "redis://" in line for line in lines)


WRONG = [
    ("PORT", "99999", "expected a whole number, 0 to 65,535 (got '99999'). Port the API listens on"),
    ("PORT", "http", "expected a whole number, 0 to 65,535 (got 'http')"),
    ("PORT", "tcp://10.0.0.7:8000", "Kubernetes sets it, for a Service with the name sparke"),
    (
        "REQUEST_TIMEOUT_S",
        "5 minutes",
        "expected seconds, above 0 to 3,600 (got '5 minutes'). How long a request",
    ),
    ("REDIS_TIMEOUT_S", "0", "expected seconds, above 0 to 120 (got '0')"),
    ("HEAD_TIMEOUT_S", "nan", "expected seconds, above 0 to 300 (got 'nan')"),
    ("MAX_FILE_BYTES", "200MB", "expected whole bytes, 1 or more (got '200MB')"),
    ("MAX_BATCH_IMAGES", "257", "expected a whole number, 1 to 256 (got '257')"),
    ("BATCH_WINDOW_MS", "-1", "expected whole milliseconds, 0 to 1,000 (got '-1')"),
    ("WEBHOOKS_ALLOW_PRIVATE", "perhaps", "expected true or false (got 'perhaps')"),
    ("LOG_FORMAT", "xml", "expected auto or json or console (got 'xml')"),
    ("LOG_LEVEL", "loud", "expected debug or info or warning or error (got 'loud')"),
    ("DEVICE", "gpu", "got 'gpu'). auto, cpu, mps, cuda or cuda:N"),
    ("MODELS", "sparke demo", "got 'sparke demo'"),
    ("REDIS_URL", "localhost:6379", "give a URL that begins with redis://, rediss://, unix://"),
    ("IMAGE_URL", "/var/lib/sparke", "such as file:///var/lib/sparke or s3://bucket/prefix"),
    ("IMAGE_URL", "s3://", "such as file:///var/lib/sparke or s3://bucket/prefix"),
    ("IMAGE_URL", "file://var/lib/sparke", "a folder's URL has three slashes"),
    ("PUBLIC_URL", "images.example.org", "such as https://images.example.org, with its scheme"),
    ("PUBLIC_URL", "ftp://images.example.org", "with its scheme"),
    ("PUBLIC_URL", "https://images.example.org/v1/", "/v1 is added to it"),
    ("PUBLIC_URL", "https://images.example.org?a=1", "without a query, a fragment or a user"),
    (
        "URL_SIGNING_KEY",
        "short",
        "give 32 characters or more, such as the output of `openssl rand -base64 32`",
    ),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_wrong_value_is_told_with_what_to_do(name, value, said):
    """Its variable first, what it takes with unit and bounds, what was found, and what it is for; on one line."""
    (line,) = _explain(**{f"SPARKE_{name}": value}).splitlines()
    assert line.startswith(f"SPARKE_{name}: ")
    assert said in line


def test_every_bound_is_in_words():
    """No number is taken without its bounds being told, and no kind of value has none."""
    for name, field in Settings.model_fields.items():
        told = takes(name, field)
        assert told, name
        for bound in field.metadata:
            for side in ("ge", "gt", "le", "lt"):
                if hasattr(bound, side):
                    assert f"{getattr(bound, side):,}" in told, name
        assert not name.endswith("_s") or "seconds" in told, name


def test_several_devices_have_a_worker_each():
    """Of a GPU there is one; a CPU may have more."""
    assert Settings().devices == ("auto",)
    assert load_settings(device="cuda:0, cuda:1").devices == ("cuda:0", "cuda:1")
    assert load_settings(device="cpu,cpu").devices == ("cpu", "cpu")
    for wrong, said in (
        ("cuda,cuda:0", "cuda:0 is named twice"),
        ("auto,cpu", "auto stands alone"),
        ("cuda:0,", "SPARKE_DEVICE"),
        ("gpu", "SPARKE_DEVICE"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            load_settings(device=wrong)


def test_a_path_before_the_api_is_kept():
    """A proxy may serve it below one."""
    assert load_settings(public_url="https://example.org/images/").public_url == "https://example.org/images"


def test_what_is_empty_is_not_set():
    """As compose files and manifests have it that pass on variables of their own."""
    said = _explain(
        SPARKE_REDIS_URL="", SPARKE_PORT="", SPARKE_MODELS="", SPARKE_URL_SIGNING_KEY="", SPARKE_LOG_LEVELS=""
    )
    assert "redis_url=None" in said
    assert "port=8000" in said


def test_a_name_that_is_none_is_told_with_the_one_that_was_meant():
    """Of a variable and of an override; what Kubernetes sets for a Service of that name is nobody's mistake."""
    code = "from app.settings import unknown_variables\nfor pair in unknown_variables().items(): print(*pair)"
    given = {
        "SPARKE_REDIS_ULR": "redis://r",
        "SPARKE_WORKER_METRIC_PORT": "9001",
        "SPARKE_COLOUR": "red",
        "SPARKE_API_SERVICE_HOST": "10.0.0.1",
        "SPARKE_API_PORT": "tcp://10.0.0.1:80",
        "SPARKE_API_PORT_80_TCP_ADDR": "10.0.0.1",
        "SPARKE_API_KEY": "sk-sparke-1",
        "SPARKE_PORT": "8000",
    }
    path = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "SPARKE_COLOUR docs/configuration.md has all",
        "SPARKE_REDIS_ULR did you mean SPARKE_REDIS_URL?",
        "SPARKE_WORKER_METRIC_PORT did you mean SPARKE_WORKER_METRICS_PORT?",
    ]
    with pytest.raises(ConfigurationError, match="no such setting; did you mean SPARKE_REDIS_URL"):
        load_settings(redis_ulr="redis://r")


READERS = {  # folders whose code runs in one kind of process alone
    "API": ("http", "batches", "audit"),
    "workers": ("worker",),
}


@pytest.mark.parametrize("process", READERS)
def test_who_reads_a_setting_is_true(process):
    """What the code of a process asks for is told to be read by it."""
    files = [path for folder in READERS[process] for path in (ROOT / "app" / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    asked = {name for name in Settings.model_fields if re.search(rf"settings\.{name}\b", text)}
    assert len(asked) > 10
    told = {
        name
        for theme in Settings.__bases__
        if theme is not BaseSettings
        for name in theme.model_fields
        if process in theme.READ_BY.get(name, theme.READ_BY[""])
    }
    assert asked <= told


def test_who_reads_a_setting_is_told_of_settings_alone():
    """No reader is named of a field that its theme has not."""
    for theme in Settings.__bases__:
        if theme is not BaseSettings:
            assert set(theme.READ_BY) - {""} <= set(theme.model_fields)


def test_a_secret_is_not_repeated():
    """Neither a refused signing key nor an accepted one shows in any text."""
    assert "tooshort" not in _explain(SPARKE_URL_SIGNING_KEY="tooshort")
    assert "SECRET" not in _explain(SPARKE_REDIS_URL="http://user:SECRET@redis")
    assert "SECRET" not in _explain(SPARKE_REDIS_URL="sentinel://one:26379/main?sentinel_password=SECRET")
    assert "32 characters" in _explain(SPARKE_URL_SIGNING_KEY="tooshort")
    assert "s" * 32 not in repr(load_settings(url_signing_key="s" * 32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": "not a model"},
        {"image_url": "/just/a/path"},
        {"heartbeat_ttl_s": 3.0},
        {"unknown_setting": 1},
        {"max_batch_images": 0},
        {"image_url_ttl_s": 3600, "job_ttl_s": 600},
        {"image_url_ttl_s": 3600, "image_ttl_s": 600},
    ],
)
def test_a_wrong_value_is_a_configuration_error(wrong):
    """Whatever is wrong, a main sees one kind of error, that names the setting or the rule."""
    with pytest.raises(
        ConfigurationError, match=next(iter(wrong)).upper() + "|heartbeat_ttl_s|image_url_ttl_s"
    ):
        load_settings(**wrong)


def test_settings_do_not_change():
    """They are values."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_what_a_command_line_leaves_open_is_left_alone():
    """None as an override is no override; a value is."""
    assert load_settings(port=None, host="::1").port == 8000
    assert load_settings(port=1234).port == 1234


def test_every_setting_is_described():
    """Each has a sentence that says what it is for."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_no_theme_takes_a_rule_from_another():
    """Themes are inherited side by side, so a method of the same name in two would silently be one rule fewer."""
    names = [
        name
        for theme in Settings.__bases__
        if theme is not BaseSettings
        for name in vars(theme)
        if not name.startswith("__") and name not in {*dir(BaseModel), "READ_BY"}
    ]
    assert len(names) > 5
    assert sorted(names) == sorted(set(names))


def test_threads_sleep_unless_told_otherwise() -> None:
    """A process asks OpenMP for sleeping threads, and leaves an operator's own choice alone."""
    code = "import os; from app.settings import let_threads_sleep as f; f(); print(os.environ['OMP_WAIT_POLICY'])"
    path = {"PATH": os.environ["PATH"]}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        found = subprocess.run(
            [sys.executable, "-c", code], env=path | given, capture_output=True, check=True
        )
        assert found.stdout.decode().strip() == expected
