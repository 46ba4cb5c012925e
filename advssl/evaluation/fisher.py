"""Fisher: a classifier and images to how fast its prediction changes with the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from advssl.evaluation.batches import Batches, pairs
from advssl.evaluation.logits import borrowed, check_module, check_slope, device_of, logits_of
from advssl.types import Images, seed_of

_NUMBERS = 2**24  # of derivatives that are held at once


@dataclass(frozen=True)
class Fisher:
    """Fisher information of the pixels of images, in nats per squared pixel of [0, 1].

    Attributes:
        traces: of each image, over all directions.
        largest: of each image, its largest eigenvalue: in the worst direction.
    """

    traces: tuple[float, ...]
    largest: tuple[float, ...]

    @property
    def trace(self) -> float:
        """The mean."""
        return sum(self.traces) / len(self.traces)

    @property
    def median(self) -> float:
        """Of the traces, which few images can dominate: half of the images have more."""
        return median(self.traces)

    @property
    def worst(self) -> float:
        """The mean of the largest eigenvalues."""
        return sum(self.largest) / len(self.largest)

    def divergence(self, length: float) -> float:
        """KL(p(x) ‖ p(x + δ)), to second order, for the worst δ of this ℓ2 length; the mean."""
        return length**2 * self.worst / 2


def fisher_information(classifier: nn.Module, batches: Batches, *, seed: int = 0) -> Fisher:
    r"""Fisher information of an image's pixels in what a classifier predicts.

        F(x) = E_{y ~ p(y|x)} [ ∇_x log p(y|x) ∇_x log p(y|x)ᵀ ] = Jᵀ (diag p - p pᵀ) J

    with J the logits' derivatives. KL(p(x) ‖ p(x + δ)) ≈ ½ δᵀ F δ: the larger it is, the less it
    takes to change a prediction. Labels are not read. It is local: a classifier that saturates has
    little of it and is not robust for that (gradients that vanish, one of the doubts). Costs a
    backward per class.

    Args:
        classifier: a module, images in [0, 1] to logits; left as it was.
        batches: pairs of images (B, C, H, W), float32 in [0, 1], and labels (B,).
        seed: of what is random in the classifier.

    Raises:
        ValueError: on no images, and on logits that are not finite or have no gradient that is.

    Reference: Zhao et al. 2019, https://arxiv.org/abs/1810.03806. (AdvCL's "FIM" are feature
    inversion maps, see :mod:`~advssl.evaluation.inversion`; none of the papers has this.)
    """
    check_module("classifier", classifier)
    seed = seed_of(seed)
    traces, largest = list[Tensor](), list[Tensor]()
    for images, _ in pairs(batches):
        device = device_of(classifier, images)
        with borrowed(classifier, device, seed):
            classes = logits_of(classifier, images[:1].clone().to(device)).shape[1]
            for part in torch.split(images, max(1, _NUMBERS // (classes * images[0].numel()))):
                values = _eigenvalues(classifier, part.clone().to(device)).cpu()
                traces.append(values.sum(dim=1))
                largest.append(values[:, -1])
    if not traces:
        raise ValueError("there are no images whose information could be found; give at least one")
    return Fisher(tuple(torch.cat(traces).tolist()), tuple(torch.cat(largest).tolist()))


def _eigenvalues(classifier: nn.Module, images: Images) -> Tensor:
    """(B, K), float64, ascending: those of F that can differ from zero."""
    leaf = images.requires_grad_()
    logits = logits_of(classifier, leaf)
    if not logits.requires_grad:
        raise ValueError(
            "the classifier's logits have no gradient in the images; compute them without detach()"
        )
    rows = [
        torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0].flatten(1)
        for column in logits.unbind(dim=1)
    ]
    slopes = torch.stack(rows, dim=1).double()  # J (B, K, pixels)
    check_slope(slopes)
    p = logits.detach().double().softmax(dim=1)
    # diag p - p pᵀ = A Aᵀ, so that Jᵀ A Aᵀ J has the eigenvalues of Aᵀ J Jᵀ A, which is K by K.
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    small = root.mT @ (slopes @ slopes.mT) @ root
    return torch.linalg.eigvalsh((small + small.mT) / 2).clamp_min(0)
