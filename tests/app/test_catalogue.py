"""The catalogue of models."""

import pytest

from app.catalogue import load_catalogue, parse_catalogue
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
