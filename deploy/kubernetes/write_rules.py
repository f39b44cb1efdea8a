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

HEAD = "# Written by `make docs` from deploy/prometheus/rules.yml. Do not edit.\n"


def render() -> str:
    """The object: the same groups, under a name that the Prometheus operator takes them by."""
    written = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "sparke", "labels": {"app.kubernetes.io/name": "sparke"}},
        "spec": yaml.safe_load(SOURCE.read_text(encoding="utf-8")),
    }
    return HEAD + yaml.dump(written, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
