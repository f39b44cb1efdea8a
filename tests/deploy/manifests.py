"""Rendered Kubernetes objects, and what can be asked of them."""

import base64
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("cpu-demo", "gpu-production")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
Labels = dict[str, str]


@dataclass(frozen=True)
class Pod:
    """A workload's pods: whose they are, their labels, and their one container."""

    kind: str
    name: str
    labels: Labels
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        """Its only one."""
        (found,) = self.spec["containers"]
        return found

    @property
    def component(self) -> str:
        """api, worker, command or redis."""
        return self.labels.get("app.kubernetes.io/component", self.labels["app.kubernetes.io/name"])

    @property
    def ports(self) -> dict[str, int]:
        """Its ports by their names."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}


@dataclass(frozen=True)
class Manifests:
    """All objects of an overlay and of the jobs beside it."""

    objects: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The objects of a kind."""
        return [one for one in self.objects if one["kind"] == kind]

    def named(self, kind: str, name: str) -> dict[str, Any]:
        """The object; KeyError where it is not there."""
        return {one["metadata"]["name"]: one for one in self.of(kind)}[name]

    @property
    def pods(self) -> list[Pod]:
        """The pods of all workloads."""
        return [
            Pod(kind, one["metadata"]["name"], template["metadata"]["labels"], template["spec"])
            for kind in WORKLOADS
            for one in self.of(kind)
            for template in [one["spec"]["template"]]
        ]

    def pods_of(self, *components: str) -> list[Pod]:
        """The pods of some components."""
        return [pod for pod in self.pods if pod.component in components]

    def environment(self, pod: Pod) -> dict[str, str]:
        """What the container finds in its environment, beside what its image sets."""
        found: dict[str, str] = {}
        for source in pod.container.get("envFrom", []):
            found |= self._data(source)
        for one in pod.container.get("env", []):
            if "value" in one:
                found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], one["value"])
            else:
                (reference,) = one["valueFrom"].items()
                key = reference[1]["key"]
                data = self._data(dict([reference]))
                if key in data or not reference[1].get("optional"):
                    found[one["name"]] = data[key]
        return found

    def _data(self, source: dict[str, Any]) -> dict[str, str]:
        [(how, reference)] = source.items()
        if how.startswith("configMap"):
            return self.named("ConfigMap", reference["name"])["data"]
        secret = self.named("Secret", reference["name"]).get("data", {})
        return {name: base64.b64decode(value).decode() for name, value in secret.items()}


def selects(selector: dict[str, Any], labels: Labels) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    wanted = selector.get("matchLabels", {})
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In", "no other operator is used"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in wanted.items())


def renderer() -> list[str] | None:
    """The command that renders a folder: the pinned kubectl, or what is on PATH. None where there is neither."""
    pinned = ROOT / "build" / "bin" / "kubectl"
    if pinned.exists():
        return [str(pinned), "kustomize"]
    for tool, words in (("kubectl", ["kustomize"]), ("kustomize", ["build"])):
        if found := shutil.which(tool):
            return [found, *words]
    return None


def write_secrets(overlays: Path) -> None:
    """The files that an operator makes, with values that are none."""
    demo, production = (overlays / name / "secrets" for name in OVERLAYS)
    url = "redis://:words@redis:6379/0"
    (demo / "redis.env").write_text(f"REDIS_PASSWORD=words\nSPARKE_REDIS_URL={url}\n")
    for user in ("api", "worker"):
        url = f"rediss://sparke-{user}:words@redis.internal:6380/0?ssl_ca_certs=/etc/sparke/redis/ca.pem"
        (production / f"redis-{user}.env").write_text(f"SPARKE_REDIS_URL={url}\n")
    (production / "objects.env").write_text("AWS_ACCESS_KEY_ID=words\nAWS_SECRET_ACCESS_KEY=words\n")
    (production / "hub.env").write_text("")
    (production / "redis-ca.pem").write_text("a certificate\n")


def render(folder: Path) -> Manifests:
    """What kustomize makes of a folder. Fails where it cannot."""
    command = renderer()
    assert command is not None
    made = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=200)
    assert made.returncode == 0, made.stderr
    return Manifests(tuple(yaml.safe_load_all(made.stdout)))
