"""`sparke calibrate`: prompts are read, faults are said, and what is written is what the catalogue and a worker read."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.calibrate import Choices, Outcome, read_scenes, run_calibration
from app.catalogue import load_catalogue, parse_catalogue
from app.cli import hand_over
from app.domain.preset import PresetSpec
from app.errors import ConfigurationError, InvalidRequest, ModelNotFound
from app.settings import load_settings
from app.worker.model.models import load_spec

CHOICES = Choices(images=2, steps=3, guidance_scale=None, keep=0.6, first_seed=0, eta_factors=(1.0, 4.0))
TOY = """
[[models]]
model_id = "toy"
source = "builtin:toy"
latent_space = "toy"
size = { default_width_px = 64, default_height_px = 64, min_px = 32, max_px = 128, multiple_px = 8 }
"""


ONE_SIZE = TOY.replace("min_px = 32, max_px = 128", "min_px = 64, max_px = 64")


def write(path: Path, text: str) -> Path:
    """The file with that text."""
    path.write_text(text, encoding="utf-8")
    return path


def silent(done: int, total: int) -> None:
    """Progress that nobody reads."""


@pytest.mark.parametrize(
    ("text", "scenes"),
    [
        ("a cat\na dog\n", (("a cat",), ("a dog",))),
        ("\ufeffa cat\r\n  a dog \r\n\r\n", (("a cat",), ("a dog",))),
        ("a cat\nthe cat\n\n\n \na dog\na dog\n", (("a cat", "the cat"), ("a dog",))),
    ],
)
def test_prompts_are_lines_and_blank_lines_divide_scenes(tmp_path, text, scenes):
    """Spaces, repetitions, a byte order mark and line ends of other systems do not count."""
    assert read_scenes(write(tmp_path / "prompts.txt", text)) == scenes


@pytest.mark.parametrize("text", ["", " \n\n", "a cat\n", "a cat\na cat\n", "\na cat\n\n"])
def test_too_few_prompts_are_said(tmp_path, text):
    """Nothing, blank lines, one prompt, or one again and again: how many there are and what to write."""
    with pytest.raises(InvalidRequest, match=r"prompts\.txt hold [01] scenes?, and a calibration needs 2"):
        read_scenes(write(tmp_path / "prompts.txt", text))


def test_what_cannot_be_read_is_said(tmp_path):
    """No file, a folder, bytes that are no text."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path / "none", "No such file"), (tmp_path, "directory"), (binary, "UTF-8")):
        with pytest.raises(InvalidRequest, match=said):
            read_scenes(path)


def test_a_model_that_cannot_be_calibrated_is_said(tmp_path):
    """Unknown, or without a denoiser; and a plan that it cannot run. Its LoRAs take no part."""
    lora = '[[models.loras]]\nname = "ink"\nsource = "./not-there.safetensors"\n'
    catalogue = write(tmp_path / "models.toml", TOY + lora)
    prompts = write(tmp_path / "prompts.txt", "a cat\na dog\n")
    settings = load_settings(models_file=catalogue)
    with pytest.raises(ModelNotFound, match="'toi'; the catalogue has toy"):
        run_calibration(settings, "toi", prompts, CHOICES, on_trial=silent)
    with pytest.raises(InvalidRequest, match=r"toy cannot be calibrated.*denoiser"):
        run_calibration(settings, "toy", prompts, CHOICES, on_trial=silent)
    wrong = Choices(2, 5000, None, 0.6, 0, (1.0,))
    with pytest.raises(InvalidRequest, match="1 to 1000 steps, got 5000"):
        run_calibration(load_settings(), "sparke-demo", prompts, wrong, on_trial=silent)


def test_members_that_do_not_agree_are_a_wrong_setting():
    """What the catalogue cannot see is seen when the model is loaded, by the same kind of error."""
    for table, said in (('base = "demoo"', "demoo"), ("conditional = false", "min_prompt_kernel")):
        (spec,) = parse_catalogue(
            f"{TOY}\n[models.diversity_preset]\n{table}\n", folder=None, name="here"
        ).values()
        with pytest.raises(ConfigurationError, match=f"model toy: .*{said}"):
            load_spec(spec, "cpu")


def test_a_workers_engine_has_the_catalogues_members():
    """On top of the base, with the grid of its own."""
    table = '[models.diversity_preset]\nbase = "demo"\neta = 0.7\ngrid = "whole"\n'
    (spec,) = parse_catalogue(f"{ONE_SIZE}\n{table}", folder=None, name="here").values()
    preset = load_spec(spec, "cpu").preset
    assert (preset.eta, preset.grid, preset.relax) == (0.7, None, 1.0)


def test_without_a_grid_images_are_of_the_models_own_size():
    """One size is not enough: where it is another, no image's feature would fit the model's memories."""
    demo = ONE_SIZE.replace("builtin:toy", "builtin:demo") + 'diversity_preset = "paper"\n'
    (own,) = parse_catalogue(demo, folder=None, name="here").values()
    assert load_spec(own, "cpu").preset.grid is None
    (other,) = parse_catalogue(re.sub(r"= 64\b", "= 128", demo), folder=None, name="here").values()
    with pytest.raises(ConfigurationError, match=r"model toy: .*64 px, .* gives it 128x128"):
        load_spec(other, "cpu")


def test_the_command_writes_what_the_catalogue_reads(tmp_path):
    """On the demo model with very few images: a table, a file, and a worker's engine that has what was measured."""
    prompts = write(tmp_path / "prompts.txt", "a star\na picture of a star\n\na red circle\n")
    out = tmp_path / "own.toml"
    command = [sys.executable, "-P", "-m", "app.cli", "calibrate", "sparke-demo"]
    command += ["--prompts", str(prompts), "--out", str(out), "--images", "2", "--steps", "3"]
    command += ["--eta-factor", "1", "--eta-factor", "4"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "trial 3 of 3" in ended.stderr
    assert re.search(r"^ *eta +push +Vendi +information +kept +\+-$", ended.stdout, re.MULTILINE)
    assert re.search(r"^ *0 +0\.000 .* 100 % +0 %$", ended.stdout, re.MULTILINE)
    written = out.read_text(encoding="utf-8")
    assert all(f"# {line}".rstrip() in written for line in ended.stdout.splitlines())
    catalogue = tmp_path / "models.toml"
    packaged = (Path(__file__).parents[2] / "app" / "models.toml").read_text(encoding="utf-8")
    assert "diversity_preset" not in packaged
    write(catalogue, packaged.replace("[models.size]", 'diversity_preset = "own.toml"\n\n[models.size]'))
    spec = load_catalogue(catalogue)["sparke-demo"]
    assert isinstance(spec.diversity_preset, PresetSpec)
    assert (spec.latent_space, spec.diversity_preset.base) == ("demo", "default")
    assert parse_catalogue(packaged + written, folder=None, name="here")["sparke-demo"] == spec
    preset = load_spec(spec, "cpu").preset
    assert f"eta {preset.eta:.3g} (before: 2)" in ended.stdout
    assert f"Prompt bandwidth: {preset.prompt_bandwidth:.3g};" in ended.stdout
    assert preset.grid == (2, 2)


def test_a_folder_is_refused_before_anything_is_made(tmp_path):
    """As `--out`: no trial is run for it, and no traceback is shown."""
    prompts = write(tmp_path / "prompts.txt", "a star\na red circle\n")
    command = [sys.executable, "-P", "-m", "app.cli", "calibrate", "sparke-demo"]
    command += ["--prompts", str(prompts), "--out", str(tmp_path), "--images", "2", "--steps", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "is a directory" in " ".join(ended.stderr.replace("│", " ").split())  # which wraps in a frame
    assert "trial" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_cannot_be_written_is_printed(tmp_path, capsys):
    """The calibration has run: its table and its preset are on standard output, and the error is the service's."""
    outcome = Outcome("the table\n", "[models.diversity_preset]\neta = 1.0\n")
    with pytest.raises(ConfigurationError, match=rf"--out: {tmp_path} cannot be written: Is a directory"):
        hand_over(outcome, tmp_path)
    assert capsys.readouterr().out == "the table\n\n[models.diversity_preset]\neta = 1.0\n"


def test_where_a_preset_goes_is_said(tmp_path, capsys):
    """In place of the entry's own member: beside it the catalogue would be no TOML."""
    outcome = Outcome("the table\n", "[models.diversity_preset]\neta = 1.0\n")
    hand_over(outcome, None)
    printed, told = capsys.readouterr()
    assert printed == outcome.commented_toml
    assert "in place of its `diversity_preset`" in told
    hand_over(outcome, tmp_path / "own.toml")
    printed, told = capsys.readouterr()
    assert (printed, "diversity_preset = " in told) == (outcome.table, True)
    assert (tmp_path / "own.toml").read_text(encoding="utf-8") == outcome.commented_toml


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('base = "demo-fine"', r"state grid = \[16, 16\]"),
        ('base = "paper"\nmode = "denoised"', 'state grid = "whole"'),
        ("grid = [4, 4]", "leave it out"),
        ('base = "demo"', r"state grid = \[2, 2\]"),
        ('base = "toy"\ngrid = [4, 4]', 'latent_space = "toy-4x4"'),
    ],
)
def test_a_grid_that_a_memorys_name_does_not_tell_is_refused(table, said):
    """The base's, where it is not the kind's and not stated; and the kind's own, stated, which would leave its memory."""
    (spec,) = parse_catalogue(
        f"{ONE_SIZE}\n[models.diversity_preset]\n{table}\n", folder=None, name="here"
    ).values()
    with pytest.raises(ConfigurationError, match=f"model toy: .*{said}"):
        load_spec(spec, "cpu")


@pytest.mark.parametrize("table", ['base = "toy"', 'base = "demo-fine"\ngrid = [16, 16]', "grid = [8, 8]"])
def test_a_grid_that_a_memorys_name_tells_is_taken(table):
    """The kind's own unstated, and any other stated."""
    (spec,) = parse_catalogue(
        f"{TOY}\n[models.diversity_preset]\n{table}\n", folder=None, name="here"
    ).values()
    preset = load_spec(spec, "cpu").preset
    assert spec.latent_space == ("toy" if preset.grid == (4, 4) else f"toy-{preset.grid[0]}x{preset.grid[1]}")


def test_a_named_preset_of_another_grid_becomes_a_table_that_states_it(tmp_path):
    """So that a worker takes it; the text says which memories it reads from then on."""
    packaged = (Path(__file__).parents[2] / "app" / "models.toml").read_text(encoding="utf-8")
    named = packaged.replace("[models.size]", 'diversity_preset = "demo-fine"\n\n[models.size]')
    settings = load_settings(models_file=write(tmp_path / "models.toml", named))
    prompts = write(tmp_path / "prompts.txt", "a star\na red circle\n")
    short = replace(CHOICES, steps=2, eta_factors=(1.0,))
    found = run_calibration(settings, "sparke-demo", prompts, short, on_trial=silent)
    assert "demo are left, those of demo-16x16 are read" in found.table
    (spec,) = parse_catalogue(packaged + found.commented_toml, folder=None, name="here").values()
    assert (spec.latent_space, load_spec(spec, "cpu").preset.grid) == ("demo-16x16", (16, 16))


def test_the_command_says_a_fault_in_one_line(tmp_path):
    """No traceback, exit code 1, nothing on standard output, nothing written."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "app.cli",
        "calibrate",
        "sparke-demo",
        "--prompts",
        str(tmp_path / "none"),
    ]
    for more, said in (([], "No such file"), (["--out", str(tmp_path / "a" / "b")], "no folder")):
        ended = subprocess.run([*command, *more], capture_output=True, text=True, timeout=200, check=False)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr
