"""The manifests of `deploy/kubernetes` as kustomize renders them, with secrets of no worth."""

import shutil

import pytest

from tests.deploy.manifests import OVERLAYS, ROOT, Manifests, render, renderer, write_secrets


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of `deploy/kubernetes` in which an operator has made the files of secrets."""
    if renderer() is None:
        pytest.skip("neither kubectl nor kustomize is there: .ci/kubectl fetches one")
    copy = tmp_path_factory.mktemp("cluster") / "kubernetes"
    shutil.copytree(ROOT / "deploy" / "kubernetes", copy)
    write_secrets(copy / "overlays")
    return copy


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request):
    """Each overlay's name."""
    return request.param


@pytest.fixture(scope="session")
def manifests(tree, overlay) -> Manifests:
    """Its objects, with the jobs beside it."""
    return render(tree / "jobs" / overlay)


@pytest.fixture(scope="session")
def production(tree) -> Manifests:
    """The objects of the overlay that has all components."""
    return render(tree / "jobs" / "gpu-production")
