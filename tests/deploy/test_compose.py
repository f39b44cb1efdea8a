"""The compose file runs commands that exist, with settings that are valid, and keeps Redis' promises."""

import re
import shlex
import shutil
import subprocess

import pytest
import typer.core
import typer.main
import yaml

from app.catalogue import load_catalogue
from app.cli import cli
from app.http.guard.auth import is_loopback
from app.settings import Settings


@pytest.fixture(scope="module")
def compose(root):
    """The compose file."""
    return yaml.safe_load((root / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def prometheus(root):
    """Prometheus' configuration."""
    return yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())


def _with_defaults(text):
    """`${NAME:-default}` as compose reads it where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def _settings(environment):
    """The settings that a container gets; variables without a value come from the operator, or not at all."""
    given = {
        name.removeprefix("SPARKE_").lower(): _with_defaults(value)
        for name, value in environment.items()
        if name.startswith("SPARKE_") and value is not None
    }
    return Settings(**given)


def _parse(words):
    """The name and the values of a `sparke` command line, parsed as the command itself does, but not run."""
    command, name = typer.main.get_command(cli), "sparke"
    while isinstance(command, typer.core.TyperGroup):
        name, *words = words
        command = command.commands[name]
    return name, command.make_context(name, list(words)).params


def test_the_services_of_the_project_run_commands_of_the_project(compose, dockerfiles):
    """`api` and `worker` are built from our Dockerfiles, whose entry point takes the command that compose gives."""
    built = {name: service for name, service in compose["services"].items() if "build" in service}
    assert set(built) == {"api", "worker", "worker-gpu"}
    for name, service in built.items():
        instructions = dockerfiles[service["build"]["dockerfile"]]
        assert [one.rest for one in instructions if one.word == "ENTRYPOINT"] == ['["sparke"]']
        assert _parse(service["command"])[0] == name.removesuffix("-gpu")
    with pytest.raises(Exception, match="No such option"):
        _parse(["api", "--no-such-option"])


def test_the_documented_way_to_the_first_key_is_a_command(root):
    """Beyond loopback the API starts only with a key; the line that makes one works on the API's own image."""
    text = (root / "docker-compose.yml").read_text()
    lines = re.findall(r"docker compose run --rm api (.+?)\s+#", text)
    assert lines
    for line in lines:
        name, values = _parse(shlex.split(line))
        assert (name, values["tenant"]) == ("create", "acme")


def test_variables_are_settings_and_their_values_valid(compose, image_environments):
    """Every SPARKE_ variable of image and compose file is a setting, and together they are accepted."""
    settings = {}
    for name in ("api", "worker"):
        service = compose["services"][name]
        environment = image_environments[service["build"]["dockerfile"]] | service["environment"]
        ours = {key.removeprefix("SPARKE_").lower() for key in environment if key.startswith("SPARKE_")}
        assert ours <= set(Settings.model_fields)
        settings[name] = _settings(environment)
    assert not is_loopback(settings["api"].host)
    assert settings["api"].redis_url == settings["worker"].redis_url == "redis://redis:6379/0"
    assert settings["api"].image_store_url == settings["worker"].image_store_url
    assert settings["api"].models_file == settings["worker"].models_file


OF_THE_OTHER = {  # what a container is not told, since its process does not read it, or must not
    "api": {
        "SPARKE_DEVICE",
        "SPARKE_MEMORY_SNAPSHOTS_DIR",
        "SPARKE_WORKER_METRICS_HOST",
        "SPARKE_WORKER_METRICS_PORT",
    },
    "worker": {"SPARKE_HOST", "SPARKE_PORT", "SPARKE_URL_SIGNING_KEY"},
}


def test_every_setting_can_be_set(compose, image_environments, root):
    """None that an operator puts into .env is passed over in silence, nor one of the bucket's."""
    settings = {f"SPARKE_{name.upper()}" for name in Settings.model_fields}
    of_buckets = set(re.findall(r"AWS_[A-Z_]+", (root / "docs/s3.md").read_text()))
    for name in ("api", "worker", "worker-gpu"):
        service = compose["services"][name]
        told = set(service["environment"]) | set(image_environments[service["build"]["dockerfile"]])
        assert settings - told == OF_THE_OTHER[name.removesuffix("-gpu")], name
        assert of_buckets - told == set(), name


def test_a_variable_of_the_image_is_not_taken_away(compose, image_environments):
    """One that Compose lists without a value and finds nowhere is taken from the container, its image's value too."""
    for name in ("api", "worker", "worker-gpu"):
        service = compose["services"][name]
        without_value = {key for key, value in service["environment"].items() if value is None}
        assert without_value & set(image_environments[service["build"]["dockerfile"]]) == set(), name


def test_secrets_reach_whoever_needs_them_alone(compose):
    """Workers sign no URLs, and the API downloads no models."""
    secrets = {"SPARKE_URL_SIGNING_KEY", "HF_TOKEN"}
    told = {
        name: secrets & set(service.get("environment", ())) for name, service in compose["services"].items()
    }
    assert {name: found for name, found in told.items() if found} == {
        "api": {"SPARKE_URL_SIGNING_KEY"},
        "worker": {"HF_TOKEN"},
        "worker-gpu": {"HF_TOKEN"},
    }


def test_each_process_is_told_where_traces_go(compose):
    """From the operator's environment: a trace is one of API and worker together."""
    for name in ("api", "worker", "worker-gpu"):
        environment = compose["services"][name]["environment"]
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] is None, name


def test_prometheus_scrapes_the_ports_that_are_served(compose, image_environments, prometheus):
    """The targets are services of the compose file, at the ports that their images listen on."""
    ports = {}
    for name, variable in (("api", "SPARKE_PORT"), ("worker", "SPARKE_WORKER_METRICS_PORT")):
        dockerfile = compose["services"][name]["build"]["dockerfile"]
        ports[name] = int(image_environments[dockerfile][variable])
    scraped = {
        name: found["port"]
        for job in prometheus["scrape_configs"]
        for found in job.get("dns_sd_configs", [])
        for name in found["names"]
    }
    assert scraped == ports
    networks = [set(compose["services"][name]["networks"]) for name in ("prometheus", *ports)]
    assert set.intersection(*networks)


def test_redis_keeps_what_it_acknowledged_and_is_reached_from_inside_only(compose):
    """Append-only, synced at every write, never evicting, bounded, on a volume, on no network of the outside."""
    redis = compose["services"]["redis"]
    words = redis["command"]
    assert words[0] == "redis-server"
    options = dict(zip(words[1::2], map(_with_defaults, words[2::2]), strict=True))
    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "always",
        "--maxmemory": "4gb",
        "--maxmemory-policy": "noeviction",
        "--stream-node-max-entries": "1",
    }
    assert redis["volumes"] == ["redis:/data"]
    assert "ports" not in redis
    assert all(compose["networks"][name]["internal"] for name in redis["networks"])


def test_only_the_api_can_be_opened_to_the_network(compose):
    """By default every published port is on loopback."""
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert _with_defaults(port).startswith("127.0.0.1:")


def test_what_is_mounted_exists(compose, root):
    """Each volume is declared, each folder or file of the repository is there, and the catalogue can be read."""
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source, target = _with_defaults(mount).split(":")[:2]
            if source.startswith("./"):
                assert (root / source).exists(), source
            else:
                assert source in compose["volumes"], source
            if target.endswith("models.toml"):
                assert load_catalogue(root / source)
    shared = [set(compose["services"][name]["volumes"]) for name in ("api", "worker")]
    assert "images:/var/lib/sparke/images" in shared[0] & shared[1]


def test_a_worker_has_time_to_finish_its_batch(compose):
    """Docker kills it later than it gives up by itself."""
    grace_s = int(_with_defaults(compose["services"]["worker"]["stop_grace_period"]).removesuffix("s"))
    assert grace_s > Settings().drain_timeout_s + 10


def test_the_api_has_time_to_finish_its_answers(compose):
    """Docker kills it later than it gives up by itself."""
    grace_s = int(_with_defaults(compose["services"]["api"]["stop_grace_period"]).removesuffix("s"))
    settings = Settings()
    assert grace_s >= settings.stop_notice_s + settings.stop_timeout_s + 10


def test_our_containers_have_no_rights_that_they_do_not_need(compose):
    """Read-only root, no capabilities, no new ones."""
    for name in ("api", "worker", "worker-gpu"):
        service = compose["services"][name]
        assert service["read_only"] is True
        assert (
            service["init"] is True
        )  # the first process of a container has to ask for SIGTERM, which takes imports first
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]  # noqa: S108 - a mount of the container
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_foreign_images_are_pinned(compose):
    """A restart brings up the version that was tested."""
    foreign = [service["image"] for service in compose["services"].values() if "build" not in service]
    assert len(foreign) == 3
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in foreign)


def test_a_profile_chooses_the_workers_device(compose):
    """One worker a profile, alike but for its image's build of torch, and the device, which is that build's."""
    on_cpu, on_gpu = compose["services"]["worker"], compose["services"]["worker-gpu"]
    assert {name for name, service in compose["services"].items() if "profiles" in service} == {
        "worker",
        "worker-gpu",
    }
    for worker, profile, device in ((on_cpu, "cpu", "cpu"), (on_gpu, "gpu", "cuda:0")):
        assert worker["profiles"] == [profile]
        assert worker["build"]["args"] == {"TORCH_BUILD": device.partition(":")[0]}
        assert worker["image"] == f"sparke-worker:{profile}"
        assert _settings(worker["environment"]).device == device
    differing = {name for name in on_gpu if on_gpu[name] != on_cpu.get(name)}
    assert differing == {"profiles", "image", "build", "environment", "networks", "deploy"}
    for name in set(on_cpu["networks"]) & set(compose["services"]["prometheus"]["networks"]):
        assert on_gpu["networks"][name]["aliases"] == ["worker"]  # the name that Prometheus looks up
    (device,) = on_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_folders_of_a_worker_are_volumes_of_its_user(compose, dockerfiles):
    """What a worker keeps outlives its container; the image made each folder for its user, and volumes inherit that."""
    made = " ".join(one.rest for one in dockerfiles["docker/worker.Dockerfile"] if one.word == "RUN")
    mounted = [mount.split(":")[1] for mount in compose["services"]["worker"]["volumes"]]
    folders = [place for place in mounted if place.startswith("/var/lib/sparke/")]
    assert len(folders) == 3
    assert all(f" {place}" in made for place in folders)


def _read_by_compose(root, env_file):
    """The services, as Compose reads them where `.env` has these lines; releases before 2 know all of it but the name."""
    text = re.sub(r"^name:.*$", "", (root / "docker-compose.yml").read_text(), flags=re.MULTILINE)
    read = subprocess.run(
        [
            "docker-compose",
            "--file",
            "-",
            "--project-directory",
            str(root),
            "--env-file",
            str(env_file),
            "config",
        ],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    return yaml.safe_load(read.stdout)["services"]


with_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="apt-get install docker-compose brings it"
)


@with_compose
def test_compose_itself_takes_the_file(root, compose, tmp_path):
    """Compose reads the file in its own way."""
    (tmp_path / "none.env").touch()
    services = _read_by_compose(root, tmp_path / "none.env")
    assert set(services) == set(compose["services"])
    assert services["worker-gpu"]["command"] == ["worker"]
    assert services["worker"]["stop_grace_period"] in {"90s", "1m30s"}


@with_compose
def test_what_is_in_the_file_of_variables_reaches_the_processes(root, tmp_path):
    """Compose's own reading: a bound of jobs and the bucket's reach all of ours, a secret its process alone, and Redis nothing."""
    lines = {"SPARKE_MAX_OPEN_JOBS": "77", "AWS_TIMEOUT": "9s", "SPARKE_URL_SIGNING_KEY": "x" * 32}
    given = tmp_path / "some.env"
    given.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    services = _read_by_compose(root, given)
    told = {
        name: {key: value for key, value in service.get("environment", {}).items() if key in lines and value}
        for name, service in services.items()
    }
    of_all = {name: lines[name] for name in ("SPARKE_MAX_OPEN_JOBS", "AWS_TIMEOUT")}
    assert told == {
        "api": lines,
        "worker": of_all,
        "worker-gpu": of_all,
        "redis": {},
        "prometheus": {},
        "grafana": {},
    }
