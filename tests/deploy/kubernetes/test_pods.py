"""What runs in the pods: settings and commands of this release, probes that are answered, time to stop, few rights."""

import asyncio
import json
import re
import tomllib
import urllib.error
import urllib.request
from urllib.parse import parse_qs, urlsplit

import pytest
import typer.core
import typer.main
from patience import PATIENCE_S
from processes import free_port
from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter

from app.catalogue import load_catalogue
from app.cli import cli
from app.http.guard.auth import is_loopback
from app.http.routes import health
from app.settings import Settings
from app.worker.main import _DEVICE_CLOSE_S
from app.worker.port import WorkerHealth, worker_port
from tests.deploy.manifests import render

IMAGES = {"sparke-api": "docker/api.Dockerfile", "sparke-worker": "docker/worker.Dockerfile"}
BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def _image(pod):
    return pod.container["image"].rpartition(":")[0].rpartition("/")[2]


def _bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity).groups()
    return int(number) * BYTES[unit]


@pytest.fixture
def settings_of(manifests, image_environments):
    """The settings of a pod, as its image and its manifest give them; each variable SPARKE_* must be one."""

    def read(pod):
        given = image_environments[IMAGES[_image(pod)]] | manifests.environment(pod)
        ours = {
            name.removeprefix("SPARKE_").lower(): text
            for name, text in given.items()
            if name.startswith("SPARKE_")
        }
        assert set(ours) <= set(Settings.model_fields), pod.name
        return Settings(**ours)

    return read


def _parse(words):
    """The name and the values of a `sparke` command line, parsed as the command itself does, but not run."""
    command, name = typer.main.get_command(cli), "sparke"
    while isinstance(command, typer.core.TyperGroup):
        name, *words = words
        command = command.commands[name]
    return name, command.make_context(name, list(words)).params


def test_pods_get_valid_settings_that_agree(manifests, settings_of, overlay):
    """Every SPARKE_ variable is a setting; API, workers and jobs share Redis, stores, catalogue and bounds."""
    read = {pod.name: settings_of(pod) for pod in manifests.pods_of("api", "worker", "command")}
    assert not is_loopback(read["api"].host)
    shared = ("image_store_url", "file_store_url", "models_file", "request_timeout_s", "redis_replicas")
    for name, settings in read.items():
        assert urlsplit(settings.redis_url).hostname == urlsplit(read["api"].redis_url).hostname
        for member in shared:
            assert getattr(settings, member) == getattr(read["api"], member), (name, member)
    if overlay == "gpu-production":
        users = {name: urlsplit(settings.redis_url) for name, settings in read.items()}
        assert {url.scheme for url in users.values()} == {"rediss"}
        assert {url.username for name, url in users.items() if name.startswith("worker")} == {"sparke-worker"}
        assert {users[name].username for name in ("api", "doctor", "migrate", "first-key")} == {"sparke-api"}
        assert {s.device for name, s in read.items() if name.startswith("worker")} == {"cuda"}
        assert read["api"].image_store_url.startswith("s3://")


def test_pods_run_commands_of_the_project(manifests, dockerfiles):
    """The images' entry point is `sparke`, and takes the arguments; only the job that waits has a command of its own."""
    ran = {}
    for pod in manifests.pods_of("api", "worker", "command"):
        instructions = dockerfiles[IMAGES[_image(pod)]]
        assert [one.rest for one in instructions if one.word == "ENTRYPOINT"] == ['["sparke"]']
        if "command" in pod.container:
            assert (pod.name, pod.container["command"]) == ("first-key", ["sleep"])
        else:
            ran[pod.name] = _parse(pod.container["args"])[0]
    assert ran.pop("api") == "api"
    assert (ran.pop("doctor"), ran.pop("migrate")) == ("doctor", "migrate")
    assert set(ran.values()) == {"worker"}


def _probes(pod):
    return {name: probe for name, probe in pod.container.items() if name.endswith("Probe")}


def test_the_apis_probes_ask_routes_that_there_are(manifests):
    """With parameters that the route takes; being ready does not hang on workers, for a job may be what starts one."""
    (pod,) = manifests.pods_of("api")
    routes = {route.path: route for route in health.router.routes}
    asked = {name: urlsplit(probe["httpGet"]["path"]) for name, probe in _probes(pod).items()}
    assert {name: url.path for name, url in asked.items()} == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    given = parse_qs(asked["readinessProbe"].query)
    (parameter,) = routes["/readyz"].dependant.query_params
    assert given == {parameter.name: ["workers"]}
    TypeAdapter(parameter.field_info.annotation).validate_python(given[parameter.name][0])
    assert set(routes) >= {url.path for url in asked.values()}


def test_the_workers_probes_are_answered(manifests):
    """A worker's own port knows each address that is asked; another one it does not."""
    port = free_port()

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    async def ask(paths):
        health = WorkerHealth()
        with worker_port(Settings(worker_metrics_port=port), CollectorRegistry(), health):
            return [await asyncio.to_thread(get, path) for path in paths]

    for pod in manifests.pods_of("worker"):
        paths = {name: one["httpGet"]["path"] for name, one in _probes(pod).items()}
        assert set(paths) == {"startupProbe", "readinessProbe", "livenessProbe"}
        assert asyncio.run(
            ask([paths["livenessProbe"], paths["readinessProbe"], paths["startupProbe"], "/"])
        ) == [
            200,
            503,  # it is loading
            503,
            404,
        ]


def test_ports_are_those_that_the_images_listen_on(manifests, settings_of):
    """And probes ask them by their names."""
    for pod in manifests.pods_of("api", "worker"):
        settings = settings_of(pod)
        expected = {"api": {"http": settings.port}, "worker": {"metrics": settings.worker_metrics_port}}
        assert pod.ports == expected[pod.component]
        assert {probe["httpGet"]["port"] for probe in _probes(pod).values()} == set(pod.ports)


def test_a_download_has_an_hour_and_is_no_failed_update(manifests):
    """The startup probe waits that long, and the Deployment longer."""
    for pod in manifests.pods_of("worker"):
        startup = pod.container["startupProbe"]
        budget_s = startup["periodSeconds"] * startup["failureThreshold"]
        assert budget_s >= 3600
        assert manifests.named("Deployment", pod.name)["spec"]["progressDeadlineSeconds"] > budget_s


def test_there_is_time_to_stop(manifests, settings_of):
    """The kernel ends a process later than it gives up by itself: a worker its batch, the API its answers."""
    for pod in manifests.pods_of("worker"):
        close_s = 2 * _DEVICE_CLOSE_S + settings_of(pod).redis_timeout_s
        assert pod.spec["terminationGracePeriodSeconds"] >= settings_of(pod).drain_timeout_s + close_s + 10
    (api,) = manifests.pods_of("api")
    leaving_s = api.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert leaving_s >= 10
    settings = settings_of(api)
    assert settings.stop_notice_s > 0
    stopping_s = settings.stop_notice_s + settings.stop_timeout_s
    assert api.spec["terminationGracePeriodSeconds"] >= leaving_s + stopping_s + 20


def test_pods_have_no_rights_that_they_do_not_need(manifests, dockerfiles):
    """What the standard `restricted` asks for, a root that nobody writes to, no token, and the images' own user."""
    for pod in manifests.pods:
        context, own = pod.spec["securityContext"], pod.container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod.spec["automountServiceAccountToken"] is False
        account = manifests.named("ServiceAccount", pod.spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod.spec)
        if pod.component != "redis":
            (user,) = [one.rest for one in dockerfiles[IMAGES[_image(pod)]] if one.word == "USER"]
            assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
            assert context["fsGroup"] == context["runAsGroup"]
            assert {"name": "tmp", "mountPath": "/tmp"} in pod.container["volumeMounts"]  # noqa: S108


def test_folders_that_a_worker_writes_are_volumes(manifests, settings_of, image_environments):
    """Its root is read-only: the cache of models and the snapshots have a place, and the snapshots have the room they may take."""
    for pod in manifests.pods_of("worker"):
        mounts = {mount["mountPath"]: mount for mount in pod.container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod.spec["volumes"]}
        settings = settings_of(pod)
        for folder in (
            image_environments[IMAGES[_image(pod)]]["HF_HOME"],
            str(settings.memory_snapshots_dir),
        ):
            assert not mounts[folder].get("readOnly"), folder
        snapshots = volumes[mounts[str(settings.memory_snapshots_dir)]["name"]]
        assert _bytes(snapshots["emptyDir"]["sizeLimit"]) > settings.memory_snapshots_bytes


def test_images_are_pinned_and_ours_are_this_release(manifests, root):
    """No `latest`; ours have the version of the package, so that an upgrade is one line."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    for pod in manifests.pods:
        name, _, tag = pod.container["image"].rpartition(":")
        assert name, pod.container["image"]
        if _image(pod) in IMAGES:
            assert tag.partition("-")[0] == version
        else:
            assert re.fullmatch(r"\d+\.\d+\.\d+-\w+", tag)


def test_memory_is_bounded_above_what_the_settings_allow(manifests, settings_of):
    """Each pod asks for what it needs and has a limit; a worker's copies of memories fit in, with 2 GiB for the rest."""
    for pod in manifests.pods:
        resources = pod.container["resources"]
        assert set(resources["requests"]) >= {"cpu", "memory"}
        limit = _bytes(resources["limits"]["memory"])
        assert _bytes(resources["requests"]["memory"]) <= limit
        if pod.component == "worker":
            assert settings_of(pod).memory_cache_bytes + 2 * 2**30 <= limit


def test_gpu_workers_request_the_memory_that_was_measured(tree, root, image_environments):
    """What their model holds of the host with its batch, a fifth more, and its cache; to the limit the largest file beside it."""
    measured = json.loads((root / "docs" / "figures" / "model-memory.json").read_text())
    most = {found["family"]: found["most"] for found in measured if found["way"] == "worker"}
    manifests = render(tree / "overlays" / "gpu-production")
    pods = manifests.pods_of("worker")
    assert len(pods) == 2
    for pod in pods:
        given = image_environments[IMAGES[_image(pod)]] | manifests.environment(pod)
        one, eight = (
            most[given["SPARKE_MODELS"].partition("-")[0]][f"images: {n}"]["anonymous"] for n in (1, 8)
        )
        batch_bytes = one + (int(given["SPARKE_MAX_BATCH_IMAGES"]) - 1) * (eight - one) / 7
        needed_bytes = 1.2 * batch_bytes + int(given["SPARKE_MEMORY_CACHE_BYTES"])
        asked, limit = (_bytes(pod.container["resources"][kind]["memory"]) for kind in ("requests", "limits"))
        assert needed_bytes <= asked <= needed_bytes + 1.5 * 2**30, pod.name
        assert asked + 10.3e9 <= limit <= asked + 10.3e9 + 2**30, pod.name


def test_the_catalogue_can_be_read(root):
    """As the mains read it."""
    catalogue = load_catalogue(root / "deploy/kubernetes/overlays/gpu-production/models.toml")
    assert set(catalogue) == {"sdxl", "flux-dev"}


def test_redis_of_the_demo_keeps_what_it_acknowledged(tree):
    """Append-only, synced at every write, never evicting, full before its pod is, on a volume, with a password."""
    demo = render(tree / "overlays" / "cpu-demo")
    (redis,) = demo.pods_of("redis")
    words = redis.container["args"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--requirepass"] == "$(REDIS_PASSWORD)"
    assert options["--maxmemory"] == "1gb"
    assert _bytes(redis.container["resources"]["limits"]["memory"]) >= 2 * 2**30
    assert redis.container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert demo.environment(redis)["REDISCLI_AUTH"] == demo.environment(redis)["REDIS_PASSWORD"]
