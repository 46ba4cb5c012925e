"""How cost grows: exponents of power laws; and what an import adds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from unittest import mock

import torch

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss, losses
from rows.attacks import RADIUS, network, photographs
from rows.clusters import ours, seeded, unit_features
from rows.losses import embeddings, with_gradient
from rows.measuring import Bench, Call, Claim, Row, exponent


def imported(bench: Bench) -> Row:
    """``import advssl`` after the torch that it needs, timed in processes of their own."""
    script = (
        "import time; begun = time.perf_counter(); import torch; between = time.perf_counter(); "
        "import advssl; print(between - begun, time.perf_counter() - between)"
    )
    pairs = []
    for _ in range(bench.sizes.imports + 1):  # the first brings the files into memory
        told = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE)
        pairs.append([float(seconds) for seconds in told.stdout.split()])
    alone, more = zip(*pairs[1:], strict=True)
    times = {"import torch": [1000 * t for t in alone], "import advssl": [1000 * t for t in more]}
    medians = {"ours": 1000 * median(more), "other": 1000 * median(alone)}
    claim = Claim("import advssl, after torch", "import torch", more, 0.15, "s", **medians)
    return Row([claim], times)


def attack_steps(bench: Bench) -> Row:
    """Time and memory of an attack in its steps, on a narrow encoder."""
    narrow = replace(bench, sizes=replace(bench.sizes, width=max(bench.sizes.width // 4, 2)))
    model, images, loss = network(narrow, 128), photographs(bench), MultiViewNTXentLoss(0.5)
    with torch.no_grad():
        z = model(images)

    def call(steps: int) -> Call:
        adversary = AdversarialViewGenerator(Linf(RADIUS), steps, 2 * RADIUS / steps)
        return lambda: adversary(images, lambda v: loss(model(v), z), freeze=model)

    sizes = bench.sizes.attack_steps
    row = grown(bench, "attack, time in its steps", sizes, call, 1.05)
    row.memory = {str(steps): bench.peak(call(steps)) for steps in sizes}
    slope = exponent(sizes, row.memory.values())
    row.claims.append(
        Claim(f"attack, peak memory in its steps {_to(sizes)}", "", [slope], 0.02, "exponent")
    )
    return row


def nt_xent_batch(bench: Bench) -> Row:
    def call(size: int) -> Call:
        views = embeddings(bench, 2, size, bench.sizes.dim)
        return with_gradient(lambda: MultiViewNTXentLoss(0.5)(*views), views)

    return grown(bench, "NT-Xent of two views, time in B", bench.sizes.batches, call, 2.0)


def nt_xent_views(bench: Bench) -> Row:
    def call(count: int) -> Call:
        views = embeddings(bench, count, bench.sizes.nt_xent[0], bench.sizes.dim)
        return with_gradient(lambda: MultiViewNTXentLoss(0.5)(*views), views)

    return grown(bench, "NT-Xent, time in V", bench.sizes.view_counts, call, 2.0)


def nt_xent_blocks(bench: Bench) -> Row:
    """Memory of NT-Xent whose similarities come in blocks, smaller ones than it takes by itself."""
    sizes = bench.sizes.blocked_views

    def peak(rows: int) -> float:
        views = embeddings(bench, 2, rows // 2, bench.sizes.dim)
        return bench.peak(with_gradient(lambda: MultiViewNTXentLoss(0.5)(*views), views))

    with mock.patch.object(losses, "_BLOCK", sizes[0] ** 2 // 4):
        memory = {str(rows): peak(rows) for rows in sizes}
    what = f"NT-Xent in blocks, peak memory in V·B {_to(sizes)}"
    claim = Claim(what, "", [exponent(sizes, memory.values())], 1.05, "exponent")
    return Row([claim], memory=memory)


def k_means_clusters(bench: Bench) -> Row:
    features = unit_features(bench)[: bench.sizes.points[0] // 4]
    return grown(
        bench,
        "k-means, time in K",
        bench.sizes.clusters,
        lambda k: seeded(ours(features, k), []),
        1.0,
    )


def grown(
    bench: Bench, what: str, sizes: Sequence[int], call: Callable[[int], Call], goal: float
) -> Row:
    """The exponent of every turn's times; growing faster than ``goal`` says is a miss."""
    turns = bench.turns({str(size): call(size) for size in sizes})
    fitted = [exponent(sizes, spent) for spent in zip(*turns.times.values(), strict=True)]
    return Row([Claim(f"{what} {_to(sizes)}", "", fitted, goal, "exponent")], turns.times)


def _to(sizes: Sequence[int]) -> str:
    return f"= {sizes[0]} to {sizes[-1]}"
