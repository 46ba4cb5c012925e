"""Pictures: what the papers draw of an encoder, on a page: data, words and a table."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from advssl.evaluation.embeddings import Plane
from advssl.evaluation.fisher import Fisher
from advssl.evaluation.inversion import Inversions
from advssl.evaluation.report.content import Table
from advssl.evaluation.surfaces import Surface

_SIDE = 64  # of an inversion map in a record, in pixels at most


@dataclass(frozen=True)
class Maps:
    """Feature inversion maps as a record has them: 8 bits a pixel, at most 64 pixels high.

    Attributes:
        neurons: places in a feature vector.
        before: by neuron and start, what the neuron answers to the start.
        after: likewise, to the map.
        shape: (C, H, W) of an image.
        pixels: bytes in base64, of the starts and then of each neuron's maps.
    """

    neurons: tuple[int, ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    shape: tuple[int, int, int]
    pixels: str

    def __post_init__(self) -> None:
        held = len(base64.b64decode(self.pixels, validate=True))
        count = (1 + len(self.neurons)) * len(next(iter(self.before), ()))
        size = self.shape[0] * self.shape[1] * self.shape[2]
        if not held or held != count * size:
            raise ValueError(
                f"inversion maps of {len(self.neurons)} neurons must be {count} images of "
                f"{self.shape}, {count * size} bytes, got {held}"
            )

    @classmethod
    def of(cls, found: Inversions) -> Maps:
        """As they were found."""
        images = torch.cat([found.starts, found.maps.flatten(0, 1)])
        height, width = images.shape[-2:]
        if max(height, width) > _SIDE:
            scale = _SIDE / max(height, width)
            size = max(1, round(scale * height)), max(1, round(scale * width))
            images = F.interpolate(images, size, mode="area")
        levels = (255 * images).round().to(torch.uint8)
        _, channels, height, width = levels.shape
        text = base64.b64encode(levels.contiguous().numpy().tobytes()).decode()
        return cls(found.neurons, found.before, found.after, (channels, height, width), text)

    @cached_property
    def inversions(self) -> Inversions:
        """To be drawn."""
        levels = torch.frombuffer(bytearray(base64.b64decode(self.pixels)), dtype=torch.uint8)
        images: Tensor = levels.view(1 + len(self.neurons), -1, *self.shape).float() / 255
        return Inversions(images[0], images[1:], self.neurons, self.before, self.after)


@dataclass(frozen=True)
class Pictures:
    """What the papers draw of an encoder.

    Attributes:
        classes: their names, in the order of the labels.
        plane: features by t-SNE.
        maps: feature inversion maps, from two images and from noise.
        around_images: the loss there.
        around_weights: the loss under attack there.
        fisher: Fisher information of the pixels.
    """

    classes: tuple[str, ...]
    plane: Plane
    maps: Maps
    around_images: Surface
    around_weights: Surface
    fisher: Fisher


NUMBERS: Mapping[str, Callable[[Pictures], float]] = {
    "images beside one of their class (%)": lambda p: 100 * p.plane.at_home,
    "attacked images, likewise (%)": lambda p: 100 * p.plane.attacked_at_home,
    "inversion maps, correlation": lambda p: p.maps.inversions.alike,
    "what they start from, likewise": lambda p: p.maps.inversions.alike_before,
    "loss on images": lambda p: p.around_images.centre,
    "its rise within the radius": lambda p: p.around_images.rise,
    "loss on attacked images": lambda p: p.around_weights.centre,
    "its rise around the weights": lambda p: p.around_weights.rise,
    "Fisher information, median trace": lambda p: p.fisher.median,
}


def words(found: Pictures) -> str:
    """What is said of them in a sentence."""
    shares = 100 * found.plane.at_home, 100 * found.plane.attacked_at_home
    alike = found.maps.inversions.alike, found.maps.inversions.alike_before
    return (
        f"by t-SNE {shares[0]:.0f} % of images lie beside one of their class, of attacked ones "
        f"{shares[1]:.0f} %; a neuron's inversion maps correlate by {alike[0]:.2f}, their starts "
        f"by {alike[1]:.2f}; the loss rises by {found.around_images.rise:.3g} around images and by "
        f"{found.around_weights.rise:.3g} around weights; half of the images have more Fisher "
        f"information than {found.fisher.median:.3g}."
    )


def table(found: Mapping[str, Pictures]) -> Table:
    """A row for each number, a column for each section."""
    return Table(
        "What the pictures show",
        ("number", *found),
        tuple(
            (name, *(f"{of(one):.3g}" for one in found.values())) for name, of in NUMBERS.items()
        ),
        "Beside: the nearest other clean image in the t-SNE plane. Correlation: of a neuron's "
        "inversion maps from two images and from noise; the papers' claim is that a robust "
        "encoder's are alike. Rises: to the highest point that is drawn; weights move by up to "
        "half the length of each filter, and are attacked anew at every point. Fisher "
        "information: in nats per squared pixel of [0, 1]; what takes its gradients away makes it "
        "small too.",
    )
