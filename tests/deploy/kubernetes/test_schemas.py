"""Every object that kustomize renders is one that a cluster takes: by Kubernetes' own schemas, or member by member."""

import copy

import kubernetes_validate
import pytest
from pydantic import ValidationError

from tests.deploy.kubernetes.custom_kinds import KINDS
from tests.deploy.manifests import render

KUBERNETES = "1.37"


def _check(manifest):
    """Raises ValidationError of one library or the other where the object is not what its kind takes."""
    if manifest["kind"] in KINDS:
        KINDS[manifest["kind"]].model_validate(manifest)
    else:
        assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES


def test_a_current_kubernetes_takes_every_object(manifests):
    """Strictly: a member that its kind does not have is a fault too."""
    assert len(manifests.objects) > 20
    for manifest in manifests.objects:
        _check(manifest)


def test_the_overlay_without_jobs_is_the_same(tree, overlay, manifests):
    """The folder `jobs` adds jobs, and changes nothing of the overlay it stands beside."""
    alone = render(tree / "overlays" / overlay)
    assert [one for one in manifests.objects if one["kind"] != "Job"] == list(alone.objects)
    assert {job["metadata"]["name"] for job in manifests.of("Job")} == {"doctor", "migrate", "first-key"}


def test_objects_are_in_one_namespace_and_named_once(manifests):
    """The namespace is the overlay's own, so that deleting it deletes all."""
    (namespace,) = manifests.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests.objects]
    assert len(set(names)) == len(names)
    spaces = {one["metadata"].get("namespace") for one in manifests.objects if one["kind"] != "Namespace"}
    assert spaces == {namespace["metadata"]["name"]}


def _spoil(manifest, path, value):
    spoilt = copy.deepcopy(manifest)
    *way, last = path
    at = spoilt
    for step in way:
        at = at[step]
    at[last] = value
    return spoilt


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "api", ("spec", "template", "spec", "containers", 0, "livenessprobe"), {}),
        ("Deployment", "api", ("spec", "template", "spec", "terminationGracePeriodSeconds"), "60s"),
        ("HorizontalPodAutoscaler", "api", ("spec", "maxReplicas"), "6"),
        ("PodDisruptionBudget", "api", ("spec", "maxUnavaileble"), 1),
        ("NetworkPolicy", "names", ("spec", "egress", 0, "ports", 0, "protokol"), "TCP"),
        ("ScaledObject", "worker-sdxl", ("spec", "minReplicas"), 0),
        ("ScaledObject", "worker-sdxl", ("spec", "triggers", 0, "metadata", "threshold"), 8),
        ("ScaledObject", "worker-sdxl", ("spec", "triggers", 0, "metricType"), "Value"),
        ("PodMonitor", "api", ("spec", "podMetricsEndpoints", 0, "targetport"), 8000),
        ("PodMonitor", "api", ("spec", "podMetricsEndpoints", 0, "interval"), "15 s"),
        ("PrometheusRule", "sparke", ("spec", "groups", 0, "rules", 0, "alert"), "Both"),
        ("PrometheusRule", "sparke", ("spec", "groups", 0, "rules", 0, "labels"), {"a-b": "c"}),
    ],
)
def test_the_check_finds_what_is_wrong(production, kind, name, path, value):
    """A slip in a member's name or type is refused, in each family of objects."""
    manifest = production.named(kind, name)
    _check(manifest)
    with pytest.raises((ValidationError, kubernetes_validate.ValidationError)):
        _check(_spoil(manifest, path, value))
