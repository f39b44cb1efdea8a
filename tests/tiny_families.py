"""Tiny randomly initialised pipelines of every family that is guided, in memory, and how each of them is called.

`conftest.py` runs this file, as it runs `tiny_pipelines.py`; `docs/write_pipelines.py` writes the table of `CASES`.
"""

import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch
import transformers as t
from PIL import Image

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_pipelines.py"))))

SIDE_PX = 32
FLOW = "FlowMatchEulerDiscreteScheduler"
OF_NOISE = ("DDIMScheduler", "EulerDiscreteScheduler")
LEARNED = {"variance_type": "learned_range"}


def picture(level: int = 0) -> Image.Image:
    """A picture of stripes, or a grey one."""
    if level:
        return Image.new("L", (SIDE_PX, SIDE_PX), level)
    return Image.linear_gradient("L").resize((SIDE_PX, SIDE_PX)).convert("RGB")


def tiny_encoders() -> dict[str, Any]:
    """Stable Diffusion's text tower and what it leaves out."""
    return {
        "text_encoder": t.CLIPTextModel(tiny.tiny_text_config()),
        "tokenizer": tiny.tiny_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def tiny_sd_like(class_name: str, *, seed: int = 10, **unet: Any) -> Any:
    """A pipeline with the parts of Stable Diffusion."""
    torch.manual_seed(seed)
    parts = {"vae": tiny.tiny_vae(), "unet": tiny.tiny_unet(16, **unet), "scheduler": tiny.tiny_ddim()}
    return getattr(d, class_name)(**parts, **tiny_encoders())


def tiny_sdxl_like(class_name: str) -> Any:
    """A pipeline with the parts of SDXL."""
    return getattr(d, class_name)(**tiny.tiny_sdxl().components)


def tiny_controlnet(cross_attention_dim: int, **more: Any) -> d.ControlNetModel:
    """A ControlNet for the tiny UNet."""
    return d.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 8, 8),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    )


def with_controlnet(base: Any, class_name: str, controlnet: d.ControlNetModel) -> Any:
    """The pipeline's parts beside a ControlNet, whose last layers are made to matter: they begin as zeros."""
    for parameter in controlnet.controlnet_down_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    more = {"requires_safety_checker": False} if "XL" not in class_name else {}
    return getattr(d, class_name)(**base.components, controlnet=controlnet, **more)


def tiny_sd_controlnet() -> Any:
    """Stable Diffusion with a ControlNet."""
    base = tiny.tiny_sd()
    return with_controlnet(base, "StableDiffusionControlNetPipeline", tiny_controlnet(16))


def tiny_sdxl_controlnet() -> Any:
    """SDXL with a ControlNet."""
    base = tiny.tiny_sdxl()
    controlnet = tiny_controlnet(
        32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    return with_controlnet(base, "StableDiffusionXLControlNetPipeline", controlnet)


def tiny_lcm() -> Any:
    """A latent-consistency model: the guidance scale is embedded."""
    pipe = tiny_sd_like("LatentConsistencyModelPipeline", time_cond_proj_dim=8)
    pipe.scheduler = d.LCMScheduler.from_config(pipe.scheduler.config)
    return pipe


def tiny_flux(class_name: str = "FluxPipeline", *, guidance_embeds: bool = True) -> Any:
    """FLUX in miniature."""
    torch.manual_seed(3)
    encoder, tokenizer = tiny.tiny_t5()
    transformer = d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    return getattr(d, class_name)(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny.tiny_vae(shift_factor=0.06),
        text_encoder=t.CLIPTextModel(tiny.tiny_text_config()),
        tokenizer=tiny.tiny_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
    )


def tiny_pixart() -> Any:
    """PixArt-Σ in miniature: its transformer learns the variance too."""
    torch.manual_seed(4)
    encoder, tokenizer = tiny.tiny_t5()
    transformer = d.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    return d.PixArtSigmaPipeline(
        transformer=transformer,
        vae=tiny.tiny_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=tiny.tiny_ddim(),
    )


def tiny_gemma() -> tuple[t.Gemma2Model, Any]:
    """A decoder of one layer, with T5's tokenizer of letters."""
    _, tokenizer = tiny.tiny_t5()
    config = t.Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return t.Gemma2Model(config), tokenizer


def tiny_sana() -> Any:
    """Sana in miniature: a deep-compression autoencoder and a decoder for a text encoder."""
    torch.manual_seed(5)
    encoder, tokenizer = tiny_gemma()
    transformer = d.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=8,
    )
    vae = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    scheduler = d.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return d.SanaPipeline(
        transformer=transformer, vae=vae, text_encoder=encoder, tokenizer=tokenizer, scheduler=scheduler
    )


def tiny_kandinsky_parts() -> dict[str, Any]:
    """Kandinsky 2.2's decoder: conditioned on an image embedding, with a learned variance."""
    torch.manual_seed(6)
    unet = d.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    movq = d.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    scheduler = d.DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False, **LEARNED)
    return {"unet": unet, "movq": movq, "scheduler": scheduler}


def tiny_kandinsky_combined() -> Any:
    """Kandinsky 2.2 with the prior that makes image embeddings from text."""
    parts = tiny_kandinsky_parts()
    vision = t.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=16,
        image_size=32,
        patch_size=16,
    )
    prior = d.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=tiny.CONTEXT,
        additional_embeddings=4,
    )
    torch.nn.init.ones_(prior.clip_std)
    return d.KandinskyV22CombinedPipeline(
        **parts,
        prior_prior=prior,
        prior_image_encoder=t.CLIPVisionModelWithProjection(vision),
        prior_text_encoder=t.CLIPTextModelWithProjection(tiny.tiny_text_config()),
        prior_tokenizer=tiny.tiny_tokenizer(),
        prior_scheduler=d.UnCLIPScheduler(num_train_timesteps=1000, prediction_type="sample"),
        prior_image_processor=t.CLIPImageProcessorPil(size=32, crop_size=32),
    )


def tiny_dit() -> Any:
    """DiT in miniature, with a learned variance."""
    torch.manual_seed(7)
    transformer = d.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    labels = {0: "tench, fish", 1: "goldfish"}
    return d.DiTPipeline(
        transformer=transformer, vae=tiny.tiny_vae(), scheduler=tiny.tiny_ddim(), id2label=labels
    )


def tiny_wan(*, boundary_ratio: float | None = None) -> Any:
    """Wan in miniature; with a boundary, two transformers take one end of the noise each."""
    torch.manual_seed(8)
    encoder, tokenizer = tiny.tiny_t5()

    def transformer() -> Any:
        return d.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        )

    vae = d.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return d.WanPipeline(
        transformer=transformer(),
        transformer_2=None if boundary_ratio is None else transformer(),
        boundary_ratio=boundary_ratio,
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def tiny_cogvideox() -> Any:
    """CogVideoX in miniature."""
    torch.manual_seed(9)
    encoder, tokenizer = tiny.tiny_t5()
    transformer = d.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=tiny.CONTEXT,
    )
    vae = d.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    scheduler = d.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return d.CogVideoXPipeline(
        transformer=transformer, vae=vae, text_encoder=encoder, tokenizer=tokenizer, scheduler=scheduler
    )


def tiny_animatediff() -> Any:
    """AnimateDiff in miniature."""
    base = tiny.tiny_sd()
    adapter = d.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )
    parts = {
        name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    }
    return d.AnimateDiffPipeline(**parts, motion_adapter=adapter)


def save_served(folder: Path) -> dict[str, Path]:
    """Directories of the families that an engine makes images of text with."""
    makers = {
        "sd": tiny.tiny_sd,
        "sdxl": tiny.tiny_sdxl,
        "sd3": tiny.tiny_sd3,
        "flux": tiny_flux,
        "pixart": tiny_pixart,
        "sana": tiny_sana,
    }
    return tiny.save_all(makers, folder)


@dataclass(frozen=True)
class PipelineCase:
    """A pipeline class, how it is made and called, and on which schedulers it is run.

    `scale_name` is the argument of classifier-free guidance, None where there is none; `extra` are arguments that every
    call has; `prompt` is what the embedding is made of, `prompt_name` the argument that it is given as.
    """

    name: str
    make: Callable[[], Any]
    schedulers: tuple[str, ...]
    variant: str = ""
    scale_name: str | None = "guidance_scale"
    scale: float = 5.0
    negative: bool = True
    prompt: Any = "a cat"
    prompt_name: str = "prompt"
    sized: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The class and the variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def load(self, scheduler: str | None = None) -> Any:
        """A fresh pipeline with a scheduler of that class, whose last step leaves no noise."""
        pipe = self.make()
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        wanted = getattr(d, scheduler or self.schedulers[0])
        ends = {"set_alpha_to_one": True} if wanted is d.DDIMScheduler else {}
        pipe.scheduler = wanted.from_config(pipe.scheduler.config, **ends)
        if hasattr(pipe, "decoder_pipe"):
            pipe.decoder_pipe.scheduler = pipe.scheduler
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(
        self, seeds: Sequence[int], *, scale: float | None = None, steps: int = 4
    ) -> dict[str, Any]:
        """The arguments of a call for these seeds."""
        prompts = [self.prompt] * len(seeds)
        arguments = {
            self.prompt_name: torch.stack(prompts) if isinstance(self.prompt, torch.Tensor) else prompts,
            "num_inference_steps": steps,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            **self.extra,
        }
        if "image" in self.extra:
            arguments["image"] = [self.extra["image"]] * len(seeds)
        if self.sized:
            arguments |= {"height": SIDE_PX, "width": SIDE_PX}
        if isinstance(self.prompt, torch.Tensor):
            arguments["negative_image_embeds"] = torch.zeros_like(arguments[self.prompt_name])
        if self.scale_name is not None:
            arguments[self.scale_name] = self.scale if scale is None else scale
        return arguments


PICTURE = {"image": picture()}
MASKED = {**PICTURE, "mask_image": picture(255), "strength": 0.9}
VIDEO = {"num_frames": 9, "output_type": "pt"}
EMBEDDING = torch.randn(16, generator=torch.Generator().manual_seed(0))

CASES: tuple[PipelineCase, ...] = (
    PipelineCase("StableDiffusionPipeline", tiny.tiny_sd, OF_NOISE),
    PipelineCase(
        "StableDiffusionPipeline",
        lambda: tiny_sd_like("StableDiffusionPipeline"),
        ("LCMScheduler", "EulerDiscreteScheduler"),
        "few steps, no guidance",
        scale_name=None,
        negative=False,
        extra={"guidance_scale": 0.0},
    ),
    PipelineCase(
        "StableDiffusionImg2ImgPipeline",
        lambda: tiny_sd_like("StableDiffusionImg2ImgPipeline"),
        OF_NOISE,
        extra={**PICTURE, "strength": 0.7},
        sized=False,
    ),
    PipelineCase(
        "StableDiffusionInpaintPipeline",
        lambda: tiny_sd_like("StableDiffusionInpaintPipeline"),
        OF_NOISE,
        extra=MASKED,
    ),
    PipelineCase(
        "StableDiffusionInpaintPipeline",
        lambda: tiny_sd_like("StableDiffusionInpaintPipeline", in_channels=9),
        OF_NOISE,
        "UNet of 9 channels",
        extra=MASKED,
    ),
    PipelineCase("StableDiffusionControlNetPipeline", tiny_sd_controlnet, OF_NOISE, extra=PICTURE),
    PipelineCase(
        "LatentConsistencyModelPipeline",
        tiny_lcm,
        ("LCMScheduler",),
        scale_name=None,
        negative=False,
        extra={"guidance_scale": 8.5},
    ),
    PipelineCase("StableDiffusionXLPipeline", tiny.tiny_sdxl, OF_NOISE),
    PipelineCase(
        "StableDiffusionXLPipeline",
        tiny.tiny_sdxl,
        ("EulerAncestralDiscreteScheduler", "LCMScheduler"),
        "few steps, no guidance",
        scale_name=None,
        negative=False,
        extra={"guidance_scale": 0.0},
    ),
    PipelineCase(
        "StableDiffusionXLImg2ImgPipeline",
        lambda: tiny_sdxl_like("StableDiffusionXLImg2ImgPipeline"),
        OF_NOISE,
        extra={**PICTURE, "strength": 0.7},
        sized=False,
    ),
    PipelineCase(
        "StableDiffusionXLInpaintPipeline",
        lambda: tiny_sdxl_like("StableDiffusionXLInpaintPipeline"),
        OF_NOISE,
        extra=MASKED,
    ),
    PipelineCase("StableDiffusionXLControlNetPipeline", tiny_sdxl_controlnet, OF_NOISE, extra=PICTURE),
    PipelineCase("StableDiffusion3Pipeline", tiny.tiny_sd3, (FLOW,)),
    PipelineCase(
        "StableDiffusion3Img2ImgPipeline",
        lambda: d.StableDiffusion3Img2ImgPipeline(**tiny.tiny_sd3().components),
        (FLOW,),
        extra={**PICTURE, "strength": 0.7},
    ),
    PipelineCase(
        "StableDiffusion3InpaintPipeline",
        lambda: d.StableDiffusion3InpaintPipeline(**tiny.tiny_sd3(channels=16).components),
        (FLOW,),
        extra=MASKED,
    ),
    PipelineCase(
        "FluxPipeline", tiny_flux, (FLOW,), scale_name=None, negative=False, extra={"max_sequence_length": 16}
    ),
    PipelineCase(
        "FluxPipeline",
        tiny_flux,
        (FLOW,),
        "true guidance",
        scale_name="true_cfg_scale",
        extra={"negative_prompt": "", "max_sequence_length": 16},
    ),
    PipelineCase(
        "FluxImg2ImgPipeline",
        lambda: tiny_flux("FluxImg2ImgPipeline"),
        (FLOW,),
        scale_name=None,
        negative=False,
        extra={**PICTURE, "strength": 0.7, "max_sequence_length": 16},
    ),
    PipelineCase(
        "FluxInpaintPipeline",
        lambda: tiny_flux("FluxInpaintPipeline"),
        (FLOW,),
        scale_name=None,
        negative=False,
        extra={**MASKED, "max_sequence_length": 16},
    ),
    PipelineCase(
        "PixArtSigmaPipeline",
        tiny_pixart,
        ("DPMSolverMultistepScheduler", *OF_NOISE),
        extra={"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16},
    ),
    PipelineCase(
        "SanaPipeline",
        tiny_sana,
        ("DPMSolverMultistepScheduler", FLOW),
        extra={
            "use_resolution_binning": False,
            "clean_caption": False,
            "complex_human_instruction": None,
            "max_sequence_length": 16,
        },
    ),
    PipelineCase(
        "KandinskyV22Pipeline",
        lambda: d.KandinskyV22Pipeline(**tiny_kandinsky_parts()),
        ("DDPMScheduler",),
        negative=False,
        prompt=EMBEDDING,
        prompt_name="image_embeds",
    ),
    PipelineCase("KandinskyV22CombinedPipeline", tiny_kandinsky_combined, ("DDPMScheduler",), negative=False),
    PipelineCase(
        "DiTPipeline",
        tiny_dit,
        ("DDIMScheduler", "DDPMScheduler"),
        negative=False,
        prompt=1,
        prompt_name="class_labels",
        sized=False,
    ),
    PipelineCase(
        "WanPipeline", tiny_wan, (FLOW, "UniPCMultistepScheduler"), extra=VIDEO | {"max_sequence_length": 16}
    ),
    PipelineCase(
        "WanPipeline",
        lambda: tiny_wan(boundary_ratio=0.95),
        (FLOW,),
        "two transformers",
        extra=VIDEO | {"max_sequence_length": 16},
    ),
    PipelineCase(
        "CogVideoXPipeline",
        tiny_cogvideox,
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
        extra=VIDEO | {"max_sequence_length": tiny.CONTEXT},
    ),
    PipelineCase(
        "AnimateDiffPipeline", tiny_animatediff, ("DDIMScheduler",), extra=VIDEO | {"num_frames": 4}
    ),
)
