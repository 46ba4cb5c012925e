"""The components' formulas, written slowly from their papers in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch


def slow_nt_xent(views, temperature, positives):
    """(V, B) nested lists, from the definition: pairs (view, image), one exp at a time."""
    rows = {
        (v, b): [x / math.hypot(*z) for x in z]
        for v, view in enumerate(views)
        for b, z in enumerate(view.tolist())
    }

    def weight(a, b):
        return math.exp(sum(x * y for x, y in zip(rows[a], rows[b], strict=True)) / temperature)

    def paid(anchor):
        softmax = sum(weight(anchor, other) for other in rows if other != anchor)
        terms = [
            -math.log(weight(anchor, mate) / softmax)
            for mate in rows
            if mate != anchor and mate[1] == anchor[1]
        ]
        return sum(terms) / (len(terms) if positives == "mean" else 1)

    return [[paid((v, b)) for b in range(len(views[0]))] for v in range(len(views))]


class Row(NamedTuple):
    """One of 2B anchors: its image, label, and the class that the classifier gives it."""

    image: int
    y: int
    p: int


# Table 1 of the paper: X+ and X-, each for x_j and for x_j^a with p_j^a in place of p_j; an
# adversarial anchor has its own p_i^a in place of p_i. Row i is the anchor, row j another.
TABLE_1 = {
    "global": (lambda i, j: j.y == i.y, lambda i, j: j.y != i.y),
    "hard": (lambda i, j: j.y == i.y, lambda i, j: j.y != i.y and j.p == i.y),
    "soft": (lambda i, j: j.y == i.y, lambda i, j: j.y != i.y and j.p == i.p),
    "leaked": (
        lambda i, j: j.y == i.y and j.p == i.p,
        lambda i, j: j.y != i.y and j.p == i.p,
    ),
}


def slow_local_selection(z, z_adv, labels, p, p_adv, *, selection, keep_twin, temperature):
    """(B,) list of Lᵢ + Lᵢᵃ by Eqs. 1 and 2, one anchor, one pair and one exp at a time."""
    embeddings = [[x / math.hypot(*e) for x in e] for e in (*z.tolist(), *z_adv.tolist())]
    images = list(zip(range(len(z)), labels.tolist(), p.tolist(), strict=True))
    twins = list(zip(range(len(z)), labels.tolist(), p_adv.tolist(), strict=True))
    rows = [Row(*r) for r in images + twins]
    attracts, repels = TABLE_1[selection]

    def similarity(a, b):
        product = sum(x * y for x, y in zip(embeddings[a], embeddings[b], strict=True))
        return product / temperature

    def paid(a):
        positives, negatives = [], []
        for b, row in enumerate(rows):
            if b == a:
                continue
            if row.image == rows[a].image:  # the twin, {z_i^a} in Eq. 1
                if keep_twin or attracts(rows[a], row):
                    positives.append(b)
            elif attracts(rows[a], row):
                positives.append(b)
            elif repels(rows[a], row):
                negatives.append(b)
        softmax = sum(math.exp(similarity(a, k)) for k in positives + negatives)
        terms = [similarity(a, j) - math.log(softmax) for j in positives]
        return -sum(terms) / len(terms) if terms else 0.0

    return [paid(i) + paid(i + len(z)) for i in range(len(z))]


def is_high(height, width, radius, unit):
    """Which coefficients of numpy's ``fft2`` are at least ``radius`` from zero frequency."""
    rows, columns = np.fft.fftfreq(height), np.fft.fftfreq(width)
    if unit == "image":
        rows, columns = np.rint(rows * height), np.rint(columns * width)
    return np.hypot(rows[:, None], columns) >= radius


def filtered(images, kept):
    return torch.from_numpy(np.fft.ifft2(np.fft.fft2(images.double().numpy()) * kept).real)


def slow_cluster_fit(head, embeddings, index):
    """(B,) by -log of a softmax, one example and one classifier at a time."""
    rows = []
    for z, i in zip(embeddings.double(), index.tolist(), strict=True):
        terms = []
        for h, linear in enumerate(head.heads):
            scores = linear.weight.double() @ z + linear.bias.double()
            terms.append(scores.exp().sum().log() - scores[head.pseudo_labels[i, h]])
        rows.append(sum(terms) / len(terms))
    return torch.stack(rows)
