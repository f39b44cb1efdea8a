"""Trains the demo model and its judge: `python -m sparke_engine.demo.train all --out runs/demo`.

Stages, each of which can run alone and continues where its checkpoint stands: judge, clip, vae, unet. `export` writes
the weights that ship, in half precision and stock diffusers format. Everything is drawn from `--seed`.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from sparke_engine.demo.captions import CaptionTable, caption_table
from sparke_engine.demo.checkpoint import TrainingState
from sparke_engine.demo.evaluate import is_right, judge_pictures
from sparke_engine.demo.export import export_judge, export_pipeline
from sparke_engine.demo.networks import (
    TEXT_WIDTH,
    ImageTower,
    Judge,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
    build_vae,
)
from sparke_engine.demo.scene import ATTRIBUTES
from sparke_engine.demo.training_data import ExampleSource, tokenise

_log = logging.getLogger(__name__)
STEPS = {"judge": 4000, "clip": 3000, "vae": 6000, "unet": 12000}
DROP_CAPTION = 0.1


class Workshop:
    """What the stages share: the caption table, the device, the run's folder, and one loop for all of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out = Path(arguments.out)
        self.device = torch.device(arguments.device)
        self.seed: int = arguments.seed
        self.batch: int = arguments.batch
        self.num_latents: int = arguments.num_latents
        self.budget_s: float = arguments.seconds
        self.extend: str | None = arguments.extend
        self.steps: dict[str, int] = {name: getattr(arguments, f"{name}_steps") for name in STEPS}
        self.table: CaptionTable = caption_table()
        torch.manual_seed(self.seed)
        self.tokenizer = build_tokenizer(self.table)

    def source(self, stage: int) -> ExampleSource:
        """An example source whose seed is the stage's own."""
        return ExampleSource(self.table, device=self.device, seed=1000 * self.seed + stage)

    def train(
        self,
        name: str,
        model: nn.Module,
        loss_of: Callable[[], Tensor],
        *,
        peak_rate: float,
        ema: float = 0.999,
    ) -> None:
        """Runs a stage to its number of steps: AdamW, linear warm-up, linear decay over the last third, EMA."""
        state = TrainingState.create(name, model, rate=peak_rate, ema_decay=ema)
        path = self.out / f"{name}.checkpoint.safetensors"
        state.load_if_there(path)
        total, started_s = self.steps[name], time.monotonic()
        if state.is_finished and name != self.extend:
            total = state.step
        timed_from = state.step + 100
        model.train()
        autocast = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        shown = torch.zeros((), device=self.device)
        while state.step < total:
            state.set_rate(peak_rate * min((state.step + 1) / 200, 1.0, 3.0 * (total - state.step) / total))
            with autocast:
                loss = loss_of()
            state.update(loss)
            shown = loss.detach()
            if self.budget_s and state.step == timed_from:
                shown.item()
                started_s = time.monotonic()
            if self.budget_s and state.step == timed_from + 200:
                shown.item()
                step_s = (time.monotonic() - started_s) / 200
                total = min(total, state.step + int(self.budget_s / step_s))
                _log.info("%s: %.1f ms a step, so %d steps fit", name, 1000 * step_s, total)
            if state.step % 500 == 0 or state.step == total:
                took_s = time.monotonic() - started_s
                _log.info("%s %d/%d loss %.4f, %.0f s", name, state.step, total, shown.item(), took_s)
            if state.step % 4000 == 0:
                state.save(path)
        state.is_finished = True
        state.save(path)
        model.eval()
        state.copy_average_into(model)


def train_judge(shop: Workshop) -> Judge:
    """Classifies every attribute of fresh renders, with a little noise so that it tolerates a decoder's."""
    model, source = Judge().to(shop.device), shop.source(1)

    def loss_of() -> Tensor:
        examples = source.draw_uniform(min(shop.batch, 512))
        noise = 0.03 * torch.rand((), device=shop.device) * torch.randn_like(examples.pictures)
        _, logits = model((examples.pictures + noise).clamp(0.0, 1.0))
        return torch.stack(
            [cross_entropy(logits[name], examples.attributes[:, i]) for i, name in enumerate(ATTRIBUTES)]
        ).sum()

    shop.train("judge", model, loss_of, peak_rate=2e-3)
    export_judge(model, shop.out / "judge")
    return model


@torch.no_grad()
def judge_accuracy(judge: Judge, source: ExampleSource, size: int = 4096) -> dict[str, float]:
    """Accuracy on fresh renders: of each attribute, and of shape, colour and background together."""
    drawn = [source.draw_uniform(512) for _ in range(size // 512)]
    truth = torch.cat([examples.attributes for examples in drawn])
    seen = torch.cat([judge_pictures(judge, examples.pictures).attributes for examples in drawn])
    figures = {name: (seen == truth)[:, i].float().mean().item() for i, name in enumerate(ATTRIBUTES)}
    return figures | {"shape, colour and background": is_right(seen, truth).float().mean().item()}


def train_clip(shop: Workshop) -> Any:
    """Contrasts captions with pictures; the pooled text output is itself the contrastive embedding.

    An auxiliary loss asks the embedding which attributes the caption states: it keeps captions apart that few
    pictures of a batch tell apart.
    """
    text = build_text_encoder(shop.tokenizer).to(shop.device)
    image = ImageTower(TEXT_WIDTH)
    probes = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, 1 + len(v)) for name, v in ATTRIBUTES.items()})
    model = nn.ModuleDict({"text": text, "image": image, "probes": probes}).to(shop.device)
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.3, device=shop.device)))
    tokens, source = tokenise(shop.tokenizer, shop.table, shop.device), shop.source(2)
    stated = shop.table.stated.to(shop.device)

    def loss_of() -> Tensor:
        examples = source.draw(shop.batch)
        pooled = normalize(text(tokens[examples.captions]).pooler_output.float(), dim=1)
        pictured = normalize(image(examples.pictures).float(), dim=1)
        logits = model.get_parameter("scale").exp().clamp(max=30.0) * pooled @ pictured.T
        same = examples.captions[:, None] == examples.captions[None]
        target = same.float() / same.sum(1, keepdim=True)
        contrast = cross_entropy(logits, target) + cross_entropy(logits.T, target)
        known = sum(
            cross_entropy(probes[name](8.0 * pooled), stated[examples.captions, i] + 1)
            for i, name in enumerate(ATTRIBUTES)
        )
        return contrast + 0.5 * known

    shop.train("clip", model, loss_of, peak_rate=6e-4)
    return text


def train_vae(shop: Workshop) -> Any:
    """Reconstruction (absolute and squared), with so little KL that the latents stay sharp."""
    model, source = build_vae().to(shop.device), shop.source(3)

    def loss_of() -> Tensor:
        pictures = 2.0 * source.draw(min(shop.batch, 256)).pictures - 1.0
        posterior = model.encode(pictures).latent_dist
        error = model.decode(posterior.sample()).sample.float() - pictures
        kl: Tensor = posterior.kl().mean()
        return torch.as_tensor(error.abs().mean() + 4.0 * error.square().mean() + 2e-6 * kl)

    shop.train("vae", model, loss_of, peak_rate=1.5e-3)
    with torch.no_grad():
        examples = shop.source(8).draw(512)
        pictures = 2.0 * examples.pictures - 1.0
        latents = model.encode(pictures).latent_dist.mode()
        error = (model.decode(latents).sample.clamp(-1, 1) - pictures).square().mean((1, 2, 3)) / 4
        model.register_to_config(scaling_factor=round(1.0 / latents.std().item(), 4))
    _log.info("vae: %.1f dB, scaling factor %s", (-10 * error.log10()).mean(), model.config.scaling_factor)
    return model


def train_unet(shop: Workshop, text: Any, vae: Any) -> Any:
    """Predicts v on latents that are computed once, under captions that are dropped one time in ten."""
    model = build_unet().to(shop.device)
    latents, captions = _latent_pool(shop, vae)
    with torch.no_grad():
        tokens = tokenise(shop.tokenizer, shop.table, shop.device)
        context = torch.cat([text(part).last_hidden_state.half() for part in torch.split(tokens, 1024)])
    scheduler = build_scheduler()
    signal = scheduler.alphas_cumprod.to(shop.device).sqrt()
    spread = (1.0 - scheduler.alphas_cumprod.to(shop.device)).sqrt()
    generator = torch.Generator(shop.device).manual_seed(1000 * shop.seed + 5)
    denoise = torch.compile(model) if shop.device.type == "cuda" else model

    def draw(high: int) -> Tensor:
        return torch.randint(high, (shop.batch,), generator=generator, device=shop.device)

    def loss_of() -> Tensor:
        chosen, timesteps = draw(len(latents)), draw(len(signal))
        clean = latents[chosen].float()
        noise = torch.randn(clean.shape, generator=generator, device=shop.device)
        dropped = torch.rand(shop.batch, generator=generator, device=shop.device) < DROP_CAPTION
        words = context[torch.where(dropped, 0, captions[chosen])].float()
        alpha, sigma = signal[timesteps, None, None, None], spread[timesteps, None, None, None]
        predicted = denoise(alpha * clean + sigma * noise, timesteps, words, return_dict=False)[0]
        return torch.as_tensor(mse_loss(predicted.float(), alpha * noise - sigma * clean))

    shop.train("unet", model, loss_of, peak_rate=1e-3, ema=0.9995)
    return model


@torch.no_grad()
def _latent_pool(shop: Workshop, vae: Any) -> tuple[Tensor, Tensor]:
    source, latents, captions = shop.source(4), [], []
    for _ in range(max(shop.num_latents // 1024, 1)):
        examples = source.draw(1024)
        mode = vae.encode(2.0 * examples.pictures - 1.0).latent_dist.mode()
        latents.append((mode * vae.config.scaling_factor).half())
        captions.append(examples.captions)
    return torch.cat(latents), torch.cat(captions)


def main(arguments: list[str] | None = None) -> None:
    """Trains every stage that is not done and exports what ships."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["judge", "clip", "vae", "generator", "all"])
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="shorten each stage so that it ends in about this"
    )
    parser.add_argument("--extend", choices=STEPS, help="take a finished stage on to more steps")
    parser.add_argument("--num-latents", type=int, default=1 << 20)
    for name, steps in STEPS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=steps)
    shop = Workshop(parsed := parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_float32_matmul_precision("high")
    if parsed.stage in ("judge", "all"):
        figures = judge_accuracy(train_judge(shop), shop.source(9))
        (shop.out / "judge.json").write_text(json.dumps(figures, indent=1))
        _log.info("judge on 4096 fresh renders: %s", figures)
    if parsed.stage == "clip":
        train_clip(shop)
    if parsed.stage == "vae":
        train_vae(shop)
    if parsed.stage in ("generator", "all"):
        text, vae = train_clip(shop), train_vae(shop)
        unet = train_unet(shop, text, vae)
        export_pipeline(shop.out / "weights", tokenizer=shop.tokenizer, text_encoder=text, vae=vae, unet=unet)


if __name__ == "__main__":
    main()
