"""What a tenant is told of an error."""

import pytest
import torch

from app.errors import CorruptRecord, InvalidRequest, StoreUnavailable, VersionGone
from app.worker.failures import failure_of
from sparke_engine.errors import InvalidPlan, LoraNotLoadable, NonFiniteLatents, OutputMismatch


@pytest.mark.parametrize(
    ("error", "code", "shows_message"),
    [
        (InvalidRequest("say why"), "invalid_request", True),
        (VersionGone("say why"), "memory_version_gone", True),
        (StoreUnavailable("say why"), "store_unavailable", False),
        (CorruptRecord("say why"), "corrupt_record", False),
        (InvalidPlan("say why"), "invalid_request", True),
        (NonFiniteLatents("say why"), "non_finite_latents", False),
        (OutputMismatch("say why"), "output_mismatch", False),
        (LoraNotLoadable("say why", name="ink"), "lora_not_loadable", False),
        (torch.OutOfMemoryError("say why"), "out_of_memory", False),
        (MemoryError("say why"), "out_of_memory", False),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED, say why"), "out_of_memory", False),
        (RuntimeError("MPS backend out of memory, say why"), "out_of_memory", False),
        (RuntimeError("say why"), "generation_failed", False),
        (KeyError("say why"), "generation_failed", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_a_code_and_a_message_for_tenants(make_job, error, code, shows_message):
    """Only errors that speak of the request show their own words."""
    failure = failure_of(error, make_job(1))
    assert failure.code == code
    assert ("say why" in failure.message) is shows_message


def test_lack_of_host_memory_is_known_as_torch_tells_it(make_job):
    """Its allocator raises no type of its own."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48)
    assert failure_of(caught.value, make_job(1)).code == "out_of_memory"
