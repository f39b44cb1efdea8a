"""Importing the package costs nothing."""

import pydoc
import subprocess
import sys

import pytest

import sparke_engine


def test_import_loads_no_torch() -> None:
    """`import sparke_engine` in a fresh interpreter loads neither torch nor diffusers."""
    script = "import sys, sparke_engine; print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    """Every public name can be had."""
    for name in sparke_engine.__all__:
        assert getattr(sparke_engine, name) is not None


def test_help_shows_public_names() -> None:
    """What is loaded only when it is asked for is listed all the same, and `help` has its own words."""
    assert set(sparke_engine.__all__) <= set(dir(sparke_engine))
    shown = pydoc.render_doc(sparke_engine, renderer=pydoc.plaintext)
    assert "Within the block, images that `pipe` makes" in shown
    assert all(f"`{name}`" in (sparke_engine.__doc__ or "") for name in sparke_engine.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as on any module."""
    with pytest.raises(AttributeError, match="no attribute 'MemoryBnak'"):
        sparke_engine.MemoryBnak  # noqa: B018
