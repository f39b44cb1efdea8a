"""The sweep takes copies that no batch reads, and no others."""

import os

import pytest

from app.batches.keys import input_key, parse_input_key
from app.batches.sweeper import InputSweeper
from app.domain.batch import BatchState
from app.domain.ids import TenantId, make_batch_id

pytestmark = pytest.mark.anyio


async def test_copies_of_ended_and_unknown_batches_go(desk):
    """That of an open batch stays, and so does one that is new, and what is not ours; once in an interval."""
    desk.now_ms = 10**12
    opened, ended = await desk.create("one"), await desk.create("two")
    held = desk.held(ended)
    assert await held.acquire(5.0)
    await held.end(BatchState.VALIDATING, BatchState.FAILED, 100)
    old = [input_key(batch.tenant_id, batch.batch_id) for batch in (opened, ended)] + [
        input_key(TenantId("bolt"), make_batch_id(1, bytes(12))),
        "batches/what/ever",
    ]
    new = input_key(TenantId("bolt"), make_batch_id(2, bytes(12)))
    for key in (*old, new):
        await desk.inputs.put(key, b"lines")
        os.utime(desk.folder / key, (desk.now_ms / 1000,) * 2)
    for key in old:
        os.utime(desk.folder / key, (1, 1))
    sweeper = InputSweeper(desk.redis, desk.inputs, clock_ms=desk.clock_ms)
    assert await sweeper.sweep() == 2
    assert [await desk.inputs.has(key) for key in (*old, new)] == [True, False, False, True, True]
    assert await sweeper.sweep() == 0


@pytest.mark.parametrize(
    "key", ["batches", "batches/acme", "files/acme/batch_" + "0" * 36, "batches/acme/file-1"]
)
def test_a_key_that_is_not_ours(key):
    """It is left alone."""
    assert parse_input_key(key) is None
    assert parse_input_key("batches/acme/batch_" + "0" * 36) == ("acme", "batch_" + "0" * 36)
