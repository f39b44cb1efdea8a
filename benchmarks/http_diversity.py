"""The main claim as a user sees it: eight open prompts over HTTP, with and without diversity, judged.

    make serve &
    python benchmarks/http_diversity.py --images 64

Each strength has a memory of its own, new with every run. The service must run without keys, or name one with --key.
"""

import argparse
import base64
import io
import json
import secrets
import urllib.request

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparke_engine.core.kernels import CosineKernel
from sparke_engine.core.scores import vendi
from sparke_engine.demo.evaluate import is_right, judge_pictures, open_entropy_bits
from sparke_engine.demo.export import load_judge
from sparke_engine.demo.scene import OPEN, SHAPES

IMAGES_A_REQUEST = 4


class Client:
    """Asks one service for pictures."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key

    def pictures(self, prompt: str, seed: int, diversity: dict[str, object]) -> list[Tensor]:
        """Pictures [3,64,64] in [0,1] of one request."""
        body = {"prompt": prompt, "seed": seed, "n": IMAGES_A_REQUEST, "diversity": diversity}
        request = urllib.request.Request(  # noqa: S310 - the URL is the caller's own service
            f"{self._url}/v1/images/generations",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "authorization": f"Bearer {self._key}"},
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            answer = json.load(response)
        pngs = (base64.b64decode(image["b64_json"]) for image in answer["data"])
        arrays = (np.array(Image.open(io.BytesIO(png)), dtype=np.float32) for png in pngs)
        return [torch.from_numpy(array).permute(2, 0, 1) / 255.0 for array in arrays]


def main() -> None:
    """Prints a row a strength."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key", default="none")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.5])
    asked = parser.parse_args()
    client, judge, run = Client(asked.url, asked.key), load_judge(torch.device("cpu")), secrets.token_hex(4)
    print("| strength | accuracy | Vendi | H(colour) | H(background) |\n|---|---|---|---|---|")
    for number, strength in enumerate(asked.strengths):
        rows = []
        for index, shape in enumerate(SHAPES):
            diversity = {"strength": strength, "memory": {"name": f"bench-{run}-{number}"}}
            made: list[Tensor] = []
            for start in range(0, asked.images, IMAGES_A_REQUEST):
                made += client.pictures(f"a {shape}", 1000 * index + start, diversity)
            seen = judge_pictures(judge, torch.stack(made))
            stated = torch.tensor([index, OPEN, OPEN, OPEN]).expand_as(seen.attributes)
            bits = [open_entropy_bits(seen.attributes, stated, column) for column in (1, 2)]
            right = is_right(seen.attributes, stated).float().mean().item()
            rows.append((right, vendi(seen.features, CosineKernel()), *bits))
        right, count, colour, background = np.mean(rows, axis=0)
        print(
            f"| {strength:g} | {100 * right:.2f} % | {count:.2f} | {colour:.2f} | {background:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
