"""What two strong views and a weak one cost: the papers' harness, kornia, and lightly per image.

    python benchmarks/augmentation.py --out benchmarks/results/augmentation.json

From a batch of stored uint8 images to three batches of float32 views. The pipelines take turns, so
that whatever else the machine does strikes all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import kornia.augmentation as K
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from advssl.evaluation.records import commit, machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "papers"))

from harness.augment import Strong, Weak  # noqa: E402
from harness.data import pixels  # noqa: E402

Views = list[Tensor]


def pipelines(size: int, device: torch.device) -> dict[str, Callable[[Tensor], Views]]:
    """AdvCL's views, made by each; every one takes uint8 images on the CPU."""
    strong, weak = Strong(size), Weak(size)
    kornia_strong = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )
    kornia_weak = K.AugmentationSequential(
        K.RandomCrop((size, size), padding=size // 8), K.RandomHorizontalFlip()
    )
    strong_pair = SimCLRTransform(
        size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize=None
    )
    torchvision_weak = T.Compose(
        [T.RandomCrop(size, padding=size // 8), T.RandomHorizontalFlip(), T.ToTensor()]
    )

    def ours(images: Tensor) -> Views:
        x = pixels(images.to(device))
        return [strong(x), strong(x), weak(x)]

    def kornia(images: Tensor) -> Views:
        x = pixels(images.to(device))
        return [kornia_strong(x), kornia_strong(x), kornia_weak(x)]

    def lightly(images: Tensor) -> Views:
        pictures = [Image.fromarray(x) for x in images.permute(0, 2, 3, 1).contiguous().numpy()]
        views = [[*strong_pair(p), torchvision_weak(p)] for p in pictures]
        return [torch.stack(view).to(device) for view in zip(*views, strict=True)]

    return {"harness": ours, "kornia": kornia, "lightly": lightly}


def measure(batch: int, size: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each batch by each pipeline, which take turns."""
    torch.manual_seed(0)
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    made = pipelines(size, device)
    spent: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, make in made.items():
            begun = time.perf_counter()
            views = make(images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
            assert [v.shape for v in views] == [images.shape] * 3
            if turn:  # the first warms up
                spent[name].append(round(1000 * seconds, 3))
    return spent


def table(spent: dict[str, list[float]]) -> str:
    """In Markdown: median, quartiles, and the ratio to kornia's median."""
    lines = ["| views by | ms per batch | quartiles | of kornia's |", "|---|---|---|---|"]
    for name, times in spent.items():
        low, _, high = quantiles(times, n=4, method="inclusive")
        share = median(times) / median(spent["kornia"])
        lines.append(f"| {name} | {median(times):.1f} | {low:.1f} to {high:.1f} | {share:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the record here too")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    spent = measure(chosen.batch, chosen.size, chosen.rounds, torch.device(chosen.device))
    print(table(spent))
    if chosen.out:
        settings = {key: value for key, value in vars(chosen).items() if key != "out"}
        record = {
            "name": "augmentation",
            "settings": settings,
            "milliseconds": spent,
            "commit": commit(),
            "machine": machine(),
        }
        chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
