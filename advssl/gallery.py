"""Gallery: what a training step sees, as pictures: benign and adversarial views, what differs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Generator, Tensor

from advssl.attacks import AdversarialViewGenerator, is_view, tensors_of
from advssl.doctor.steps import Batch, Step, repeated
from advssl.extras import needed
from advssl.pixels import Pixels
from advssl.types import Images, check_kind, positive, whole
from advssl.views import HighFreqView, LowFreqView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_VIEWS = 4  # of a multi-crop batch
_RADIUS = 0.25  # cycles per pixel, AdvCL's 8 at 32


class Column(NamedTuple):
    """A column of pictures.

    Attributes:
        title: what they are.
        pictures: (N, C, H, W), in [0, 1].
    """

    title: str
    pictures: Images


def columns(
    step: Step,
    batch: Batch,
    adversary: AdversarialViewGenerator | None = None,
    *,
    view: int = 0,
    images: int = 8,
    amplify: float | None = None,
) -> list[Column]:
    """The pictures of :func:`gallery`, column by column.

    Args:
        step: a LightningModule, or a function of a batch that returns the loss.
        batch: as the step takes it. The attack is on all of it, as batch statistics and negatives
            are part of the loss.
        adversary: what attacks it; None is PGD-5 in ``Linf(8 / 255)`` on pixels in [0, 1].
        view: which of the batch's views is attacked, in their order.
        images: how many rows.
        amplify: by what the difference is multiplied, around grey. None takes what brings the
            largest of it to black or white.

    Raises:
        ValueError: as :func:`~advssl.doctor.examine` does, and on images outside of the bounds.
    """
    rows = whole("images", images, 1)
    check_kind("adversary", adversary, AdversarialViewGenerator | None)
    amplify = None if amplify is None else positive("amplify", amplify)
    adversary = copy.deepcopy(adversary or AdversarialViewGenerator())  # remembers nothing of this
    with repeated(step, batch, (view,)) as case:

        def objective(attacked: Images) -> Tensor:
            case.begin()
            return case.now(attacked)

        (benign,) = case.images
        draws = Generator(benign.device).manual_seed(0)
        hard = adversary(benign, objective, freeze=(), generator=draws)  # given back by the case
        at = case.at[0]
    given = tensors_of(batch)
    views = [x for x in given if is_view(x)][:_MOST_VIEWS]
    of = f"view {1 + sum(is_view(x) for x in given[:at])}"
    pixels = adversary.pixels
    low, high = pixels.bounds or (0.0, 1.0)

    def shown(x: Images) -> Images:
        return (_pixels(pixels, x[:rows]) - low) / (high - low)

    clean, attacked = shown(benign), shown(hard)
    apart = attacked - clean
    largest = float(apart.abs().max())
    factor = amplify or (0.5 / largest if largest else 1.0)
    found = [Column(f"view {i + 1}", shown(x)) for i, x in enumerate(views)]
    found += [
        Column(f"{of}, attacked", attacked),
        Column(f"difference × {factor:.3g}", apart * factor + 0.5),
        Column(f"{of}, low frequencies", LowFreqView(_RADIUS, unit="pixel")(clean)),
        Column(f"{of}, high frequencies", HighFreqView(_RADIUS, unit="pixel")(clean) + 0.5),
    ]
    return [Column(title, x.detach().cpu().clamp(0, 1)) for title, x in found]


def gallery(
    step: Step,
    batch: Batch,
    adversary: AdversarialViewGenerator | None = None,
    *,
    view: int = 0,
    images: int = 8,
    amplify: float | None = None,
) -> Figure:
    """What the step sees: benign views, the adversarial one, their difference, frequencies.

    A row is an image. The views are those of the batch, up to four of them; one is attacked by the
    step's own loss, as the callbacks do it. The difference is around grey, and so are the high
    frequencies. Nothing is left changed. Needs no screen: ``gallery(...).savefig("gallery.png")``.

    Args:
        step: see :func:`columns`, as for the others.
        batch: of your loader, ``next(iter(loader))``.
        adversary: what attacks it.
        view: which view is attacked.
        images: how many rows.
        amplify: of the difference.

    Raises:
        ValueError: as :func:`columns` does.
        ImportError: without matplotlib, which ``advssl[eval]`` brings.
    """
    figures = needed("matplotlib.figure", "a gallery")
    found = columns(step, batch, adversary, view=view, images=images, amplify=amplify)
    rows = len(found[0].pictures)
    figure = figures.Figure(figsize=(1.5 * len(found), 1.45 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, len(found), squeeze=False)
    for across, (title, pictures) in enumerate(found):
        axes[0, across].set_title(title, fontsize=7)
        for down, picture in enumerate(pictures):
            axes[down, across].imshow(_for_imshow(picture).numpy(), vmin=0, vmax=1, cmap="gray")
            axes[down, across].set(xticks=[], yticks=[])  # a frame, as a picture may be white
    return figure


def write(figure: Figure, path: Path) -> Path:
    """One PNG."""
    figure.savefig(path, format="png", dpi=150)
    return path


def _pixels(pixels: Pixels, images: Images) -> Images:
    return pixels.to(images) if pixels.fits(images) else images


def _for_imshow(picture: Tensor) -> Tensor:
    """(H, W) of one channel, (H, W, 3) of three; of any other number their mean."""
    return picture.permute(1, 2, 0) if len(picture) == 3 else picture.mean(dim=0)
