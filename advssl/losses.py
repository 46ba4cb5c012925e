"""Losses: embeddings (and pairs) to what each anchor pays. Any length of embedding: cosines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advssl.distributed import agree, gather, rank, world_size
from advssl.precision import product, widen, without_autocast
from advssl.selection import Pairs, Selection, distinct, selection_of, told_apart, with_twins
from advssl.types import (
    Embeddings,
    Labels,
    PerExample,
    Reduction,
    check_embeddings,
    check_indices,
    check_reduction,
    described,
    flag,
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
        temperature: τ > 0, in cosine units. 0.5 is SimCLR's for CIFAR-10. A tensor of one element,
            such as a ``nn.Parameter`` (which the module then registers), may be learned: its
            gradient is the derivative. On the CPU one that is no longer positive is refused; on
            other devices, where to look would be a sync, the loss is NaN.
        positives: "mean" over an anchor's positives, as above and in AdvCL's code, or "sum", as in
            RoCL, which is V - 1 times that.
        gather_distributed: take the other embeddings from all ranks. The anchors stay this rank's,
            so the mean of the loss over ranks, and DDP's averaged gradient, are those of one
            process on the whole batch. Every rank must hold the same number of images
            (``drop_last=True``): else all of them raise.
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
        temperature: float | Tensor = 0.5,
        *,
        positives: Literal["mean", "sum"] = "mean",
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        if positives not in ("mean", "sum"):
            raise ValueError(f'positives must be "mean" or "sum", got {positives!r}')
        self.temperature = _checked(temperature)
        self.positives = positives
        self.gather_distributed = flag("gather_distributed", gather_distributed)
        self.reduction: Reduction = reduction

    def forward(self, *views: Embeddings) -> Tensor:
        """What the anchors pay, in nats.

        Args:
            *views: two or more, each (B, D), of any length; row i of each is image i.

        Returns:
            A scalar, or (V, B) with ``reduction="none"``.

        Raises:
            ValueError: on fewer than two views, on views of different shapes, and on every rank
                where ranks gather views that are not of one shape and type.
        """
        if self.gather_distributed:
            # Before any other check: a rank that raises alone leaves the others waiting.
            agree(f"{len(views)} views", views)
        if len(views) < 2:
            raise ValueError(f"NT-Xent needs at least two views, got {len(views)}")
        check_embeddings(**{f"view {i}": z for i, z in enumerate(views)})
        count, size = len(views), len(views[0])
        with without_autocast(views[0].device):
            z = unit(torch.stack([widen(z) for z in views]))  # (V, B, D)
            mates = z.sum(dim=0) - z  # the sum of an anchor's positives
            anchors = z / _divisor(self.temperature)
            pull = (anchors * mates).sum(dim=2)
            others = z.transpose(0, 1)  # (B, V, D): images first, so that ranks stack
            others = gather(others, agreed=True) if self.gather_distributed else others
            # Where the anchors stand among the others, to leave each out of its own softmax.
            first = rank() * size if self.gather_distributed else 0
            places = (first + torch.arange(size, device=pull.device)) * count
            push, _ = _LogPartition.apply(
                anchors.flatten(0, 1),
                others.flatten(0, 1),
                torch.cat([places + v for v in range(count)]),
            )
            push = push.view(count, size)
            if self.positives == "mean":
                return reduce(push - pull / (count - 1), self.reduction)
            return reduce(push * (count - 1) - pull, self.reduction)

    def extra_repr(self) -> str:
        return (
            f"temperature={_shown(self.temperature)}, positives={self.positives!r}, "
            f"gather_distributed={self.gather_distributed}, reduction={self.reduction!r}"
        )


class LocalSelectionSupCon(nn.Module):
    r"""Supervised contrastive loss between images and adversarial twins that selects its pairs.

    Both z and zᵃ are anchors. P are an anchor's selected positives and its twin, N what repels it::

        L = - 1/|P| Σ_{j ∈ P} log [ exp(z·z_j / τ) / Σ_{k ∈ P ∪ N} exp(z·z_k / τ) ]

    A row with nothing to attract it pays 0. Computed in float32 (float64 stays), also under
    autocast.

    A negative label says that the image has none. It is then a class of its own, as every image is
    in self-supervised learning: of those that its selection compares, all but its twin repel it. A
    batch without labels pays NT-Xent's loss under "global" (times two, for Eq. 3 adds L and Lᵃ). A
    negative prediction is likewise that of nobody else.

    Args:
        selection: "global" (supervised contrastive learning), "hard", "soft", "leaked", or a
            function of the 2B stacked labels and predictions (or None) that returns ``Pairs``, with
            or without their diagonals. What was negative it sees as different negative numbers.
        temperature: τ > 0, in cosine units; 0.07 is the paper's. It may be learned, as in
            :class:`MultiViewNTXentLoss`.
        keep_twin: an anchor's own twin always attracts it, as the paper says. The released code
            leaves it out of "leaked" where the two predictions differ: False reproduces that.
        gather_distributed: take pairs from all ranks, as in :class:`MultiViewNTXentLoss`: the
            anchors stay this rank's, and the mean of the loss over ranks is that of one process on
            the whole batch.
        reduction: "mean" over the B images of L + Lᵃ, as Eq. 3, "sum", or "none" for (B,). The
            released code averages over the 2B anchors, which is half of Eq. 3.

    Reference: Bui et al. 2021, Eqs. 1 to 3 and Table 1, https://arxiv.org/abs/2101.10027
    """

    def __init__(
        self,
        selection: Literal["global", "hard", "soft", "leaked"] | Selection = "leaked",
        temperature: float | Tensor = 0.07,
        *,
        keep_twin: bool = True,
        gather_distributed: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        selection_of(selection)
        self.selection = selection
        self.temperature = _checked(temperature)
        self.keep_twin = flag("keep_twin", keep_twin)
        self.gather_distributed = flag("gather_distributed", gather_distributed)
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
            labels: (B,) integers, on the embeddings' device.
            predictions: (B,) integers, the classes that the classifier gives the images; every
                selection but "global" needs them.
            predictions_adv: (B,) integers, the classes that it gives the twins.

        Returns:
            A scalar, or (B,) = Lᵢ + Lᵢᵃ with ``reduction="none"``.

        Raises:
            ValueError: on shapes that disagree, or predictions that the selection needs and lacks;
                and on every rank where ranks gather batches that are not of one shape and type.
        """
        classes = {
            "labels": labels,
            "predictions": predictions,
            "predictions_adv": predictions_adv,
        }
        if self.gather_distributed:
            # Before any other check: a rank that raises alone leaves the others waiting.
            agree("a batch", (z, z_adv, *classes.values()))
        check_embeddings(z=z, z_adv=z_adv)
        given: dict[str, Any] = {
            name: c for name, c in classes.items() if name == "labels" or c is not None
        }
        check_indices(len(z), **given)
        rows, anchors = torch.cat([z, z_adv]), None
        if self.gather_distributed and world_size() > 1:
            pairs_of_all = gather(torch.stack([z, z_adv], dim=1), agreed=True)
            rows = pairs_of_all.transpose(0, 1).flatten(0, 1)  # images first, then their twins
            given = {name: gather(c.long(), agreed=True) for name, c in given.items()}
            own = rank() * len(z) + torch.arange(len(z), device=z.device)
            anchors = torch.cat([own, len(pairs_of_all) + own])
        paid = contrastive(rows, self.select(**given), self.temperature, anchors=anchors)
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
        check_indices(None, labels=labels)
        size, stacked = len(labels), None
        if predictions is not None and predictions_adv is not None:
            check_indices(size, predictions=predictions, predictions_adv=predictions_adv)
            stacked = told_apart(torch.cat([predictions, predictions_adv]), first=size)
        labels = told_apart(labels).repeat(2)
        choose = selection_of(self.selection)
        pairs = distinct(choose(labels, stacked), 2 * size, labels.device)
        return with_twins(pairs) if self.keep_twin else pairs

    def extra_repr(self) -> str:
        return (
            f"selection={self.selection!r}, temperature={_shown(self.temperature)}, "
            f"keep_twin={self.keep_twin}, gather_distributed={self.gather_distributed}, "
            f"reduction={self.reduction!r}"
        )


def unit(z: Tensor) -> Tensor:
    """``z`` at length one along its last dimension; a zero row stays zero, its gradient finite.

    In float32; float64 stays.
    Only the direction counts, also of a row whose squares over- or underflow. A row that holds inf
    or nan is nan throughout.
    """
    z = widen(z)
    peak = z.detach().abs().amax(dim=-1, keepdim=True)
    extreme = ((peak > 1e15) | (peak < 1e-15)) & (peak > 0)
    z = z / torch.where(extreme, peak, 1)
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / torch.where(length == 0, 1, length)


def contrastive(
    z: Embeddings,
    pairs: Pairs,
    temperature: float | Tensor,
    *,
    anchors: Tensor | None = None,
) -> PerExample:
    """What each anchor pays for the pairs given: the mean over its positives of -log softmax.

    Computed in float32 (float64 stays), also under autocast.

    Args:
        z: (N, D), of any length.
        pairs: (N, N) masks; nobody is its own pair, whatever their diagonals say.
        temperature: τ > 0, in cosine units.
        anchors: (A,), which rows pay; all by default.

    Returns:
        (N,) or (A,), in nats. An anchor without positives pays exactly 0.

    Raises:
        ValueError: on embeddings, pairs or a temperature that are not of these types and shapes.

    Reference: Khosla et al. 2020, Eq. 2, https://arxiv.org/abs/2004.11362
    """
    check_embeddings(z=z)
    positives, denominator = distinct(pairs, len(z), z.device)
    with without_autocast(z.device):
        z = unit(z)
        own = z
        if anchors is not None:
            own, positives, denominator = z[anchors], positives[anchors], denominator[anchors]
        logits = product(own / _divisor(temperature), z.mT)
        # A row with an empty denominator is filled with 0, not -inf: its gradient is 0, not NaN.
        some = denominator.any(dim=1)
        floor = torch.where(some, -torch.inf, 0.0).to(logits)[:, None]
        # -inf and not a huge negative number, whose exp is several times as slow.
        push = torch.where(denominator, logits, floor).logsumexp(dim=1)
        push = torch.where(some, push, 0)
        count = positives.sum(dim=1)
        pull = torch.where(positives, logits, 0).sum(dim=1) / count.clamp_min(1)
        # 0 for a row without positives, but NaN for one that is not finite.
        return torch.where(count > 0, push - pull, 0 * own.detach().sum(dim=1))


def _checked(temperature: Any) -> float | Tensor:
    """τ as a plain number; as it came where it is a tensor that may be learned."""
    compiling = torch.compiler.is_compiling()  # values are not known then
    if not isinstance(temperature, Tensor) or not temperature.is_floating_point():
        return temperature if compiling else positive("temperature", temperature)
    if temperature.numel() != 1:
        raise ValueError(f"temperature must be one number, got {described(temperature)}")
    if temperature.device.type == "cpu" and not compiling:
        with suppress(RuntimeError):  # nor under vmap
            positive("temperature", temperature)
    return temperature


def _divisor(temperature: float | Tensor) -> float | Tensor:
    """τ as a plain number, or a 0-d float32 or float64, which is NaN where it is not positive."""
    temperature = _checked(temperature)
    if not isinstance(temperature, Tensor):
        return temperature
    tau = widen(temperature).reshape(())
    return torch.where((tau > 0) & tau.isfinite(), tau, torch.nan)


def _shown(temperature: float | Tensor) -> Any:
    learned = isinstance(temperature, Tensor) and not temperature.is_meta
    return temperature.item() if learned else temperature  # type: ignore[union-attr]


class _LogPartition(torch.autograd.Function):
    """log Σ exp(z·z_a) over all others but the anchor itself, and the softmax where it is kept.

    One matrix of N × N, made in place and kept for backward, which then needs no other; or none,
    where it is larger than a block.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(anchors: Tensor, others: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        partitions = []
        blocks = list(_blocks(others, anchors, places))
        kept = others.new_empty(0)
        for a, p in blocks:
            weights = _logits(a, others, p)
            peak = weights.amax(dim=1, keepdim=True)
            total = weights.sub_(peak).exp_().sum(dim=1, keepdim=True)
            partitions.append((peak + total.log()).squeeze(1))
            if len(blocks) == 1:
                kept = weights.div_(total)
        return torch.cat(partitions), kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _, softmax = output
        ctx.mark_non_differentiable(softmax)
        ctx.set_materialize_grads(False)  # else zeros would be made for the softmax
        ctx.save_for_backward(*inputs, softmax)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None
        anchors, others, places, kept = ctx.saved_tensors
        # For a gradient of this gradient the softmax must know where it is from.
        again = torch.is_grad_enabled() or kept.ndim == 1
        of_anchors, of_others = [], torch.zeros_like(others)
        with without_autocast(gradient.device):
            for a, p, g in _blocks(others, anchors, places, gradient[:, None]):
                # d log Σ exp / d logits is the softmax.
                softmax = _logits(a, others, p).softmax(dim=1) if again else kept
                of_anchors.append(product(softmax, others) * g)
                of_others = of_others + product(softmax.mT, a * g)
        return torch.cat(of_anchors), of_others, None


def _logits(anchors: Tensor, others: Tensor, places: Tensor) -> Tensor:
    """z·z_a, minus infinity where an anchor meets itself."""
    return product(anchors, others.mT).scatter_(1, places[:, None], -torch.inf)


def _blocks(others: Tensor, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """``columns``, of one row per anchor, so many rows at a time as their similarities fit."""
    rows = max(1, _BLOCK // len(others))
    return zip(*[torch.split(column, rows) for column in columns], strict=True)
