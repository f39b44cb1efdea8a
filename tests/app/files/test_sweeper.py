"""Bytes that no file names."""

import os

import pytest
from patience import eventually

from app.files.keys import SWEEP_KEY, content_key
from app.files.sweeper import SLACK_S, FileSweeper

pytestmark = pytest.mark.anyio

UPLOAD_S = 60
GRACE_S = UPLOAD_S + SLACK_S


async def _write(cabinet, file, *, age_s):
    key = content_key(file.tenant_id, file.file_id)
    await cabinet.contents.put(key, b"lines")
    _age(cabinet, key, age_s)
    return key


def _age(cabinet, key, age_s):
    at_s = cabinet.now_ms / 1000 - age_s
    os.utime(cabinet.folder / key, (at_s, at_s))


def _left(cabinet):
    return sorted(
        path.relative_to(cabinet.folder).as_posix() for path in cabinet.folder.rglob("*") if path.is_file()
    )


async def test_bytes_without_a_record_go_and_files_stay(cabinet):
    """Of two tenants, among many: files keep their bytes, orphans lose them, young bytes wait, all else is not ours."""
    cabinet.now_ms = 10**12
    files = [cabinet.file(tenant) for tenant in ("acme", "bolt") for _ in range(120)]
    kept = []
    for number, file in enumerate(files):
        key = await _write(cabinet, file, age_s=GRACE_S + 5)
        if number % 2:
            await cabinet.store().add(file)
            kept.append(key)
    young = cabinet.file()
    kept.append(await _write(cabinet, young, age_s=GRACE_S - 5))
    for key in ("images/acme/x.png", "files/notes.txt", "files/acme/deeper/file.txt"):
        await cabinet.contents.put(key, b"mine")
        _age(cabinet, key, 10 * GRACE_S)
        kept.append(key)
    assert await cabinet.sweeper(UPLOAD_S).sweep() == 120
    assert _left(cabinet) == sorted(kept)


async def test_an_expired_files_bytes_go(cabinet):
    """Once Redis has let go of the record."""
    cabinet.now_ms = 10**12
    file = cabinet.file()
    await cabinet.store().add(file)
    await _write(cabinet, file, age_s=GRACE_S + 5)
    sweeper = cabinet.sweeper(UPLOAD_S)
    assert await sweeper.sweep() == 0
    await cabinet.redis.delete(SWEEP_KEY)
    record = f"sparke:{{t:acme}}:file:{file.file_id}"
    await cabinet.redis.pexpire(record, 1)

    async def is_gone():
        return not await cabinet.redis.exists(record)

    await eventually(is_gone)
    assert await sweeper.sweep() == 1
    assert _left(cabinet) == []


async def test_what_a_killed_upload_left_goes(cabinet):
    """Parts of an object that never became whole: the store itself does not list them."""
    cabinet.now_ms = 10**12
    (cabinet.folder / "files/acme").mkdir(parents=True)
    for name, age_s in (("file-1#1", GRACE_S + 5), ("file-2#1", GRACE_S - 5)):
        (cabinet.folder / "files/acme" / name).write_bytes(b"1")
        _age(cabinet, f"files/acme/{name}", age_s)
    assert await cabinet.sweeper(UPLOAD_S).sweep() == 1
    assert _left(cabinet) == ["files/acme/file-2#1"]


async def test_one_process_at_a_time_sweeps(cabinet):
    """A second sweep within the interval looks at nothing; the next interval's does."""
    cabinet.now_ms = 10**12
    assert await cabinet.sweeper(UPLOAD_S).sweep() == 0
    await _write(cabinet, cabinet.file(), age_s=GRACE_S + 5)
    assert await cabinet.sweeper(UPLOAD_S).sweep() == 0
    assert 0 < await cabinet.redis.pttl(SWEEP_KEY) <= FileSweeper.INTERVAL_S * 1000
    await cabinet.redis.delete(SWEEP_KEY)
    assert await cabinet.sweeper(UPLOAD_S).sweep() == 1
