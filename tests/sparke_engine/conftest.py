"""What every test of the engine may use."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Types and shapes are not checked by annotations, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
