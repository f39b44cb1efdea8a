"""Small random LoRAs for pipelines in a folder, as diffusers' own save function writes them; `conftest.py` runs this file."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

OF_TEXT = ["q_proj", "v_proj", "out_proj"]
OF_IMAGES = ["to_q", "to_v", "to_out.0"]


def save_lora(model: Path, path: Path, *, seed: int, rank: int = 2, parts: tuple[str, ...] = ()) -> Path:
    """A LoRA of the model's denoiser and text encoders, or of those `parts`; its weights are as large as the model's."""
    pipe: Any = DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    torch.manual_seed(seed)
    layers = {}
    for part in parts or type(pipe)._lora_loadable_modules:
        targets = OF_TEXT if part.startswith("text") else OF_IMAGES
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
        getattr(pipe, part).add_adapter(config)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(getattr(pipe, part))
    type(pipe).save_lora_weights(path.parent, weight_name=path.name, **layers)
    return path
