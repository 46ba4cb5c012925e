"""Images to views, without a network: the high-frequency view and batch augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from advssl import HighFreqView
from harness.augment import Strong, Weak
from harness.data import pixels
from rows.measuring import Bench, Call, Disagreement, Row, installed

# --- the high-frequency view ----------------------------------------------------------------------

_CUTOFF = 0.25  # cycles per pixel: 8 per image at 32


def high_frequency(bench: Bench, which: int) -> Row:
    """Half a spectrum and a mask kept, beside a whole spectrum and beside NumPy, image by image."""
    count, size = bench.sizes.views[which]
    torch.manual_seed(1)
    images = torch.rand(count, 3, size, size, device=bench.device)
    view, stacked = HighFreqView(_CUTOFF, unit="pixel"), images.cpu().numpy()
    whole, single = "complex FFT, mask made per call", "NumPy per image"

    def per_image() -> Tensor:
        made = [_masked(image, np.fft, np.fft.fftfreq(size)) for image in stacked]
        return torch.from_numpy(np.stack(made)).to(bench.device)

    turns = bench.turns(
        {
            "advssl": lambda: view(images),
            whole: lambda: _masked(
                images, torch.fft, torch.fft.fftfreq(size, device=images.device)
            ),
            single: per_image,
        }
    )
    ours, *others = turns.returned.values()
    apart = max((ours - other).abs().max().item() for other in others)
    if apart > 1e-5:
        raise Disagreement(f"the views differ by {apart:.2g}")
    what = f"HighFreqView, {count} × 3 × {size} × {size}"
    claims = [turns.claim(what, "advssl", whole, 0.35), turns.claim(what, "advssl", single, 0.1)]
    return Row(claims, turns.times, checks={"largest difference": apart})


def _masked(images: Any, fft: Any, frequencies: Any) -> Any:
    """By the definition: shift zero frequency to the middle, cut a disc out, shift back."""
    centred = fft.fftshift(frequencies)
    kept = centred[:, None] ** 2 + centred**2 >= _CUTOFF**2
    if fft is np.fft:
        axes = {"axes": (-2, -1)}
        spectrum = fft.fftshift(fft.fft2(images, **axes), **axes) * kept
        return fft.ifft2(fft.ifftshift(spectrum, **axes), **axes).real.astype(images.dtype)
    spectrum = fft.fftshift(fft.fft2(images), dim=(-2, -1)) * kept
    return fft.ifft2(fft.ifftshift(spectrum, dim=(-2, -1))).real


# --- augmentation ---------------------------------------------------------------------------------

_WORKERS = 2
Views = list[Tensor]


def augmentation(bench: Bench) -> Row:
    """Two strong views and a weak one, from stored uint8 images to float32 views on the device."""
    count, size = bench.sizes.augmented, bench.sizes.pixels
    torch.manual_seed(1)
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    strong, weak = Strong(size), Weak(size)

    def ours() -> Views:
        x = pixels(images.to(bench.device))
        return [strong(x), strong(x), weak(x)]

    stock, workers = "kornia's stock pipeline", f"lightly's transform in {_WORKERS} workers"
    turns = bench.turns(
        {
            "advssl's examples": ours,
            stock: kornia(bench, images),
            workers: installed(lambda: lightly(bench, images)),
        }
    )
    for name, views in turns.returned.items():
        if [v.shape for v in views] != [images.shape] * 3:
            raise Disagreement(f"{name} gives {[tuple(v.shape) for v in views]}")
    what = f"augmentation, two strong views and a weak one of {count} × 3 × {size} × {size}"
    claims = [
        turns.claim(what, "advssl's examples", stock, 0.5),
        turns.claim(what, "advssl's examples", workers, 0.2),
    ]
    return Row(claims, turns.times)


def kornia(bench: Bench, images: Tensor) -> Call:
    import kornia.augmentation as K

    size = images.shape[-1]
    strong = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )
    weak = K.AugmentationSequential(
        K.RandomCrop((size, size), padding=size // 8), K.RandomHorizontalFlip()
    )

    def run() -> Views:
        x = pixels(images.to(bench.device))
        return [strong(x), strong(x), weak(x)]

    return run


def lightly(bench: Bench, images: Tensor) -> Call:
    """Workers stay from one epoch of a single batch to the next, and wait in between."""
    loader = DataLoader(
        Pictures(images),
        batch_size=len(images) // _WORKERS,
        num_workers=_WORKERS,
        persistent_workers=True,
    )

    def run() -> Views:
        return [torch.cat(parts).to(bench.device) for parts in zip(*loader, strict=True)]

    return run


class Pictures(Dataset[Views]):
    """Images as files give them, through lightly's SimCLR transform and torchvision's weak one."""

    def __init__(self, images: Tensor) -> None:
        from lightly.transforms import SimCLRTransform
        from PIL import Image
        from torchvision import transforms as T

        size = images.shape[-1]
        self.pictures = [Image.fromarray(x) for x in images.permute(0, 2, 3, 1).numpy().copy()]
        self.strong = SimCLRTransform(
            size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize=None
        )
        self.weak = T.Compose(
            [T.RandomCrop(size, padding=size // 8), T.RandomHorizontalFlip(), T.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Views:
        picture = self.pictures[index]
        return [*self.strong(picture), self.weak(picture)]
