"""The images are made of what exists, as a user without rights, and the API's without torch."""

import json
import re
import tomllib
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def _last_stage(instructions):
    return [one for one in instructions if one.stage == instructions[-1].stage]


def test_there_is_one_for_the_api_and_one_for_the_worker(dockerfiles):
    """The two processes that scale have an image each."""
    assert set(dockerfiles) == {"docker/api.Dockerfile", "docker/worker.Dockerfile"}


def test_what_is_copied_exists_and_is_sent_to_the_builder(dockerfiles, root):
    """Each source of a COPY is in the repository and let through by .dockerignore, or comes from a known stage."""
    ignore = (root / ".dockerignore").read_text().split()
    assert ignore.count("*") == 1
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert all((root / name).exists() for name in sent)
    for instructions in dockerfiles.values():
        stages = {one.rest.split(" AS ")[1] for one in instructions if " AS " in one.rest}
        copies = [one.rest.split() for one in instructions if one.word == "COPY"]
        assert copies
        for words in copies:
            if words[0].startswith("--from="):
                assert words[0].removeprefix("--from=") in stages
                continue
            for source in words[:-1]:
                assert (root / source).exists(), source
                assert source.split("/")[0] in sent, source


def test_images_run_as_one_user_without_rights(dockerfiles):
    """API and worker share a volume: the same number, not that of root, owns it in both."""
    users = set()
    for instructions in dockerfiles.values():
        last = _last_stage(instructions)
        users |= {one.rest for one in last if one.word == "USER"}
        assert "install --directory --owner=sparke" in " ".join(one.rest for one in last if one.word == "RUN")
    assert users == {"10001:10001"}


def test_health_checks_run_the_script_that_is_copied(dockerfiles, root):
    """The last stage has one health check, whose script it copied there."""
    for instructions in dockerfiles.values():
        last = _last_stage(instructions)
        (check,) = (one.rest for one in last if one.word == "HEALTHCHECK")
        command = json.loads(check[check.index("CMD ") + 4 :])
        copied = dict(
            one.rest.split() for one in last if one.word == "COPY" and not one.rest.startswith("--")
        )
        assert command[0] == "python"
        assert (root / {there: here for here, there in copied.items()}[command[1]]).is_file()


def test_the_api_has_neither_torch_nor_an_extra_but_traces(dockerfiles, root):
    """Nothing in its image, and none of the project's own dependencies, is of the engine; it can send spans."""
    text = " ".join(one.rest for one in dockerfiles["docker/api.Dockerfile"])
    assert "torch" not in text
    assert "sparke_engine" not in text
    assert re.findall(r"constraints.txt (\S+)", text)[-1] == '".[otel]"'
    assert text.count(".[") == 1
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needs = " ".join([*project["dependencies"], *project["optional-dependencies"]["otel"]])
    assert not re.search(r"torch|diffusers|faiss|transformers", needs)


def test_the_worker_takes_its_extra_and_the_makefiles_torch(dockerfiles, root):
    """The build argument chooses torch's build for cpu or cuda, in the version that is developed with; the rest is one."""
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    instructions = dockerfiles["docker/worker.Dockerfile"]
    arguments = dict(one.rest.split("=", 1) for one in instructions if one.word == "ARG")
    chosen = {
        word
        for one in instructions
        if one.word == "RUN" and "case" in one.rest
        for word in re.findall(r"\b(\w+)\) /opt", one.rest)
    }
    assert chosen == {"cpu", "cuda"}
    assert arguments["TORCH_BUILD"] in chosen
    assert {"worker", "otel"} <= set(extras)
    assert any('".[worker,otel]"' in one.rest for one in instructions)
    assert set(re.findall(r"torch==([\d.]+)", (root / "Makefile").read_text())) == {
        arguments["TORCH_VERSION"]
    }


def _pinned(text):
    """Versions by name of the lines of a requirements file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


def test_the_gpu_image_pins_all_of_cuda_by_hash(dockerfiles, root):
    """The torch of the Makefile, and the libraries that it brings: to the byte, and none that another file pins too."""
    text = (root / "docker" / "requirements-gpu.txt").read_text()
    pinned = _pinned(text)
    assert all(re.fullmatch(r"[\d.]+ --hash=sha256:[0-9a-f]{64}", pin) for pin in pinned.values())
    assert set(re.findall(r"torch==([\d.]+)", (root / "Makefile").read_text())) == {
        pinned["torch"].split()[0]
    }
    for needed in ("triton", "cuda-toolkit", "nvidia-cublas", "nvidia-cudnn-cu13"):
        assert needed in pinned
    assert not [name for name in pinned if name.endswith("-cu12")]  # a second CUDA beside torch's own
    assert not set(pinned) & set(_pinned((root / "constraints.txt").read_text()))
    commands = " ".join(one.rest for one in dockerfiles["docker/worker.Dockerfile"] if one.word == "RUN")
    assert "--no-deps --require-hashes --requirement docker/requirements-gpu.txt" in commands
    assert commands.count("pip install --no-deps") == 2


def test_all_that_torch_needs_is_pinned(root):
    """What comes with torch is in constraints.txt, or in the GPU image's own file."""
    needs = [Requirement(need) for need in requires("torch") or ()]
    names = {
        canonicalize_name(need.name)
        for need in needs
        if need.marker is None or need.marker.evaluate({"extra": ""})
    }
    files = ("constraints.txt", "docker/requirements-gpu.txt")
    assert names - {name for file in files for name in _pinned((root / file).read_text())} == set()


@pytest.mark.parametrize("path", ["docker/api.Dockerfile", "docker/worker.Dockerfile"])
def test_base_images_are_pinned(dockerfiles, path):
    """Both stages start from one image with a full version."""
    instructions = dockerfiles[path]
    arguments = dict(one.rest.split("=", 1) for one in instructions if one.word == "ARG" and one.stage < 0)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-\S+", arguments["PYTHON_IMAGE"])
    assert {one.rest.split()[0] for one in instructions if one.word == "FROM"} == {"${PYTHON_IMAGE}"}
