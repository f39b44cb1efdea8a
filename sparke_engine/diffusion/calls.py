"""How an engine calls a pipeline that makes images of text: what differs between families, and what a plan may ask."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from sparke_engine.errors import InvalidPlan


@runtime_checkable
class Plan(Protocol):
    """What all images of a device batch share."""

    @property
    def width_px(self) -> int:
        """Width."""

    @property
    def height_px(self) -> int:
        """Height."""

    @property
    def steps(self) -> int:
        """Inference steps."""

    @property
    def guidance_scale(self) -> float:
        """The scale of classifier-free guidance, or the one that the model has embedded."""


@dataclass(frozen=True)
class CalledWithText:
    """One family's call.

    Attributes:
        multiple_px: what the pipeline itself demands of an image's sides.
        has_negative_prompt: whether negative prompts can be given; a distilled model has none to extrapolate from.
        patch: latents on a side that the transformer takes at once, where its configuration does not say.
        is_packed: the transformer's channels are those of a patch.
        binned_sides: for models of these sides, in latents, the pipeline makes the nearest of certain sizes and resizes.
    """

    multiple_px: int = 8
    has_negative_prompt: bool = True
    patch: int | None = None
    is_packed: bool = False
    binned_sides: frozenset[int] = frozenset()

    def latent_shape(self, pipe: Any) -> tuple[int, int, int]:
        """The canonical latents (c, h, w) of an image of the model's own size."""
        config = _denoiser(pipe).config
        side = int(getattr(config, "sample_size", None) or pipe.default_sample_size)
        channels = config.in_channels // (self._patch_of(pipe) ** 2 if self.is_packed else 1)
        return channels, side, side

    def check(self, pipe: Any, plan: Plan) -> None:
        """Raise InvalidPlan for what the pipeline cannot do."""
        multiple_px = math.lcm(self.multiple_px, pipe.vae_scale_factor * self._patch_of(pipe))
        for side_px in (plan.width_px, plan.height_px):
            if side_px < multiple_px or side_px % multiple_px != 0:
                raise InvalidPlan(
                    f"an image's sides are positive multiples of {multiple_px} px, got {side_px}"
                )
        most = pipe.scheduler.config.num_train_timesteps
        if not 1 <= plan.steps <= most:
            raise InvalidPlan(f"this model takes 1 to {most} steps, got {plan.steps}")
        if not (math.isfinite(plan.guidance_scale) and plan.guidance_scale >= 0):
            raise InvalidPlan(f"a guidance scale is finite and not negative, got {plan.guidance_scale}")

    def arguments(
        self, pipe: Any, prompts: Sequence[str], negatives: Sequence[str], plan: Plan
    ) -> dict[str, Any]:
        """All arguments but the generators. An empty negative prompt means none."""
        given = {
            "width": plan.width_px,
            "height": plan.height_px,
            "num_inference_steps": plan.steps,
            "guidance_scale": plan.guidance_scale,
            "output_type": "pil",
        }
        if self.binned_sides and pipe.transformer.config.sample_size not in self.binned_sides:
            given["use_resolution_binning"] = False
        if any(negatives) and not self.has_negative_prompt:
            raise InvalidPlan(
                "this model takes no negative prompt, since its guidance is distilled: leave it out"
            )
        if plan.guidance_scale <= 1 or not any(negatives):
            return given | {"prompt": list(prompts)}
        return given | _with_negatives(pipe, list(prompts), list(negatives))

    def _patch_of(self, pipe: Any) -> int:
        return self.patch or int(getattr(_denoiser(pipe).config, "patch_size", None) or 1)


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def _with_negatives(pipe: Any, prompts: list[str], negatives: list[str]) -> dict[str, Any]:
    """Prompts and negative prompts, such that no image's conditioning depends on another group's negative prompt.

    SDXL conditions on zeros where it has none, but only if the whole batch has none; in a mixed batch those rows are set
    to zeros here.
    """
    if all(negatives) or not pipe.config.get("force_zeros_for_empty_prompt", False):
        return {"prompt": prompts, "negative_prompt": negatives}
    with torch.no_grad():
        encoded, negative, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompts, negative_prompt=negatives, do_classifier_free_guidance=True
        )
    is_given = torch.tensor([bool(text) for text in negatives], device=negative.device)
    return {
        "prompt_embeds": encoded,
        "negative_prompt_embeds": torch.where(is_given[:, None, None], negative, 0.0),
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": torch.where(is_given[:, None], negative_pooled, 0.0),
    }
