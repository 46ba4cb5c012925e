"""Inversion: an encoder's neuron and an image to start from, to an image that it answers most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import L2
from advssl.evaluation.linear import encoded
from advssl.evaluation.logits import borrowed, check_module, device_of
from advssl.types import Images, Perturbation, described, positive, seed_of, several, whole

_ACROSS = 50  # steps from a black image to a white one


class _Anywhere(L2):
    """Steps of an ℓ2 length, and only the range of an image to stop them."""

    def project(self, delta: Perturbation) -> Perturbation:
        return delta


@dataclass(frozen=True, eq=False)
class Inversions:
    """Feature inversion maps.

    Attributes:
        starts: (S, C, H, W), as they were given.
        maps: (J, S, C, H, W) in [0, 1], of each neuron from each start.
        neurons: J places in a feature vector.
        before: by neuron and start, what the neuron answers to the start.
        after: likewise, to the map.
    """

    starts: Images
    maps: Tensor
    neurons: tuple[int, ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]

    @property
    def alike(self) -> float:
        """The mean correlation of a neuron's maps from different starts, -1 to 1.

        The papers' claim is that a robust encoder's are alike whatever the start; NaN of one start.
        Compare :attr:`alike_before`.
        """
        found = [_alike(of) for of in self.maps]
        return sum(found) / len(found)

    @property
    def alike_before(self) -> float:
        """The same of the starts."""
        return _alike(self.starts)


def inversions(
    encoder: nn.Module,
    starts: Images,
    neurons: Sequence[int],
    *,
    steps: int = 200,
    step_size: float | None = None,
    seed: int = 0,
) -> Inversions:
    r"""Feature inversion maps: what an image has to become for a neuron to answer most.

        x_FIM = argmax_δ [ f(x₀ + δ) ]_i        x₀ + δ in [0, 1]

    by steps along the gradient, each of the same ℓ2 length.

    Args:
        encoder: a module, images in [0, 1] to features (B, D), or a probe's
            :class:`~advssl.evaluation.probes.Classifier`, whose encoder it then is; left as it was.
        starts: x₀ (S, C, H, W), float32 in [0, 1]: images, and noise such as
            ``torch.rand_like(images[:1])``.
        neurons: places i in a feature vector, from 0; the paper shows one of 512, number 502.
        steps: how many.
        step_size: their length, for pixels in [0, 1]; None is a fiftieth of the way from a black
            image to a white one.
        seed: of what is random in the encoder.

    Raises:
        ValueError: on starts that are no images in [0, 1], a neuron that the encoder does not have,
            and features that are not finite.

    Reference: AdvCL, Section 5.2 and Fig. 5, https://arxiv.org/abs/2111.01124; ASCL-2023, Eq. 11
    and Fig. 2; Mahendran and Vedaldi 2015, https://arxiv.org/abs/1412.0035

    Example:
        >>> encoder = nn.Flatten()  # its neurons are pixels
        >>> found = inversions(encoder, torch.full((1, 1, 2, 2), 0.5), [3])
        >>> found.maps.flatten().tolist()
        [0.5, 0.5, 0.5, 1.0]
    """
    check_module("encoder", encoder)
    steps, seed = whole("steps", steps, 1), seed_of(seed)
    places = tuple(whole("each of neurons", i, 0) for i in several("neurons", neurons, "numbers"))
    shaped = isinstance(starts, Tensor) and starts.ndim == 4 and len(starts) > 0
    if not shaped or starts.dtype != torch.float32:
        raise ValueError(
            "starts must be float32 images (S, C, H, W), in a tensor, got " + described(starts)
        )
    if not places:
        raise ValueError("neurons must name one at least, such as [0]")
    across = math.sqrt(starts[0].numel())
    step = across / _ACROSS if step_size is None else positive("step_size", step_size)
    ascent = AdversarialViewGenerator(
        _Anywhere(min(across, steps * step)), steps, step, start="zero"
    )
    device = device_of(encoder, starts)
    with borrowed(encoder, device, seed):
        x = starts.detach().clone().to(device)
        width = encoded(encoder, x[:1]).shape[1]
        if max(places) >= width:
            raise ValueError(f"neurons must be from 0 to {width - 1}, got {max(places)}")
        maps, heights = list[Tensor](), list[tuple[Tensor, Tensor]]()
        for i in places:

            def height(images: Images, i: int = i) -> Tensor:
                return encoded(encoder, images)[:, i]

            found = ascent(x, height, freeze=encoder)
            maps.append(found.cpu())
            with torch.no_grad():
                heights.append((height(x).cpu(), height(found).cpu()))
    before, after = (
        tuple(tuple(h.tolist()) for h in column) for column in zip(*heights, strict=True)
    )
    return Inversions(starts.detach().cpu(), torch.stack(maps), places, before, after)


def _alike(images: Images) -> float:
    """Of all pairs, the mean correlation of their pixels."""
    rows = images.flatten(1).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    rows = nn.functional.normalize(rows, dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    return float((rows[first] * rows[second]).sum(dim=1).mean())
