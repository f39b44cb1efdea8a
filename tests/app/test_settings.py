"""Settings: defaults, the environment, and messages that say what to do."""

import os
import subprocess
import sys

import pytest
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from app.errors import ConfigurationError
from app.settings import Settings, load_settings


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
    assert any(line.startswith("SPARKE_PORT:") and "65535" in line and "99999" in line for line in lines)
    assert any(line.startswith("SPARKE_DEVICE:") for line in lines)
    assert any(line.startswith("SPARKE_REDIS_URL:") and "redis://" in line for line in lines)


def test_a_secret_is_not_repeated():
    """Neither a refused signing key nor an accepted one shows in any text."""
    assert "tooshort" not in _explain(SPARKE_URL_SIGNING_KEY="tooshort")
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
        if not name.startswith("__") and name not in dir(BaseModel)
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
