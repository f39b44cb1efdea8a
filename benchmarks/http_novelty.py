"""Novelty and context as a user sees them: pictures are uploaded as a reference, and its weight goes from 0 to 1.

    SPARKE_MODELS_FILE=benchmarks/demo_fine.toml make serve &
    python benchmarks/http_novelty.py --images 96 --model sparke-demo-fine --picture novelty.png

The reference is 32 pictures each of stars and hearts that the renderer draws, in all colours and on all backgrounds alike,
sent to `/v1/references`. Prompts state
no shape: a third nothing, a third a colour, a third a background. Every row has the same prompts and seeds, strength 0 and
a memory that is neither read nor written, so that what differs is the reference's. The share of stars and hearts is among
all images; an image is right where what its prompt states is there. Intervals are Wilson's, 95 %; what the reference
changes is the difference from the row without one, in pairs, by bootstrap over prompts. The service must run without keys, or name one with --key.
"""

import argparse
import base64
import io
import json
import platform
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import torch
from figures import Interval, difference
from novelty import IMAGES_A_REQUEST, REFERENCE_SHAPES, open_shape_prompts, share
from PIL import Image
from torch import Tensor

from sparke_engine.demo.evaluate import is_right, judge_pictures, sheet
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.render import render
from sparke_engine.demo.scene import BACKGROUNDS, COLOURS, TEXTURES, sample_scenes

PICTURES_A_SHAPE: Final = 32
PICTURES_SENT_AT_ONCE: Final = 16
WEIGHTS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
PICTURES_A_ROW: Final = 16
ASKED_AT_ONCE: Final = 8
HEAD: Final = (
    "| member | weight | stars and hearts | changed by, points | right | push |\n|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Made:
    """What the service made of all prompts under one weight: pictures [n,3,64,64] in [0,1], and the push of each."""

    pictures: Tensor
    pushes: Tensor


@dataclass(frozen=True)
class Row:
    """The figures of one weight; a share is (value, low, high)."""

    member: str
    weight: float
    shapes: tuple[float, float, float]
    change: Interval
    right: tuple[float, float, float]
    push: float

    @property
    def line(self) -> str:
        """The row in Markdown."""
        shapes, right = (
            f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            for value, low, high in (self.shapes, self.right)
        )
        change = self.change.text("+.1f", factor=100)
        return f"| {self.member} | {self.weight:g} | {shapes} | {change} | {right} | {self.push:.3f} |"


class Client:
    """Asks one service."""

    def __init__(self, url: str, key: str, model: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=600)
        self._model = model

    def upload(self, name: str, pictures: Tensor) -> int:
        """Fills a reference with pictures [n,3,64,64]; how many entries it then has."""
        num_entries = 0
        for part in torch.split(pictures, PICTURES_SENT_AT_ONCE):
            files = [("image[]", (f"{index}.png", _png(picture))) for index, picture in enumerate(part)]
            fields = {"name": name, "model": self._model}
            answer = self._http.post("/v1/references", data=fields, files=files).raise_for_status().json()
            num_entries = answer["num_entries"]
        return num_entries

    def make(self, texts: list[str], reference: dict[str, Any]) -> Made:
        """One request of every text."""
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            numbered = list(enumerate(texts))
            answers = list(pool.map(lambda one: self._ask(one[1], 1000 * one[0], reference), numbered))
        images = [image for answer in answers for image in answer["data"]]
        pngs = (io.BytesIO(base64.b64decode(image["b64_json"])) for image in images)
        arrays = [np.array(Image.open(png), dtype=np.float32) for png in pngs]
        pushes = torch.tensor([image["diversity"]["push"] for image in images])
        return Made(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255.0, pushes)

    def _ask(self, prompt: str, seed: int, reference: dict[str, Any]) -> Any:
        alone = {"strength": 0, "memory": {"read": False, "write": False}}
        body = {"prompt": prompt, "seed": seed, "n": IMAGES_A_REQUEST, "model": self._model}
        asked = body | {"diversity": alone | reference}
        return self._http.post("/v1/images/generations", json=asked).raise_for_status().json()


def reference_pictures() -> Tensor:
    """The same pictures of stars and hearts in every run, which have nothing in common but their shapes."""
    generator = torch.Generator().manual_seed(7)
    highs = (len(COLOURS), len(BACKGROUNDS), len(TEXTURES))
    rows = [
        torch.tensor([shape, *(int(torch.randint(high, (), generator=generator)) for high in highs)])
        for shape in REFERENCE_SHAPES
        for _ in range(PICTURES_A_SHAPE)
    ]
    return render(sample_scenes(torch.stack(rows), generator))


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    levels = (255 * picture).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()


def _shapes_of(seen: Tensor) -> Tensor:
    return torch.isin(seen[:, 0], torch.tensor(REFERENCE_SHAPES))


def _a_prompt(hits: Tensor) -> Tensor:
    return hits.reshape(-1, IMAGES_A_REQUEST).double().mean(1)


def main() -> None:
    """Prints a row a weight, and writes table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="sparke-demo-fine")
    parser.add_argument("--images", type=int, default=96, help="a row")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--picture", type=Path, help="where the picture goes")
    asked = parser.parse_args()
    client, judge = Client(asked.url, asked.key, asked.model), load_judge(torch.device("cpu"))
    name = f"stars-and-hearts-{secrets.token_hex(3)}"
    num_entries = client.upload(name, reference_pictures())
    texts, stated = open_shape_prompts(asked.images // IMAGES_A_REQUEST, both=False)
    stated = stated.repeat_interleave(IMAGES_A_REQUEST, dim=0)
    print(
        f"{platform.node()}; {asked.model}, {len(stated)} images a row, {num_entries} pictures sent\n\n{HEAD}"
    )
    rows: list[Row] = []
    shown: list[Tensor] = []
    without = None
    for member, weight in _settings():
        made = client.make(texts, {member: {"reference": name, "weight": weight}})
        seen = judge_pictures(judge, made.pictures).attributes
        hits = _shapes_of(seen)
        without = hits if without is None else without
        change = difference(_a_prompt(hits), _a_prompt(without))
        right = share(is_right(seen, stated))
        rows.append(Row(member, weight, share(hits), change, right, float(made.pushes.mean())))
        print(rows[-1].line, flush=True)
        shown.append(made.pictures[:: max(1, len(stated) // PICTURES_A_ROW)][:PICTURES_A_ROW])
    if asked.out is not None:
        asked.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if asked.picture is not None:
        Image.fromarray(sheet(torch.cat(shown), PICTURES_A_ROW).numpy()).save(asked.picture)


def _settings() -> list[tuple[str, float]]:
    """None first; then each member with its weights, the largest novelty and the largest context farthest apart."""
    novelty, context = ([(member, weight) for weight in WEIGHTS] for member in ("novelty", "context"))
    return [*novelty, *context[1:]]


if __name__ == "__main__":
    main()
