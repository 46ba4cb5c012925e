"""Every component on inputs that nobody chose: its formula written slowly, and its laws.

Shapes, types, temperatures, radii and patterns of labels are hypothesis's; how many of them, the
profile of ``conftest.py`` says.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import (
    TABLE_1,
    filtered,
    is_high,
    slow_cluster_fit,
    slow_local_selection,
    slow_nt_xent,
)
from torch import Tensor, nn

from advssl import (
    L2,
    AdversarialViewGenerator,
    ClusterFitHead,
    GlobalDivergenceCritic,
    HighFreqView,
    Linf,
    LocalSelectionSupCon,
    LowFreqView,
    MultiViewNTXentLoss,
    SAMWrapper,
)

TYPES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-4, torch.float16: 1e-4}

seeds = st.integers(0, 2**31)
types = st.sampled_from(list(TYPES))
temperatures = st.floats(0.05, 5)


def rows(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """Rounded to ``dtype``: of the very numbers that the oracle reads."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


class TestLosses:
    @given(
        seed=seeds,
        views=st.integers(2, 3),
        size=st.integers(1, 4),
        width=st.integers(1, 6),
        dtype=types,
        temperature=temperatures,
        learned=st.booleans(),
        positives=st.sampled_from(["mean", "sum"]),
    )
    def test_multi_view_nt_xent(
        self, seed, views, size, width, dtype, temperature, learned, positives
    ):
        z = rows(seed, views, size, width, dtype=dtype)
        assume((z != 0).any(dim=2).all())
        tau = torch.tensor(temperature, dtype=torch.float64)
        tau = nn.Parameter(tau) if learned else temperature
        loss = MultiViewNTXentLoss(tau, positives=positives, reduction="none")
        found = loss(*z)
        wanted = slow_nt_xent(z.double(), temperature, positives)
        _close(found, wanted, dtype)
        # Nobody is told apart by its place, or by its length.
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(loss(*(2 * z[:, order]).flip(0)), found[:, order].flip(0))

    @given(
        seed=seeds,
        pattern=st.lists(st.tuples(*[st.integers(-1, 2)] * 3), min_size=1, max_size=5),
        width=st.integers(1, 6),
        dtype=types,
        temperature=temperatures,
        selection=st.sampled_from(list(TABLE_1)),
        keep_twin=st.booleans(),
    )
    def test_local_selection(self, seed, pattern, width, dtype, temperature, selection, keep_twin):
        z, z_adv = pair = rows(seed, 2, len(pattern), width, dtype=dtype)
        assume((pair != 0).any(dim=2).all())
        columns = [torch.tensor(column) for column in zip(*pattern, strict=True)]
        loss = LocalSelectionSupCon(selection, temperature, keep_twin=keep_twin, reduction="none")
        found = loss(z, z_adv, *columns)
        # A negative class is one that nobody else has.
        own = [
            torch.where(c < 0, -1 - place * len(pattern) - torch.arange(len(pattern)), c)
            for place, c in enumerate(columns)
        ]
        settings = {"selection": selection, "keep_twin": keep_twin, "temperature": temperature}
        _close(found, slow_local_selection(z.double(), z_adv.double(), *own, **settings), dtype)
        order = torch.randperm(len(pattern), generator=torch.Generator().manual_seed(seed))
        mixed = loss(4 * z[order], z_adv[order], *(c[order] for c in columns))
        torch.testing.assert_close(mixed, found[order])


class TestHeads:
    @given(
        seed=seeds,
        size=st.integers(3, 12),
        width=st.integers(1, 5),
        of_features=st.integers(1, 5),
        clusters=st.sets(st.integers(2, 3), min_size=1),
        dtype=types,
    )
    def test_cluster_fit(self, seed, size, width, of_features, clusters, dtype):
        features = rows(seed, size, of_features, dtype=dtype)
        head, again = (ClusterFitHead(width, tuple(clusters)) for _ in range(2))
        head.fit(features, seed=seed)
        again.fit(features * 4, seed=seed)  # only directions count
        labels = head.pseudo_labels
        assert labels.shape == (size, len(clusters))
        assert (labels >= 0).all()
        assert (labels < torch.tensor(head.num_clusters)).all()
        assert torch.equal(labels, again.pseudo_labels)
        assert torch.equal(head.assign(features), labels)
        z, index = rows(seed + 1, size, width, dtype=dtype), torch.randperm(size)
        _close(head(z, index, "none"), slow_cluster_fit(head, z, index).tolist(), dtype)

    @given(
        seed=seeds,
        sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        width=st.integers(1, 5),
        hidden=st.lists(st.integers(1, 4), max_size=2),
        divergence=st.sampled_from(["js", "kl", "pearson", "tv"]),
        dtype=types,
    )
    def test_critic(self, seed, sizes, width, hidden, divergence, dtype):
        torch.manual_seed(seed)
        critic = GlobalDivergenceCritic(width, hidden, divergence)
        clouds = [rows(seed + i, size, width, dtype=dtype) for i, size in enumerate(sizes)]
        found = critic.estimate(*clouds)
        torch.testing.assert_close(critic.loss(*clouds), -found)
        benign, adversarial = (critic(z).double().detach().numpy() for z in clouds)

        def ratio(t):
            return np.where(t > 0, np.exp(-np.maximum(t, 0)), 1 - t)

        def sigmoid(t):
            return 1 / (1 + np.exp(-t))

        wanted = {
            "js": (np.log(sigmoid(benign)).mean() + np.log(sigmoid(-adversarial)).mean()) / 2
            + np.log(2),
            "kl": np.log(ratio(adversarial)).mean() - ratio(benign).mean() + 1,
            "pearson": 2 * ratio(adversarial).mean() - (ratio(benign) ** 2).mean() - 1,
            "tv": sigmoid(benign).mean() - sigmoid(adversarial).mean(),
        }[divergence]
        _close(found, wanted, dtype)
        # A cloud is a set.
        torch.testing.assert_close(critic.estimate(*(z.flip(0) for z in clouds)), found)


class TestViews:
    @given(
        seed=seeds,
        shape=st.tuples(*[st.integers(1, n) for n in (2, 3, 12, 12)]),
        radius=st.floats(0, 12),
        unit=st.sampled_from(["image", "pixel"]),
        dtype=types,
    )
    def test_frequencies(self, seed, shape, radius, unit, dtype):
        radius = radius / 17 if unit == "pixel" else radius
        images = rows(seed, *shape, dtype=dtype)
        high, low = (view(radius, unit=unit)(images) for view in (HighFreqView, LowFreqView))
        assert high.shape == low.shape == images.shape
        assert high.dtype == low.dtype == dtype
        if dtype in (torch.float32, torch.float64):
            kept = is_high(*shape[2:], radius, unit)
            exact = 1e-12 if dtype == torch.float64 else 1e-5
            for view, part in ((high, kept), (low, ~kept)):
                torch.testing.assert_close(
                    view.double(), filtered(images, part), rtol=0, atol=exact * 10
                )
        else:
            bits = torch.finfo(dtype).eps * 16
            torch.testing.assert_close(high + low, images, rtol=bits, atol=bits)


class TestAttacks:
    @given(
        seed=seeds,
        shape=st.tuples(*[st.integers(1, n) for n in (3, 3, 5, 5)]),
        ball=st.sampled_from([Linf, L2]),
        radius=st.floats(1e-4, 0.9),
        steps=st.integers(0, 4),
        size=st.none() | st.floats(1e-4, 1),
        start=st.sampled_from(["uniform", "gaussian", "zero"]),
        box=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), None]),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        scale=st.sampled_from([1e-12, 1.0, 1e12]),
    )
    @pytest.mark.filterwarnings("ignore:.*cannot reach the edge", "ignore:a step_size of")
    def test_adversarial_views(
        self, seed, shape, ball, radius, steps, size, start, box, dtype, scale
    ):
        low, high = box or (0.0, 1.0)
        draw = torch.Generator().manual_seed(seed)
        images = torch.rand(shape, generator=draw, dtype=dtype) * (high - low) + low
        target = torch.rand(shape, generator=draw, dtype=dtype) * (high - low) + low
        adversary = AdversarialViewGenerator(
            ball(radius * (high - low)),
            steps,
            None if size is None else size * (high - low),
            start=start,
            bounds=box,
        )

        def height(view: Tensor) -> Tensor:
            return -(view - target).square().flatten(1).sum(dim=1)

        def view(objective) -> Tensor:
            return adversary(images, objective, generator=torch.Generator().manual_seed(seed))

        hard = view(height)
        delta = (hard - images).flatten(1)
        length = delta.abs().amax(dim=1) if ball is Linf else delta.norm(dim=1)
        rounding = 1e-5 * (high - low)
        assert (length <= adversary.radius + rounding).all()
        assert box is None or (hard.min() >= low and hard.max() <= high)
        assert hard.dtype == dtype
        assert not hard.requires_grad
        assert torch.equal(hard, view(height))
        # Of a power of two nothing is rounded; of another scale signs at zero may be.
        assert torch.equal(hard, view(lambda v: height(v) * 2.0**20))
        torch.testing.assert_close(
            view(lambda v: height(v).mean() * scale), hard, rtol=0, atol=0.01 * adversary.radius
        )


class TestSharpness:
    @given(
        seed=seeds,
        width=st.integers(1, 6),
        rho=st.floats(0, 2),
        adaptive=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        scale=st.sampled_from([1e-12, 1.0, 1e12]),
    )
    def test_of_a_quadratic(self, seed, width, rho, adaptive, dtype, scale):
        """L(w) = c ½ Σ a w², whose gradient at w + e is c a (w + e)."""
        model = nn.Linear(1, width, bias=False).to(dtype)
        draw = torch.Generator().manual_seed(seed)
        curvature = torch.rand(width, 1, generator=draw, dtype=dtype) + 0.1
        w = torch.randn(width, 1, generator=draw, dtype=dtype)
        with torch.no_grad():
            model.weight.copy_(w)
        one = torch.ones(1, 1, dtype=dtype)

        def closure() -> Tensor:
            return scale * (curvature.T * model(one).square()).sum() / 2

        term = SAMWrapper(model, rho=rho, adaptive=adaptive)(closure)
        term.backward()
        slope = curvature * w
        by = w.abs() if adaptive else torch.ones_like(w)
        moved = w + rho * by * by * slope / (by * slope).norm()
        tolerance = {"rtol": 1e-4 if dtype == torch.float32 else 1e-9, "atol": 1e-12 * scale}
        torch.testing.assert_close(model.weight.grad, scale * curvature * moved, **tolerance)
        torch.testing.assert_close(
            term.detach(), scale * (curvature * moved.square()).sum() / 2, **tolerance
        )
        assert torch.equal(model.weight, w)


def _close(found: Tensor, wanted, dtype: torch.dtype) -> None:
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = torch.as_tensor(np.asarray(wanted), dtype=torch.float64)
    torch.testing.assert_close(found.double(), wanted, rtol=TYPES[dtype], atol=TYPES[dtype])
