"""Writes and reads the weights that ship: half precision, safetensors, stock diffusers layout."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from sparke_engine.demo.networks import Judge, build_scheduler, build_text_encoder, build_unet, build_vae

JUDGE_FILE = "judge.safetensors"


def export_judge(judge: Judge, folder: Path) -> None:
    """Writes the judge's weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.detach().half().contiguous().cpu() for k, v in judge.state_dict().items()}, folder / JUDGE_FILE
    )


def load_judge(device: torch.device, folder: Path | None = None) -> Judge:
    """The judge in single precision, in evaluation mode: the one that ships, or the one in `folder`."""
    judge = Judge()
    place = folder if folder is not None else Path(str(files("sparke_engine"))) / "demo" / "judge_weights"
    judge.load_state_dict({k: v.float() for k, v in load_file(place / JUDGE_FILE).items()})
    return judge.to(device).eval()


def export_pipeline(folder: Path, *, tokenizer: Any, text_encoder: Any, vae: Any, unet: Any) -> None:
    """Writes a StableDiffusionPipeline directory in half precision. The models given are left as they are."""
    copies = {"text_encoder": build_text_encoder(tokenizer), "vae": build_vae(), "unet": build_unet()}
    for name, model in {"text_encoder": text_encoder, "vae": vae, "unet": unet}.items():
        copies[name].load_state_dict(model.state_dict())
        copies[name].to(device="cpu", dtype=torch.float16).eval()
    copies["vae"].register_to_config(scaling_factor=vae.config.scaling_factor)
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **copies,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
