"""Watching: one encoder, the same images every time, to a dict of numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Ball, Linf
from advssl.doctor.networks import effective_rank, spread_of
from advssl.evaluation.batches import check_batch
from advssl.evaluation.features import check_finite
from advssl.evaluation.logits import borrowed, check_module, device_of
from advssl.evaluation.theory import told_apart
from advssl.monitors.measures import (
    alignment,
    feature_deviation,
    pairs_kept,
    soft_neighbours,
    uniformity,
)
from advssl.pixels import Pixels, check_unit
from advssl.types import (
    Embeddings,
    Images,
    Labels,
    check_kind,
    described,
    embeddings_of,
    positive,
    seed_of,
    whole,
)

_STEPS = 10  # of PGD


class Monitors:
    """What an encoder has become: numbers that any logger takes, on the same images every time.

    A classifier of soft nearest neighbours is attacked, so nothing is trained but the critic, and
    the numbers of two epochs compare::

        knn_clean           accuracy of soft neighbours in the bank
        knn_fast            the same under one step of the radius, or under ``fast``
        knn_pgd             under PGD-10
        effective_rank      RankMe, of the images' embeddings, and their "spread": 0 is a point
        uniformity          of the images' embeddings; "alignment" of two draws of ``augment``
        feature_deviation   how far PGD-10 moves embeddings on the unit sphere
        critic_accuracy     of a critic that tells attacked embeddings from benign ones that it has
                            not learnt from; 0.5 is guessing
        branch_accuracy     of one that tells the same clean images in two BatchNorm branches apart
        pairs_kept          share of pairs that leaked local selection keeps, by those neighbours

    The encoder, its gradients, its mode and the random state are left as they were.

    Cost:
        1 F for each image of the bank and 25 F for each image: 1 clean, 3 for one step, 21 for
        PGD-10; 2 more with ``augment`` and 1 more with ``benign``. F is a forward of the encoder,
        and so is a backward to the images. 200 images and a bank of 1,000, once in an epoch, are
        6,000 F, as much as training with PGD-5 on 460 images. The critic's own network is small,
        and trained for 400 steps on embeddings.

    Args:
        images: (N, C, H, W), float32 in [0, 1], N ≥ 8; those of a validation set.
        labels: (N,), integer from 0 on.
        bank: (M, C, H, W), other images, whose neighbours are looked for.
        bank_labels: (M,), in which every one of ``labels`` occurs.
        ball: where attacked images lie.
        fast: the attack that trains, if it is a cheap one, to compare with PGD-10; K steps of it
            cost 2K + 1 F in place of 3. None is one step of the radius, from the image itself.
        augment: images to views, in [0, 1]; it draws from torch's random state.
        pixels: what the encoder reads of an image in [0, 1], such as ``IMAGENET``.
        temperature: of soft neighbours.
        seed: of attacks, views and the critic, the same every time.
        batch_size: images in a forward.

    Raises:
        ValueError: on images and labels that are none, or a label that the bank lacks.

    Example:
        >>> images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 2
        >>> monitors = Monitors(images, labels, images.flip(3), labels, ball=Linf(0.1))
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
        >>> seen = monitors(encoder)
        >>> 0 <= seen["knn_pgd"] <= 1
        True
    """

    def __init__(
        self,
        images: Images,
        labels: Labels,
        bank: Images,
        bank_labels: Labels,
        *,
        ball: Ball = Linf(8 / 255),  # noqa: B008 (a frozen value)
        fast: AdversarialViewGenerator | None = None,
        augment: Callable[[Images], Images] | None = None,
        pixels: Pixels = Pixels(),  # noqa: B008 (a frozen value)
        temperature: float = 0.1,
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        check_batch(images, labels)
        check_batch(bank, bank_labels)
        if bank.shape[1:] != images.shape[1:]:
            raise ValueError(
                f"bank must be images of one shape with the others, {tuple(images.shape[1:])}, got "
                f"{described(bank)}"
            )
        if len(images) < 8:
            raise ValueError(f"monitors look at 8 images at least, got {len(images)}")
        unknown = sorted({*labels.tolist()} - {*bank_labels.tolist()})
        if unknown:
            raise ValueError(f"the bank has no image of label {unknown[0]}; give it some of each")
        self.images, self.labels = images, labels
        self.bank, self.bank_labels = bank, bank_labels
        check_kind("fast", fast, AdversarialViewGenerator | None)
        check_kind("augment", augment, Callable | None)
        self.pgd = AdversarialViewGenerator(ball, _STEPS)
        self.fast = fast or AdversarialViewGenerator(ball, 1, ball.radius, start="zero")
        check_unit(pixels)
        self.augment, self.pixels = augment, pixels
        self.temperature = positive("temperature", temperature)
        self.seed = seed_of(seed)
        self.batch_size = whole("batch_size", batch_size, 1)

    def __call__(self, encoder: nn.Module, benign: nn.Module | None = None) -> dict[str, float]:
        """Look at an encoder now.

        Args:
            encoder: images, as ``pixels`` says, to (B, D): that which is used afterwards, and where
                there are BatchNorm branches that of attacked images, see
                :func:`~advssl.keep_branch`.
            benign: that of benign images, where these have a branch of their own.

        Raises:
            ValueError: on an encoder that answers no embeddings, or none that are finite.
        """
        both = [encoder] if benign is None else [encoder, benign]
        for one in both:
            check_module("encoder", one)
        device = device_of(encoder, self.images)
        with borrowed(nn.ModuleList(both), device, self.seed):
            return self._seen(encoder, benign, device)

    def _seen(
        self, encoder: nn.Module, benign: nn.Module | None, device: torch.device
    ) -> dict[str, float]:
        labels, known = self.labels.to(device).long(), self.bank_labels.to(device).long()
        bank = self._embedded(encoder, self.bank, device)
        z = self._embedded(encoder, self.images, device)
        draw = Generator(device).manual_seed(self.seed)
        seen = dict[str, float]()

        def classified(embeddings: Embeddings) -> Tensor:
            return soft_neighbours(embeddings, bank, known, temperature=self.temperature)

        def attacked(adversary: AdversarialViewGenerator) -> Embeddings:
            adversary = copy.deepcopy(adversary)  # one that remembers nothing of this
            adversary.pixels = Pixels()
            found = []
            batches = zip(
                self._batches(self.images, device),
                torch.split(labels, self.batch_size),
                strict=True,
            )
            for x, y in batches:

                def height(view: Images) -> Tensor:
                    return F.nll_loss(classified(self._embed(encoder, view)), y, reduction="none")

                # The encoder is borrowed already: frozen, and given back.
                hard = adversary(x, height, freeze=(), generator=draw)
                found.append(self._embedded(encoder, hard, device))
            return torch.cat(found)

        for name, moved in (("fast", attacked(self.fast)), ("pgd", z_hard := attacked(self.pgd))):
            seen[f"knn_{name}"] = float((classified(moved).argmax(1) == labels).float().mean())
        answers = [classified(one).argmax(dim=1) for one in (z, z_hard)]
        seen["knn_clean"] = float((answers[0] == labels).float().mean())
        seen["pairs_kept"] = pairs_kept(labels.repeat(2), torch.cat(answers))
        seen["effective_rank"], seen["spread"] = effective_rank(z), spread_of(z)
        seen["uniformity"] = uniformity(z)
        seen["feature_deviation"] = feature_deviation(z, z_hard)
        if self.augment is not None:
            views = [self._embedded(encoder, self.augment(self.images), device) for _ in range(2)]
            seen["alignment"] = alignment(*views)
        clean = z if benign is None else self._embedded(benign, self.images, device)
        seen["critic_accuracy"] = told_apart(clean, z_hard, seed=self.seed).accuracy
        if benign is not None:
            seen["branch_accuracy"] = told_apart(clean, z, seed=self.seed).accuracy
        return seen

    def _embed(self, encoder: nn.Module, images: Images) -> Embeddings:
        return embeddings_of("the encoder", encoder(self.pixels.of(images)), len(images))

    @torch.no_grad()
    def _embedded(self, encoder: nn.Module, images: Images, device: torch.device) -> Embeddings:
        z = torch.cat([self._embed(encoder, x) for x in self._batches(images, device)])
        check_finite(z)
        return z

    def _batches(self, images: Images, device: torch.device) -> Iterator[Images]:
        return (x.to(device) for x in torch.split(images, self.batch_size))
