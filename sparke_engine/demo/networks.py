"""The networks of the demo model and of its judge: configurations of stock classes, and two small ones of our own."""

import json
from itertools import pairwise
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sparke_engine.demo.captions import CaptionTable
from sparke_engine.demo.scene import ATTRIBUTES

TEXT_WIDTH: Final = 192
MAX_TOKENS: Final = 48
LATENT_CHANNELS: Final = 4
JUDGE_FEATURES: Final = 128


def build_tokenizer(table: CaptionTable) -> Any:
    """A CLIPTokenizer whose merges are learned from the captions; every byte has a token, so any text encodes."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = Lowercase()
    learner.pre_tokenizer = Sequence([Whitespace(), ByteLevel(add_prefix_space=False)])
    trainer = BpeTrainer(vocab_size=1200, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(table.texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: Any) -> Any:
    """The text tower of the CLIP: three layers of width 192."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_vae() -> Any:
    """AutoencoderKL from 3×64×64 to 4×16×16."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def build_unet() -> Any:
    """UNet2DConditionModel on 4×16×16 latents; attention at 8×8 only, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 128),
        layers_per_block=2,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_scheduler() -> Any:
    """The noise schedule that the UNet is trained with, as the scheduler that samples by default."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
    )


class ImageTower(nn.Module):
    """Pictures [b,3,64,64] in [0,1] to features [b,width]: strided convolutions, then a mean over what is left.

    It serves as the image tower of the CLIP (which does not ship) and as the trunk of the judge.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = [3, 32, 64, 96, 128]
        for source, target in pairwise(channels):
            layers += [nn.Conv2d(source, target, 3, stride=2, padding=1), nn.GroupNorm(8, target), nn.SiLU()]
            layers += [nn.Conv2d(target, target, 3, padding=1), nn.GroupNorm(8, target), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(128 * 16, width)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [b,width] of pictures [b,3,64,64]."""
        return torch.as_tensor(self.head(self.trunk(2.0 * pictures - 1.0).flatten(1)))


class Judge(nn.Module):
    """The attribute classifier that evaluates the demo model: features [b,128], and logits of each attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = ImageTower(JUDGE_FEATURES)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(JUDGE_FEATURES, len(v)) for name, v in ATTRIBUTES.items()}
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features [b,128] and logits {attribute: [b,values]} of pictures [b,3,64,64] in [0,1].

        The features are the last layer's input before its rectifier: an embedding whose directions go both ways, so
        that a cosine between unlike pictures can be small.
        """
        features = self.tower(pictures)
        rectified = torch.relu(features)
        return features, {name: head(rectified) for name, head in self.heads.items()}
