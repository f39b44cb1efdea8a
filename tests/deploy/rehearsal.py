"""The steps of a Dockerfile done in plain folders, where no Docker engine is: as root, by chroot and mounts of Linux.

What stands in for the base image is a Debian that debootstrap made, with its own Python. A step sees the network and pip's
settings of this machine. An image is run as Docker would: its user, no capability, a root that is read-only, an empty /tmp.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
_PIP_FILES = (Path("/etc/pip.conf"), Path("/etc/xdg/pip"), Path("/etc/ssl/certs"))
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STEP_S = 1500


@dataclass
class Image:
    """What a Dockerfile's last stage made: a folder, and how it is run."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)

    def configure(self, word: str, rest: str) -> None:
        """Takes an instruction that says how the image is run. Raises ValueError for any other."""
        match word:
            case "ENV":
                for pair in shlex.split(rest):
                    name, value = pair.split("=", 1)
                    self.environment[name] = string.Template(value).safe_substitute(self.environment)
            case "USER":
                self.user = rest
            case "ENTRYPOINT":
                self.entrypoint = json.loads(rest)
            case "CMD":
                self.command = json.loads(rest)
            case "HEALTHCHECK":
                self.health_check = json.loads(rest[rest.index("CMD ") + 4 :])
            case _:
                raise ValueError(f"a Dockerfile has {word}, which the rehearsal does not know")

    def start(
        self,
        words: Sequence[str] | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        volumes: Mapping[str, Path] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Runs `words` (else the image's own command), with folders or files of this machine at `volumes`' places.

        The process that is returned becomes the command itself, so a signal to it reaches it.
        """
        mounts = "".join(
            f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(self.root) + place)}\n"
            for place, source in (volumes or {}).items()
        )
        for place, source in (volumes or {}).items():
            _make_place(self.root / place.lstrip("/"), source)
        user, group = self.user.split(":")
        inside = [*(self.entrypoint if entrypoint is None else entrypoint), *(words or self.command)]
        values = {**self.environment, "HOME": "/tmp", **(environment or {})}  # noqa: S108 - of the container
        given = [f"{name}={value}" for name, value in values.items()]
        script = f"""set -e
root={shlex.quote(str(self.root))}
mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
{_mount_devices()}mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
{mounts}cd "$root{self.workdir}"
exec chroot "$root" setpriv --reuid={user} --regid={group} --clear-groups --no-new-privs --bounding-set=-all \\
  --inh-caps=-all env --ignore-environment --chdir={shlex.quote(self.workdir)} {shlex.join([*given, *inside])}
"""
        return subprocess.Popen(["unshare", "--mount", "sh", "-c", script], text=True, **options)

    def run(self, words: Sequence[str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """The same, waited for, with what it wrote."""
        process = self.start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def make_base(folder: Path, packages: Sequence[str]) -> Path:
    """A Debian with these packages, and `python` as the official images of Python have it."""
    _call("debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(folder), MIRROR)
    with _mounted(folder):
        _call(
            *("chroot", str(folder), "env", "DEBIAN_FRONTEND=noninteractive"),
            *("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages),
        )
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3.11")
    return folder


class Builder:
    """Does what a Dockerfile says, one instruction after the other; each `FROM` starts from a copy of `base`."""

    def __init__(self, *, base: Path, context: Path, folder: Path, arguments: Mapping[str, str]) -> None:
        self._base, self._context, self._folder, self._arguments = base, context, folder, arguments
        self._stages: dict[str, Path] = {}
        self._given: dict[str, str] = {}
        self._image: Image | None = None

    def build(self, instructions: Sequence[Any]) -> Image:
        """The image of the last stage. Raises ValueError for an instruction that is not known here."""
        for one in instructions:
            if one.word == "FROM":
                self._begin(one)
            elif self._image is not None:  # what comes before is the base image's name
                self._follow(self._image, one.word, one.rest)
        if self._image is None:
            raise ValueError("a Dockerfile has no FROM")
        return self._image

    def _begin(self, one: Any) -> None:
        self._image, self._given = Image(self._folder / f"stage{one.stage}"), {}
        _call("cp", "--archive", str(self._base), str(self._image.root))
        self._stages[one.rest.partition(" AS ")[2] or str(one.stage)] = self._image.root

    def _follow(self, image: Image, word: str, rest: str) -> None:
        match word:
            case "ARG":
                name, _, value = rest.partition("=")
                self._given[name] = self._arguments.get(name, value)
            case "RUN":
                _run_step(image, re.sub(r"^(--mount=\S+\s+)+", "", rest), self._given)
            case "COPY":
                self._copy(image, rest.split())
            case "WORKDIR":
                image.workdir = rest
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "EXPOSE":
                pass  # says something to people alone
            case _:
                image.configure(word, rest)

    def _copy(self, image: Image, words: list[str]) -> None:
        origin = self._context
        if words[0].startswith("--from="):
            origin = self._stages[words.pop(0).removeprefix("--from=")]
        *sources, target = words
        place = image.root / (target if target.startswith("/") else f"{image.workdir}/{target}").lstrip("/")
        ignored = shutil.ignore_patterns("__pycache__")
        for source in sources:
            found = origin / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
                continue
            (place if target.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, place)


def _run_step(image: Image, line: str, arguments: Mapping[str, str]) -> None:
    if image.user != "0:0":
        raise ValueError(f"a step after USER {image.user} is not rehearsed: {line}")
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    with _mounted(image.root):
        _call(
            *("chroot", str(image.root), "env", "--ignore-environment", f"--chdir={image.workdir}"),
            *(f"{name}={value}" for name, value in {**image.environment, **pip, **arguments}.items()),
            *("sh", "-c", line),
        )


@contextmanager
def _mounted(root: Path) -> Iterator[None]:
    """While a step runs: /proc, names of hosts, certificates, and where pip finds packages on this machine."""
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    mounted = []
    try:
        _call("mount", "-t", "proc", "proc", str(root / "proc"))
        mounted.append(root / "proc")
        for source in {*_PIP_FILES, *_pip_folders()}:
            if source.exists():
                target = root / str(source).lstrip("/")
                _make_place(target, source)
                _call("mount", "--bind", str(source), str(target))
                mounted.append(target)
        yield
    finally:
        for target in reversed(mounted):
            _call("umount", str(target))


def _make_place(target: Path, source: Path) -> None:
    """A file or folder to mount `source` on."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()


def _pip_folders() -> set[Path]:
    """The folders of this machine that pip's settings name."""
    texts = [value for name, value in os.environ.items() if name.startswith("PIP_")]
    for path in (Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf")):
        settings = configparser.ConfigParser()
        settings.read(path)
        texts += [value for section in settings.sections() for value in settings[section].values()]
    words = " ".join(texts).replace("file://", "").split()
    return {path for path in map(Path, words) if path.is_absolute() and path.is_dir()}


def _mount_devices() -> str:
    """Lines of a shell that give a root the devices every container has."""
    lines = ['mount -t tmpfs tmpfs "$root/dev"']
    for name in _DEVICES:
        lines += [f'touch "$root/dev/{name}"', f'mount --bind /dev/{name} "$root/dev/{name}"']
    return "\n".join([*lines, 'mkdir -p "$root/dev/shm"', ""])


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_STEP_S)
    if done.returncode != 0:
        raise RuntimeError(
            f"{shlex.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
