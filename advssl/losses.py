"""Losses: embeddings (and pairs) to what each anchor pays. Any length of embedding: cosines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advssl.distributed import gather, rank
from advssl.modes import widen, without_autocast
from advssl.selection import SELECTIONS, Pairs, Selection, with_twins
from advssl.types import (
    Embeddings,
    Labels,
    PerExample,
    Reduction,
    check_embeddings,
    check_indices,
    check_reduction,
    positive,
    reduce,
)

# Similarities held at once, 256 MB in float32; a larger matrix is made and remade in row blocks.
_BLOCK = 2**26


class MultiViewNTXentLoss(nn.Module):
    r"""NT-Xent over any number of views of the same images.

    With V views of B images there are V·B anchors; an anchor's positives P are the V - 1 other
    views of its image, and all other V·B - 1 embeddings A stand in its softmax::

        ℓ = - 1/|P| Σ_{p ∈ P} log [ exp(z·z_p / τ) / Σ_{a ∈ A} exp(z·z_a / τ) ]

    With two views it is SimCLR's loss and equals ``lightly.loss.NTXentLoss``. Computed in float32
    (float64 stays), also under autocast. Beyond 2²⁶ similarities the matrix is made and remade in
    blocks of rows, so that memory grows as V·B and not as its square; the result is the same. The
    gradient has a gradient, which holds the whole matrix; there is no forward-mode derivative.

    Args:
        temperature: τ > 0, in cosine units. 0.5 is SimCLR's for CIFAR-10.
        positives: "mean" over an anchor's positives, as above and in AdvCL's code, or "sum", as in
            RoCL, which is V - 1 times that.
        gather_distributed: take the other embeddings from all ranks. The anchors stay this rank's,
            so the mean of the loss over ranks, and DDP's averaged gradient, are those of one
            process on the whole batch. Every rank must hold the same number of images.
        reduction: "mean" over the V·B anchors, "sum", or "none" for (V, B).

    Reference: Chen et al. 2020, Eq. 1, https://arxiv.org/abs/2002.05709; for more than two views
    Khosla et al. 2020, Eq. 2, https://arxiv.org/abs/2004.11362

    Example:
        >>> z = torch.eye(4)  # four images, three views that agree: log(2 + 9 / e²)
        >>> round(MultiViewNTXentLoss(temperature=0.5)(z, z, z).item(), 4)
        1.1688
    """

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        positives: Literal["mean", "sum"] = "mean",
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        positive("temperature", temperature)
        check_reduction(reduction)
        if positives not in ("mean", "sum"):
            raise ValueError(f'positives must be "mean" or "sum", got {positives!r}')
        self.temperature = temperature
        self.positives = positives
        self.gather_distributed = gather_distributed
        self.reduction: Reduction = reduction

    def forward(self, *views: Embeddings) -> Tensor:
        """What the anchors pay, in nats.

        Args:
            *views: two or more, each (B, D), of any length; row i of each is image i.

        Returns:
            A scalar, or (V, B) with ``reduction="none"``.

        Raises:
            ValueError: on fewer than two views, or on views of different shapes.
        """
        if len(views) < 2:
            raise ValueError(f"NT-Xent needs at least two views, got {len(views)}")
        check_embeddings(**{f"view {i}": z for i, z in enumerate(views)})
        count, size = len(views), len(views[0])
        with without_autocast(views[0].device):
            anchors = unit(torch.stack([widen(z) for z in views]))  # (V, B, D)
            mates = anchors.sum(dim=0) - anchors  # the sum of an anchor's positives
            pull = (anchors * mates).sum(dim=2) / self.temperature
            others = anchors.transpose(0, 1)  # (B, V, D): images first, so that ranks stack
            others = gather(others) if self.gather_distributed else others
            # Where the anchors stand among the others, to leave each out of its own softmax.
            first = rank() * size if self.gather_distributed else 0
            places = (first + torch.arange(size, device=pull.device)) * count
            push, _ = _LogPartition.apply(
                anchors.flatten(0, 1),
                others.flatten(0, 1),
                torch.cat([places + v for v in range(count)]),
                self.temperature,
            )
            push = push.view(count, size)
            if self.positives == "mean":
                return reduce(push - pull / (count - 1), self.reduction)
            return reduce(push * (count - 1) - pull, self.reduction)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, positives={self.positives!r}, "
            f"gather_distributed={self.gather_distributed}, reduction={self.reduction!r}"
        )


class LocalSelectionSupCon(nn.Module):
    r"""Supervised contrastive loss between images and adversarial twins that selects its pairs.

    Both z and zᵃ are anchors. P are an anchor's selected positives and its twin, N what repels it::

        L = - 1/|P| Σ_{j ∈ P} log [ exp(z·z_j / τ) / Σ_{k ∈ P ∪ N} exp(z·z_k / τ) ]

    A row with nothing to attract it pays 0. Computed in float32 (float64 stays), also under
    autocast.

    Args:
        selection: "global" (supervised contrastive learning), "hard", "soft", "leaked", or a
            function of the 2B stacked labels and predictions (or None) that returns ``Pairs``.
        temperature: τ > 0, in cosine units; 0.07 is the paper's.
        keep_twin: an anchor's own twin always attracts it, as the paper says. The released code
            leaves it out of "leaked" where the two predictions differ: False reproduces that.
        reduction: "mean" over the B images of L + Lᵃ, as Eq. 3, "sum", or "none" for (B,). The
            released code averages over the 2B anchors, which is half of Eq. 3.

    Reference: Bui et al. 2021, Eqs. 1 to 3 and Table 1, https://arxiv.org/abs/2101.10027
    """

    def __init__(
        self,
        selection: Literal["global", "hard", "soft", "leaked"] | Selection = "leaked",
        temperature: float = 0.07,
        *,
        keep_twin: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        positive("temperature", temperature)
        check_reduction(reduction)
        if not callable(selection) and selection not in SELECTIONS:
            raise ValueError(
                f"selection must be one of {sorted(SELECTIONS)} or a function of labels and "
                f"predictions that returns Pairs, got {selection!r}"
            )
        self.selection = selection
        self.temperature = temperature
        self.keep_twin = keep_twin
        self.reduction: Reduction = reduction

    def forward(
        self,
        z: Embeddings,
        z_adv: Embeddings,
        labels: Labels,
        predictions: Labels | None = None,
        predictions_adv: Labels | None = None,
    ) -> Tensor:
        """What the images pay, in nats.

        Args:
            z: (B, D), of any length.
            z_adv: (B, D), the adversarial twins in the same order.
            labels: (B,) integers.
            predictions: (B,) integers, the classes that the classifier gives the images; every
                selection but "global" needs them.
            predictions_adv: (B,) integers, the classes that it gives the twins.

        Returns:
            A scalar, or (B,) = Lᵢ + Lᵢᵃ with ``reduction="none"``.

        Raises:
            ValueError: on shapes that disagree, or predictions that the selection needs and lacks.
        """
        check_embeddings(z=z, z_adv=z_adv)
        pairs = self.select(labels, predictions, predictions_adv)
        if len(labels) != len(z):
            raise ValueError(f"{len(z)} embeddings need as many labels, got {len(labels)}")
        with without_autocast(z.device):
            paid = contrastive(torch.cat([widen(z), widen(z_adv)]), pairs, self.temperature)
            return reduce(paid.view(2, -1).sum(dim=0), self.reduction)

    def select(
        self,
        labels: Labels,
        predictions: Labels | None = None,
        predictions_adv: Labels | None = None,
    ) -> Pairs:
        """Who attracts and who stands in the softmax: (2B, 2B) masks, images first, then twins."""
        if (predictions is None) != (predictions_adv is None):
            raise ValueError(
                "predictions and predictions_adv go together, got only one of them; "
                "the images and their twins are both anchors"
            )
        check_indices(labels.numel(), labels=labels)
        stacked = None
        if predictions is not None and predictions_adv is not None:
            check_indices(len(labels), predictions=predictions, predictions_adv=predictions_adv)
            stacked = torch.cat([predictions, predictions_adv])
        choose = self.selection if callable(self.selection) else SELECTIONS[self.selection]
        pairs = choose(labels.repeat(2), stacked)
        return with_twins(pairs) if self.keep_twin else pairs

    def extra_repr(self) -> str:
        return (
            f"selection={self.selection!r}, temperature={self.temperature}, "
            f"keep_twin={self.keep_twin}, reduction={self.reduction!r}"
        )


def unit(z: Tensor) -> Tensor:
    """``z`` at length one along its last dimension; a zero row stays zero, its gradient finite."""
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / torch.where(length > 0, length, 1)


def contrastive(z: Embeddings, pairs: Pairs, temperature: float) -> PerExample:
    """What each anchor pays for the pairs given: the mean over its positives of -log softmax.

    Args:
        z: (N, D), of any length.
        pairs: (N, N) masks.
        temperature: τ > 0, in cosine units.

    Returns:
        (N,) in nats. An anchor without positives pays exactly 0.

    Reference: Khosla et al. 2020, Eq. 2, https://arxiv.org/abs/2004.11362
    """
    z, size = unit(z), len(z)
    for name, mask in (("positives", pairs.positives), ("denominator", pairs.denominator)):
        if mask.shape != (size, size) or mask.dtype != torch.bool:
            raise ValueError(
                f"{size} anchors need a bool mask of {name} of shape {(size, size)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
    logits = (z / temperature) @ z.T
    # A row with an empty denominator is filled with 0, not -inf: its gradient is then 0, not NaN.
    some = pairs.denominator.any(dim=1)
    floor = torch.where(some, -torch.inf, 0.0).to(logits)[:, None]
    # -inf and not a huge negative number, whose exp is several times as slow.
    push = torch.where(pairs.denominator, logits, floor).logsumexp(dim=1)
    positives = pairs.positives.to(logits.dtype)
    pull, count = torch.linalg.vecdot(logits, positives), positives.sum(dim=1)
    push = torch.where(some, push, 0)
    return torch.where(count > 0, push - pull / count.clamp_min(1), 0)


class _LogPartition(torch.autograd.Function):
    """log Σ exp(z·z_a / τ) over all others but the anchor itself, and the softmax where it is kept.

    One matrix of N × N, made in place and kept for backward, which then needs no other; or none,
    where it is larger than a block.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        anchors: Tensor, others: Tensor, places: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        partitions = []
        blocks = list(_blocks(others, anchors, places))
        kept = others.new_empty(0)
        for a, p in blocks:
            weights = _logits(a, others, p, temperature)
            peak = weights.amax(dim=1, keepdim=True)
            total = weights.sub_(peak).exp_().sum(dim=1, keepdim=True)
            partitions.append((peak + total.log()).squeeze(1))
            if len(blocks) == 1:
                kept = weights.div_(total)
        return torch.cat(partitions), kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        *tensors, ctx.temperature = inputs
        _, softmax = output
        ctx.mark_non_differentiable(softmax)
        ctx.set_materialize_grads(False)  # else zeros would be made for the softmax
        ctx.save_for_backward(*tensors, softmax)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None
        anchors, others, places, kept = ctx.saved_tensors
        # For a gradient of this gradient the softmax must know where it is from.
        again = torch.is_grad_enabled() or kept.ndim == 1
        of_anchors, of_others = [], torch.zeros_like(others)
        slope = gradient[:, None] / ctx.temperature
        with without_autocast(gradient.device):
            for a, p, g in _blocks(others, anchors, places, slope):
                # d log Σ exp / d logits is the softmax.
                softmax = _logits(a, others, p, ctx.temperature).softmax(dim=1) if again else kept
                of_anchors.append(softmax @ others * g)
                of_others = of_others + softmax.T @ (a * g)
        return torch.cat(of_anchors), of_others, None, None


def _logits(anchors: Tensor, others: Tensor, places: Tensor, temperature: float) -> Tensor:
    """z·z_a / τ, minus infinity where an anchor meets itself."""
    return (anchors / temperature @ others.T).scatter_(1, places[:, None], -torch.inf)


def _blocks(others: Tensor, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``columns``, of one row per anchor, so many rows at a time as their similarities fit."""
    rows = max(1, _BLOCK // len(others))
    return zip(*[torch.split(column, rows) for column in columns], strict=True)
