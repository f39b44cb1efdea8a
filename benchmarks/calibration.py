"""Does what a model says of its own images order settings as the judge does? The check behind `sparke calibrate`.

    python benchmarks/calibration.py --prompts 32 --images 16 --device cuda

Settings of the demo model from none to far too strong, the same prompts and seeds in each. The judge says which images are
right; beside it three figures that need no judge: the information on the prompt (`prompt_information`), the error of
decoding latents and encoding them again, and how far the latents' statistics are from those of unguided images.
"""

import argparse
import platform
from dataclasses import replace
from typing import Any

import torch
from demo_arms import IMAGES_A_ROUND, as_pictures, demo_engine
from demo_prompts import Prompts, open_prompts
from scipy.stats import spearmanr
from torch import Tensor

from sparke_engine import MemoryBank
from sparke_engine.demo.evaluate import is_right, judge_pictures
from sparke_engine.demo.export import load_judge
from sparke_engine.diffusion.engine import DenoisingPlan, PipelineEngine, SampleGroup
from sparke_engine.diffusion.forced import KeptRuns, method_of, restoration_errors
from sparke_engine.diffusion.guide import Sparke
from sparke_engine.guidance.calibration import prompt_information

SCALE, STEPS, LEVELS = 9.0, 12, 8
SETTINGS: dict[float, tuple[float, ...]] = {  # window: η
    0.25: (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0),
    0.5: (0.5, 1.0, 2.0, 3.0),
    1.0: (0.3, 0.45, 0.6),
}
PROXIES = ("information", "round trip", "statistics")


def main() -> None:
    """Runs every setting and prints the table and the rank correlations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--images", type=int, default=8, help="of each prompt, in rounds of 4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    prompts = open_prompts(asked.prompts, "tuning")  # what `keep` is by default was read off these
    bench = Bench(demo_engine(asked.device, compiled=False), prompts, asked.images)
    print(
        f"{platform.node()}, {asked.device}; {asked.prompts} prompts of {asked.images} images, {STEPS} steps\n"
    )
    print(
        "| guidance scale | window | eta | right, % | information, nats | kept, % | round trip | statistics |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = [bench.row(SCALE, None), bench.row(1.0, None)]
    rows += [bench.row(SCALE, (window, eta)) for window, etas in SETTINGS.items() for eta in etas]
    pushed = [rows[0], *rows[2:]]
    right = [row["right"] for row in pushed]
    broken = [index for index, share in enumerate(right) if share < max(right)]
    print(
        "\nSpearman's rank correlation with the judge, over all settings of one scale, and over those that break images:\n"
    )
    for name in PROXIES:
        values = [row[name] if name == "information" else -row[name] for row in pushed]
        over_all = spearmanr(values, right).statistic
        over_broken = spearmanr([values[i] for i in broken], [right[i] for i in broken]).statistic
        print(f"- {name}: {over_all:.3f}, {over_broken:.3f}")
    print(
        f"\nArea under the curve, right from wrong among all images by their information: {bench.area():.3f}"
    )


class Bench:
    """One engine, its prompts, and the figures of unguided images that others are held against."""

    def __init__(self, engine: PipelineEngine, prompts: Prompts, images: int) -> None:
        self.engine, self.prompts, self.images = engine, prompts, images
        self.preset, self.judge = engine.preset, load_judge(torch.device("cpu"))
        self.unguided: tuple[Tensor, float] | None = None
        self.images_seen: list[tuple[Tensor, Tensor]] = []

    def row(self, scale: float, setting: tuple[float, float] | None) -> dict[str, float]:
        """Makes the images of one setting and prints its line; the first call is the reference of the others."""
        window, eta = setting or (self.preset.window, self.preset.eta)
        preset = replace(self.preset, window=window, eta=eta, max_push=10.0)
        latents, right = self._make(preset, scale, strength=0.0 if setting is None else 1.0)
        texts = [text for text in self.prompts.texts for _ in range(self.images)]
        plan = DenoisingPlan(64, 64, LEVELS, 1.0)
        errors, errors_without = (
            restoration_errors(self.engine, latents, asked, plan, first_seed=2**31)
            for asked in (texts, [""] * len(texts))
        )
        each = prompt_information(errors, errors_without)
        self.images_seen.append((each, right))
        information = float(each.mean())
        statistics = torch.cat([latents.mean((2, 3)), latents.std((2, 3)), _roughness(latents)], 1)
        if self.unguided is None:
            self.unguided = (statistics, information)
        reference, whole = self.unguided
        apart = ((statistics - reference.mean(0)) / reference.std(0)).square().mean()
        found = {
            "right": float(right.double().mean()),
            "information": information,
            "round trip": self._round_trip(latents),
            "statistics": float(apart),
        }
        place = ("–", "–") if setting is None else (f"{window:g}", f"{eta:g}")
        print(
            f"| {scale:g} | {' | '.join(place)} | {100 * found['right']:.2f} | {information:.4f} "
            f"| {100 * information / whole:.0f} | {found['round trip']:.4f} | {found['statistics']:.2f} |",
            flush=True,
        )
        return found

    def area(self) -> float:
        """How often a right image says more of its prompt than a wrong one, over all settings."""
        information, right = (torch.cat(part) for part in zip(*self.images_seen, strict=True))
        return float((information[right][:, None] > information[~right]).double().mean())

    def _make(self, preset: Any, scale: float, *, strength: float) -> tuple[Tensor, Tensor]:
        """Final latents [n,c,h,w], prompts first, and whether the judge finds each image right [n]."""
        self.engine.preset = preset
        bank, kept_runs, first_seed = MemoryBank(), KeptRuns(Sparke()), self.prompts.first_seed
        embeddings = self.engine.embed_prompts(self.prompts.texts)
        latents, right = [], []
        with method_of(self.engine, kept_runs):
            for start in range(0, self.images, IMAGES_A_ROUND):
                groups = [
                    SampleGroup(
                        text,
                        "",
                        tuple(first_seed + 1000 * index + start + image for image in range(IMAGES_A_ROUND)),
                        strength,
                        bank.neighbours(embeddings[index][None], preset) if len(bank) else None,
                    )
                    for index, text in enumerate(self.prompts.texts)
                ]
                made = self.engine.generate(
                    groups, DenoisingPlan(64, 64, STEPS, scale), lambda _done, _all: None
                )
                samples = [sample for group in made for sample in group]
                bank.append(
                    torch.stack([sample.feature for sample in samples]),
                    embeddings.repeat_interleave(IMAGES_A_ROUND, dim=0),
                )
                seen = judge_pictures(self.judge, as_pictures(samples)).attributes
                stated = self.prompts.stated.repeat_interleave(IMAGES_A_ROUND, dim=0)
                shape = (len(groups), IMAGES_A_ROUND)
                right.append(is_right(seen, stated).reshape(shape))
                latents.append(
                    kept_runs.last_run.latents.cpu().reshape(*shape, *kept_runs.last_run.latents.shape[1:])
                )
        return torch.cat(latents, 1).flatten(0, 1), torch.cat(right, 1).flatten()

    @torch.no_grad()
    def _round_trip(self, latents: Tensor) -> float:
        """‖encode(decode(z)) − z‖² / ‖z‖², the mean."""
        vae, errors = self.engine.pipeline.vae, []
        for part in torch.split(latents, 64):
            z = part.to(vae.device)
            again = vae.encode(vae.decode(z).sample).latent_dist.mode()
            errors.append((again - z).flatten(1).square().sum(1) / z.flatten(1).square().sum(1))
        return float(torch.cat(errors).mean())


def _roughness(latents: Tensor) -> Tensor:
    """Energy of differences between neighbours in the latents' own energy, [n,1]."""
    steps = (latents[..., 1:] - latents[..., :-1]).square().mean((1, 2, 3))
    return (steps / latents.square().mean((1, 2, 3)))[:, None]


if __name__ == "__main__":
    main()
