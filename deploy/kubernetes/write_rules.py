"""Writes the cluster's PrometheusRule from deploy/prometheus/rules.yml: `make docs`. A test fails where it is stale."""

from pathlib import Path

import yaml

SOURCE = Path(__file__).resolve().parents[1] / "prometheus" / "rules.yml"
TARGET = Path(__file__).with_name("components") / "monitoring" / "rules.yaml"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stay such."""


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _as_block)

# Here a group's first worker is started by the jobs that wait for it, on a node that may have to be started too, and then
# loads its models: only beyond that is somebody woken.
FOR = {"SparkeNoWorkerReady": "15m"}

HEAD = "# Written by `make docs` from deploy/prometheus/rules.yml. Do not edit.\n"


def render() -> str:
    """The object: the same groups, but for what `FOR` says, under a name that the Prometheus operator takes them by."""
    spec = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    for rule in (rule for group in spec["groups"] for rule in group["rules"]):
        if rule.get("alert") in FOR:
            rule["for"] = FOR[rule["alert"]]
    written = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "sparke", "labels": {"app.kubernetes.io/name": "sparke"}},
        "spec": spec,
    }
    return HEAD + yaml.dump(written, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
