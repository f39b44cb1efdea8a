"""What is checked of this machine's folders: there or to be made, writable, ours, and with room."""

import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.doctor.finding import Finding, ok, problem, shown_bytes, warning
from app.settings import Settings

_AMPLE = 4


@dataclass(frozen=True, slots=True)
class Room:
    """A place on a disk and what is free there."""

    path: Path
    free_bytes: int
    all_bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The room of a folder, or of the nearest one above it that there is."""
        place = nearest(path)
        usage = shutil.disk_usage(place)
        return cls(place, usage.free, usage.total)


def examine_data_dir(settings: Settings, *, least_free_bytes: int) -> list[Finding]:
    """The data directory, where anything is to lie there."""
    name = "data directory"
    if settings.redis_url and settings.image_url:
        return [ok(name, "not needed: Redis and the object store are shared ones")]
    found = judge_folder(name, settings.data_dir.absolute())
    return [
        found,
        judge_room("data disk", Room.of(settings.data_dir.absolute()), least_free_bytes=least_free_bytes),
    ]


def examine_snapshots(settings: Settings) -> Finding:
    """The folder of snapshots, and whether as many fit as may be kept."""
    name, folder = "snapshots", settings.memory_snapshots_dir or settings.data_dir / "snapshots"
    if not settings.memory_snapshots_bytes:
        return ok(name, "none are kept: SPARKE_MEMORY_SNAPSHOTS_BYTES is 0")
    if settings.memory_snapshots_dir is None and settings.redis_url:
        return ok(name, "a worker keeps none: SPARKE_MEMORY_SNAPSHOTS_DIR is not set; `sparke serve` does")
    found = judge_folder(name, folder.absolute())
    if found.advice:
        return found
    num_used_bytes = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    return judge_snapshots(
        found, Room.of(folder.absolute()), settings.memory_snapshots_bytes - num_used_bytes
    )


def judge_snapshots(folder: Finding, room: Room, num_more_bytes: int) -> Finding:
    """The folder's own finding, unless the disk has not the room for the bytes that may come."""
    if room.free_bytes >= num_more_bytes:
        return folder
    return warning(
        folder.check,
        f"up to {shown_bytes(num_more_bytes)} more may be kept in {room.path}, and {shown_bytes(room.free_bytes)} are free",
        "lower SPARKE_MEMORY_SNAPSHOTS_BYTES, or make room",
    )


def judge_folder(name: str, folder: Path) -> Finding:
    """A folder that is writable and ours, or a place where it can be made."""
    place = nearest(folder)
    if not place.is_dir():
        return problem(name, f"{place} is no folder", "remove it, or name another folder")
    fault = _write_fault(place)
    if fault is not None:
        return problem(
            name,
            f"{place} cannot be written by the user {_user(os.geteuid())}: {fault}",
            f"let that user write there (chown, chmod, mount), or name another folder than {folder}",
        )
    if place != folder:
        return ok(name, f"{folder} is not there yet, and can be made")
    owner = place.stat().st_uid
    if owner != os.geteuid():
        return warning(
            name,
            f"{folder} is of the user {_user(owner)}, and this is {_user(os.geteuid())}",
            "run the service and its commands as one user, else they cannot read each other's files",
        )
    return ok(name, f"{folder} is there, writable and of this user")


def judge_room(name: str, room: Room, *, least_free_bytes: int) -> Finding:
    """Enough free bytes: a warning comes below four times the least."""
    found = f"{shown_bytes(room.free_bytes)} of {shown_bytes(room.all_bytes)} are free at {room.path}"
    advice = f"make room: at least {shown_bytes(least_free_bytes)} (--least-free-bytes)"
    if room.free_bytes < least_free_bytes:
        return problem(name, found, advice)
    if room.free_bytes < _AMPLE * least_free_bytes:
        return warning(name, found, advice)
    return ok(name, found)


def nearest(path: Path) -> Path:
    """The path, or the nearest one above it that there is."""
    return next((place for place in (path, *path.parents) if is_there(place)), Path(path.anchor))


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder that this user can see."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _write_fault(folder: Path) -> str | None:
    """Why no file can be made there, by making one that never gets a name, or loses it at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
