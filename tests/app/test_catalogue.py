"""The catalogue of models."""

import pytest

from app.catalogue import load_catalogue, parse_catalogue
from app.domain.lora import LoraSpec
from app.domain.preset import PresetSpec
from app.errors import ConfigurationError

GOOD = """
[[models]]
model_id = "sdxl-1.0"
source = "./weights"
latent_space = "sdxl"
dtype = "float16"
size = { default_width_px = 1024, default_height_px = 1024, min_px = 512, max_px = 2048, multiple_px = 8 }
"""


def test_the_packaged_catalogue_is_the_demo_model():
    """One model of 64×64 pixels that needs no download."""
    catalogue = load_catalogue()
    assert list(catalogue) == ["sparke-demo"]
    spec = catalogue["sparke-demo"]
    assert (spec.source, spec.latent_space, spec.default_steps, spec.default_guidance_scale) == (
        "builtin:demo",
        "demo",
        12,
        9.0,
    )
    assert (spec.size.min_px, spec.size.max_px) == (64, 64)


def test_a_folder_is_relative_to_its_file(tmp_path):
    """The service may be started from anywhere."""
    path = tmp_path / "models.toml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_catalogue(path)["sdxl-1.0"].source == str(tmp_path / "weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[models]]", "[models]"), r"\[\[models\]\]"),
        (("source =", "sauce ="), "sauce"),
        (("max_px = 2048", "max_px = 2048, min_pix = 1"), r"size\.min_pix"),
        (('"sdxl-1.0"', '"two words"'), "model id"),
        (('"sdxl"', '"SD XL"'), "latent space"),
        (('"float16"', '"float8"'), "dtype"),
        (("min_px = 512", "min_px = 4096"), "min_px ≤ max_px"),
        (("default_width_px = 1024", "default_width_px = 1020"), "1020"),
        (('dtype = "float16"', "default_steps = 200"), "default_steps"),
        (('dtype = "float16"', "default_strength = 1.5"), "default_strength"),
        (('dtype = "float16"', "default_guidance_scale = -1.0"), "default_guidance_scale"),
        (("\n[[models]]", "\n[[models"), "not TOML"),
        (("\n[[models]]", "\nother = 1\n[[models]]"), "nothing else"),
    ],
)
def test_a_fault_is_named(change, message):
    """With the file, and the member at fault."""
    with pytest.raises(ConfigurationError, match=f"^here.*{message}"):
        parse_catalogue(GOOD.replace(*change), folder=None, name="here")


def test_two_models_of_one_id_are_refused():
    """Each id names one model."""
    with pytest.raises(ConfigurationError, match="twice"):
        parse_catalogue(GOOD + GOOD, folder=None, name="here")


def test_a_missing_file_is_a_wrong_setting(tmp_path):
    """The message names it."""
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        load_catalogue(tmp_path / "none.toml")


TABLE = """
[models.diversity_preset]
base = "sdxl"
eta = 0.7
prompt_bandwidth = 0.55
"""


def test_a_model_may_have_a_preset_of_its_own():
    """A table below it, or a file with that table; what is absent is the base's; the latent space stays."""
    (spec,) = parse_catalogue(GOOD + TABLE, folder=None, name="here").values()
    assert spec.diversity_preset == PresetSpec(base="sdxl", eta=0.7, prompt_bandwidth=0.55)
    assert spec.diversity_preset.changes == {"eta": 0.7, "prompt_bandwidth": 0.55}
    assert spec.latent_space == "sdxl"


def test_a_preset_may_lie_in_a_file(tmp_path):
    """Relative to the catalogue, as `sparke calibrate` writes it."""
    (tmp_path / "own.toml").write_text("# how it was made" + TABLE, encoding="utf-8")
    path = tmp_path / "models.toml"
    path.write_text(GOOD.replace('dtype = "float16"', 'diversity_preset = "own.toml"'), encoding="utf-8")
    assert load_catalogue(path)["sdxl-1.0"].diversity_preset == PresetSpec(
        "sdxl", eta=0.7, prompt_bandwidth=0.55
    )


@pytest.mark.parametrize(
    ("grid", "space", "member"),
    [("[8, 8]", "sdxl-8x8", (8, 8)), ("[2, 32]", "sdxl-2x32", (2, 32)), ('"whole"', "sdxl-whole", None)],
)
def test_another_grid_is_another_latent_space(grid, space, member):
    """Features of two grids cannot be compared, so their memories never meet, also where lengths agree."""
    one_size = GOOD.replace("min_px = 512, max_px = 2048", "min_px = 1024, max_px = 1024")
    (spec,) = parse_catalogue(f"{one_size}{TABLE}grid = {grid}\n", folder=None, name="here").values()
    assert spec.latent_space == space
    assert spec.diversity_preset.changes["grid"] == member


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("etta = 1.0", "etta"),
        ("kappa = 0", "kappa: .*greater than 0"),
        ("kappa = inf", "kappa: .*finite"),
        ("window = 1.5", "window"),
        ("relax = -0.1", "relax"),
        ("grid = [0, 4]", "grid"),
        ('grid = "hole"', "grid"),
        ('mode = "best"', "mode"),
        ('kappa = "much"', "kappa"),
        ("interval = 2.5", "interval"),
    ],
)
def test_a_fault_of_a_preset_is_named(line, message):
    """With the model and the member, when the catalogue is read: in the API too, which has no engine."""
    with pytest.raises(ConfigurationError, match=f"^here: model sdxl-1.0: .*diversity_preset.*{message}"):
        parse_catalogue(f"{GOOD}{TABLE}{line}\n", folder=None, name="here")


WHOLE = ['diversity_preset = "paper"', 'diversity_preset = { base = "released" }', f'{TABLE}grid = "whole"']


@pytest.mark.parametrize("preset", WHOLE)
def test_without_a_grid_a_model_has_one_size(preset):
    """Images of others would have features that fit nothing in its memories: what is to be done is said before a start."""
    text = f"{GOOD}{preset}\n"
    with pytest.raises(ConfigurationError, match=r"min_px = max_px = 1024.*grid"):
        parse_catalogue(text, folder=None, name="here")
    for limits in ("min_px = 1024, max_px = 1024", "min_px = 1020, max_px = 1031"):
        one = text.replace("min_px = 512, max_px = 2048", limits)
        assert list(parse_catalogue(one, folder=None, name="here")) == ["sdxl-1.0"]


def test_a_grid_that_makes_a_name_too_long_is_a_fault():
    """The name with the grid is a name of a latent space as any other."""
    long = GOOD.replace('latent_space = "sdxl"', f'latent_space = "{"s" * 60}"')
    with pytest.raises(ConfigurationError, match="with its grid"):
        parse_catalogue(f"{long}{TABLE}grid = [16, 16]\n", folder=None, name="here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"[models", "is not TOML"),
        (b"\xff", "is not TOML"),
        (b"[preset]\neta = 1", "expected the table"),
        (b"[models]\nx = 1\n[models.diversity_preset]\neta = 1", "expected the table"),
        (b"[models]\ndiversity_preset = 'demo'", "expected the table"),
        (b"[models.diversity_preset]\neta = -1", "eta"),
    ],
)
def test_a_fault_of_a_presets_file_is_named(tmp_path, content, message):
    """Missing, not TOML, something else, or a value out of its range: the message has the file."""
    if content is not None:
        (tmp_path / "own.toml").write_bytes(content)
    text = GOOD.replace('dtype = "float16"', 'diversity_preset = "own.toml"')
    with pytest.raises(ConfigurationError, match=rf"own\.toml.*{message}"):
        parse_catalogue(text, folder=tmp_path, name="here")


def test_a_preset_that_is_neither_is_refused():
    """A number is no preset."""
    with pytest.raises(ConfigurationError, match="diversity_preset"):
        parse_catalogue(GOOD.replace('dtype = "float16"', "diversity_preset = 3"), folder=None, name="here")


LORA = """
[[models.loras]]
name = "ink"
source = "./loras/ink.safetensors"
default_scale = -0.5
"""
OTHERS = """
[[models.loras]]
name = "oil"
source = "somebody/oil"
weight_name = "v2/oil.safetensors"
revision = "abc"

[[models.loras]]
name = "pastel_2"
source = "/srv/pastel"
"""


def test_a_model_may_have_loras(tmp_path):
    """Paths that begin with a dot are relative to the file; what is absent has its default; by default there are none."""
    path = tmp_path / "models.toml"
    path.write_text(GOOD + LORA + OTHERS, encoding="utf-8")
    ink, oil, pastel = load_catalogue(path)["sdxl-1.0"].loras
    assert ink == LoraSpec("ink", str(tmp_path / "loras/ink.safetensors"), default_scale=-0.5)
    assert oil == LoraSpec("oil", "somebody/oil", "v2/oil.safetensors", "abc", 1.0)
    assert (pastel.file_name, pastel.is_local, oil.is_local) == (
        "pytorch_lora_weights.safetensors",
        True,
        False,
    )
    assert parse_catalogue(GOOD, folder=None, name="here")["sdxl-1.0"].loras == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[models.loras]]", "[models.loras]"), "loras"),
        (("default_scale", "scale"), r"loras\.0\.scale"),
        (('name = "ink"', ""), "loras.0.name"),
        (('"ink"', '"Ink drawing"'), "LoRA's name"),
        (('"ink"', '"../ink"'), "LoRA's name"),
        (('"ink"', '"oil"'), "'oil' is given twice"),
        (("-0.5", "4.5"), "'ink': default_scale is -4 to 4"),
        (("-0.5", "nan"), "default_scale"),
        (('"./loras/ink.safetensors"', '"loras/ink.safetensors"'), "hub id"),
        (('"./loras/ink.safetensors"', '"a/b/c"'), "hub id"),
        (('"./loras/ink.safetensors"', '"https://example.org/ink"'), "hub id"),
        (("default_scale = -0.5", 'weight_name = "x.safetensors"'), "leave weight_name out"),
        (("default_scale = -0.5", 'revision = "main"'), "revision is for the hub"),
        (('"v2/oil.safetensors"', '"oil.bin"'), r"'oil': weight_name is .*\*\.safetensors"),
        (('"v2/oil.safetensors"', '"../oil.safetensors"'), "weight_name"),
        (('"v2/oil.safetensors"', '"/oil.safetensors"'), "weight_name"),
    ],
)
def test_a_fault_of_a_lora_is_named(change, message):
    """With the model, the LoRA or the member, and what to do, when the catalogue is read: in the API too."""
    text = GOOD + (LORA + OTHERS).replace(*change, 1)
    if change[1] == "[models.loras]":
        text = GOOD + LORA.replace(*change)
    with pytest.raises(ConfigurationError, match=f"^here: model sdxl-1.0: .*{message}"):
        parse_catalogue(text, folder=None, name="here")
