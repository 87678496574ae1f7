"""Where other kinds of image are told from ultrasound: the embedding, or the first two stages?

    python -m tests.benchmarks.unlike BUSI LUNGS

BUSI and LUNGS are folders of images. Of 360 images of BUSI drawn by a seed, some make the
statistics, some the threshold, and 72 are judged for false alarms; then photographs, noise, flat
images and text are, and the lungs, which are ultrasound of another organ. Shares are means over a
hundred such splits.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

import uscl_zoo
from uscl_zoo.answers import Statistics
from uscl_zoo.ultrasound.reading import find

SPACES = {"embedding": slice(512, 1024), "first two stages": slice(64, 256)}


def others() -> dict[str, list[Image.Image]]:
    """Images that are no ultrasound."""
    rng = np.random.default_rng(0)
    made: dict[str, list[Image.Image]] = {}
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        grey, part = photograph.convert("L"), photograph.crop((100, 100, 400, 350))
        made[f"{name}.jpg"] = [photograph, grey, part, part.convert("L")]
    blocks = np.kron(rng.integers(0, 256, (28, 28)), np.ones((8, 8), int))
    made["noise"] = [
        Image.fromarray(pixels.astype(np.uint8))
        for pixels in (rng.integers(0, 256, (224, 224)), blocks)
    ]
    made["flat"] = [Image.new("L", (300, 300), grey) for grey in (0, 30, 128, 255)]
    page = Image.new("L", (400, 400), 255)
    for line in range(14):
        place, font = (10, 10 + 27 * line), ImageFont.load_default(20)
        ImageDraw.Draw(page).text(place, "findings, impression, plan", fill=0, font=font)
    made["text"] = [page, Image.eval(page, lambda value: 255 - value)]
    return made


@torch.inference_mode()
def pooled(network: Any, images: list[Image.Image]) -> np.ndarray:
    """Mean activations of stem and stages, (N, 1024)."""
    transform = uscl_zoo.create_transform(network)
    rows = []
    for image in images:
        _, stages = network.forward_intermediates(transform(image)[None])
        rows.append(torch.cat([stage.mean((2, 3)) for stage in stages], dim=1))
    return torch.cat(rows).numpy()


def main(busi: str, lungs: str) -> None:
    """Print the table."""
    network: Any = uscl_zoo.create_model("resnet18_uscl", pretrained=True).eval()
    files = find(busi)
    chosen = np.random.default_rng(0).permutation(len(files))[:360]
    known = pooled(network, [Image.open(files[i]) for i in chosen])
    groups = others() | {"lungs": [Image.open(file) for file in find(lungs)]}
    unknown = {name: pooled(network, images) for name, images in groups.items()}
    print(f"| trained on | validated on | space | false alarms | {' | '.join(unknown)} |")
    print("|" + " --- |" * (4 + len(unknown)))
    for trained, validated in ((216, 72), (30, 10)):
        for space, columns in SPACES.items():
            shares = []
            for seed in range(100):
                order = np.random.default_rng(seed).permutation(len(known))
                some = known[order][:, columns]
                statistics = Statistics.of(some[:trained])
                seen = statistics.distance(some[216 : 216 + validated])
                limit = np.quantile(seen, 0.99, method="higher")
                judged = [some[288:], *(images[:, columns] for images in unknown.values())]
                shares.append([(statistics.distance(images) > limit).mean() for images in judged])
            cells = (f"{share:.2f}" for share in np.mean(shares, axis=0))
            print(f"| {trained} | {validated} | {space} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*(str(Path(argument)) for argument in sys.argv[1:]))
