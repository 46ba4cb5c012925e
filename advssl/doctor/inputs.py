"""Inputs: whether images, bounds and radius are in one unit, and the loss depends on the images."""

from __future__ import annotations

import torch

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import grey_of
from advssl.doctor.steps import Repeated
from advssl.evaluation.checks import Check, answer, not_run, percent
from advssl.pixels import CIFAR10, IMAGENET, Pixels
from advssl.types import Images

_ROUNDING = 1e-4
_KNOWN = {
    "advssl.pixels.IMAGENET": IMAGENET,
    "advssl.pixels.CIFAR10": CIFAR10,
    "Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))": Pixels((0.5,) * 3, (0.5,) * 3),
}
# Of the radius at which every image can be made the same grey. 8/255 is 0.06 of it, L2(0.25) on
# 224 pixels 0.001; 8/255 of images in [0, 255] is 0.0002.
_NARROW, _WIDE = 4e-4, 1.0


def bounds(case: Repeated, adversary: AdversarialViewGenerator) -> Check:
    """Normalised images against pixel bounds, and pixels that are undone a normalisation."""
    pixels, box = adversary.pixels, adversary.bounds
    wrong, said = False, []
    for images in case.images:
        if not pixels.fits(images):
            return answer(
                True,
                f"images have {images.shape[1]} channels, mean and std {len(pixels.mean or ())}",
            )
        low, high = (float(v) for v in images.aminmax())
        said.append(f"images lie in [{low:.3g}, {high:.3g}]")
        if box is None:
            # The high frequency view lies in [-0.8, 0.8] or so.
            wrong |= pixels.mean is None and (low < -1.05 or 1.5 < high < 20)
            continue
        seen = pixels.to(images)
        outside = (seen < box[0] - _ROUNDING) | (seen > box[1] + _ROUNDING)
        share = float(outside.float().mean())
        if pixels.mean is not None:
            dark, bright = (float(v) for v in seen.aminmax())
            said[-1] += f", which mean and std make pixels of [{dark:.3g}, {bright:.3g}]"
            # No image is darker than the mean: nothing was subtracted from it.
            wrong |= low >= 0 and high <= box[1] + _ROUNDING
        if share:
            said[-1] += f", {percent(share)} of them outside the bounds {box}"
        wrong |= share > 0
    return answer(wrong, "; ".join(dict.fromkeys(said)))


def pixels_of(images: Images) -> str:
    """What to give for these images, as far as their range tells."""
    low, high = (float(v) for v in images.aminmax())
    if low >= 0 and high <= 1 + _ROUNDING:
        return "images are their pixels: leave mean and std away"
    for name, pixels in _KNOWN.items():
        if pixels.fits(images):
            dark, bright = pixels.to(images).aminmax()
            if dark >= -_ROUNDING and bright <= 1 + _ROUNDING:
                return f"pixels={name} if that is what normalised them, else their mean and std"
    if low >= 0 and high <= 255 + _ROUNDING:
        return "bounds=(0, 255) with a radius in grey levels, or images divided by 255"
    return "mean= and std= as they were normalised by, or bounds=None for no images in a box"


def radius(case: Repeated, adversary: AdversarialViewGenerator) -> Check:
    """A radius in another unit than the images: far too small, or wider than they are."""
    low, high = adversary.bounds or (
        min(float(x.min()) for x in case.images),
        max(float(x.max()) for x in case.images),
    )
    greys = [grey_of(adversary.ball, x.shape[1:]) for x in case.images]
    if None in greys or high <= low:
        return not_run("the ball does not say where every image is grey")
    shares = [adversary.radius / ((high - low) * grey) for grey in greys if grey]
    evidence = (
        f"a radius of {adversary.radius:.3g} is {shares[0]:.3g} of that at which every image of "
        f"[{low:.3g}, {high:.3g}] can become the same grey"
    )
    wrong = min(shares) < _NARROW or max(shares) >= _WIDE
    return answer(wrong, evidence, share=shares)


def dependence(case: Repeated) -> Check:
    """A loss that does not change with what is attacked."""
    _, gradients = case.gradient(*case.images)
    known = [g for g in gradients if g is not None]
    if not known:
        return answer(True, "the loss has no gradient in the attacked views")
    peak = max(float(g.abs().max()) for g in known)
    if peak == 0:
        others = map(elsewhere, case.images)
        value = case.value(*case.images)
        if value == case.value(*others):
            return answer(True, f"the loss is {value:.4g} on random images in the views' place too")
    return answer(False, f"its gradient reaches {peak:.2g} per pixel")


def elsewhere(images: Images) -> Images:
    """Random images in the range of these."""
    low, high = images.aminmax()
    return torch.rand_like(images) * (high - low) + low
