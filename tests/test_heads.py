"""Its k-means against scikit-learn's, its loss against the formula, its checkpoint."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

import advssl.heads
from advssl.heads import ClusterFitHead, IndexedDataset, without_index
from advssl.modes import frozen
from precision import LOWERED, assert_float32s, lowered

FITTED = ("pseudo_labels", "centroids", "fingerprint")


def blobs(size: int, dim: int, groups: int, *, spread: float = 0.5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(groups, dim, generator=generator)
    noise = spread * torch.randn(size, dim, generator=generator)
    return middles[torch.randint(groups, (size,), generator=generator)] + noise


def inertia(features, labels):
    """Sum of squared distances of unit features to their own cluster's mean, in float64."""
    unit = F.normalize(features.double())
    clusters = [unit[labels == k] for k in labels.unique()]
    return sum((members - members.mean(0)).square().sum().item() for members in clusters)


def fitted(features=None, *, in_features=8, num_clusters=(2, 5), seed=0) -> ClusterFitHead:
    torch.manual_seed(1)
    head = ClusterFitHead(in_features, num_clusters)
    head.fit(blobs(60, 6, 5) if features is None else features, seed=seed)
    return head


def same_fit(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in FITTED)


class TestKMeans:
    @pytest.mark.parametrize("k", [2, 20, 100])
    @pytest.mark.parametrize("spread", [0.5, 3.0])
    def test_is_as_tight_as_scikit_learns(self, k, spread):
        cluster = pytest.importorskip("sklearn.cluster")
        features = blobs(3000, 16, 20, spread=spread)
        unit = F.normalize(features).numpy()
        ours, theirs = [], []
        for seed in range(5):  # one start can end in a poor optimum, of either
            head = fitted(features, num_clusters=(k,), seed=seed)
            other = cluster.KMeans(k, n_init=1, random_state=seed).fit(unit)
            ours.append(inertia(features, head.pseudo_labels[:, 0]))
            theirs.append(inertia(features, torch.from_numpy(other.labels_).long()))
        assert sum(ours) <= 1.03 * sum(theirs)

    def test_equals_lloyds_iterations_written_slowly_from_the_same_start(self, monkeypatch):
        features = blobs(300, 6, 5, spread=2.0)
        unit = F.normalize(features.double())
        centroids = unit[:7]
        monkeypatch.setattr(advssl.heads, "_plus_plus", lambda *_: centroids.float())
        # Negative: no gain is too small, and only the number of iterations ends it.
        monkeypatch.setattr(advssl.heads, "_TOLERANCE", -1.0)
        monkeypatch.setattr(advssl.heads, "_MAX_ITERATIONS", 3)
        head = fitted(features, num_clusters=(7,))
        for _ in range(6):  # three on the sample, which is all rows here, and three on all rows
            labels = torch.tensor([int((centroids @ x).argmax()) for x in unit])
            centroids = F.normalize(torch.stack([unit[labels == k].sum(0) for k in range(7)]))
        labels = torch.tensor([int((centroids @ x).argmax()) for x in unit])
        assert torch.equal(head.pseudo_labels[:, 0], labels)
        torch.testing.assert_close(head.centroids.double(), centroids, rtol=0, atol=1e-6)
        assert inertia(features, head.pseudo_labels[:, 0]) == inertia(features, labels)

    def test_rows_outside_the_sample_move_the_centroids(self, monkeypatch):
        monkeypatch.setattr(advssl.heads, "_SAMPLE", 100)
        monkeypatch.setattr(advssl.heads, "_SAMPLE_PER_CLUSTER", 10)
        features = blobs(4000, 6, 5, spread=2.0)
        head = fitted(features, num_clusters=(5,))
        labels = head.pseudo_labels[:, 0]
        means = torch.stack([F.normalize(features)[labels == k].mean(0) for k in range(5)])
        assert F.cosine_similarity(means, head.centroids).min() > 0.999
        monkeypatch.setattr(advssl.heads, "_SAMPLE", 4000)
        whole = fitted(features, num_clusters=(5,)).pseudo_labels[:, 0]
        assert inertia(features, labels) <= 1.02 * inertia(features, whole)

    def test_finds_separate_groups_exactly(self):
        groups = torch.arange(60) % 5
        features = torch.eye(5, 7)[groups] + 0.01 * blobs(60, 7, 1)
        labels = fitted(features, num_clusters=(5,)).pseudo_labels[:, 0]
        together = labels[:, None] == labels
        assert torch.equal(together, groups[:, None] == groups)

    def test_ends_at_a_fixed_point(self):
        features = blobs(500, 6, 5, spread=2.0)
        head = fitted(features, num_clusters=(4,))
        unit = F.normalize(features)
        means = [unit[head.pseudo_labels[:, 0] == k].mean(0) for k in range(4)]
        cosines = F.cosine_similarity(torch.stack(means), head.centroids)
        torch.testing.assert_close(cosines, torch.ones(4), rtol=0, atol=1e-3)

    def test_only_directions_count(self):
        features = blobs(200, 6, 5)
        longer = features * torch.logspace(-3, 3, 200)[:, None]
        assert torch.equal(fitted(features).pseudo_labels, fitted(longer).pseudo_labels)

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [(torch.float32, -36, 36), (torch.float64, -290, 290), (torch.bfloat16, -30, 30)],
    )
    def test_at_every_length_that_the_type_holds(self, dtype, low, high):
        features = blobs(200, 6, 5).bfloat16().to(dtype)
        scale = torch.linspace(low, high, 200, dtype=torch.float64).div(3).round().mul(9).exp2()
        longer = (features.double() * scale[:, None]).to(dtype)  # powers of two round nothing
        head = fitted(features)
        assert torch.equal(head.pseudo_labels, fitted(longer).pseudo_labels)
        assert torch.equal(head.pseudo_labels, head.assign(longer))

    def test_goes_on_while_a_cluster_looks_for_its_place(self, monkeypatch):
        # Both spare centroids move to the outlier that is there twice, and one is empty again. By
        # then no gain counts any more.
        monkeypatch.setattr(advssl.heads, "_TOLERANCE", 1e9)
        axes = torch.eye(4)
        cloud = axes[[0, 1]].repeat(50, 1) + 0.1 * torch.randn(100, 4)
        features = torch.cat([cloud, -axes[[2, 2]], axes[3:] + 0.5 * axes[0]])
        found = advssl.heads._iterate(features, 1 / features.norm(dim=1), axes[[0, 1, 0, 0]])
        assert (found @ F.normalize(features[-3:]).T).amax(0).min() > 0.99

    def test_centroids_have_length_one(self):
        lengths = fitted().centroids.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))

    def test_same_seed_same_labels_and_the_global_generator_rests(self):
        features = blobs(300, 6, 3, spread=3.0)
        first, again, other = heads = [ClusterFitHead(8, (2, 20)) for _ in range(3)]
        state = torch.get_rng_state()
        for head, seed in zip(heads, (3, 3, 4), strict=True):
            head.fit(features, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        assert same_fit(first, again)
        assert not torch.equal(first.pseudo_labels, other.pseudo_labels)

    def test_each_k_is_clustered_as_if_alone(self):
        both, alone = fitted(num_clusters=(2, 5)), fitted(num_clusters=(5,))
        assert torch.equal(both.pseudo_labels[:, 1], alone.pseudo_labels[:, 0])

    def test_every_cluster_has_members(self):
        features = torch.cat([torch.ones(500, 4), blobs(40, 4, 40)])  # most points are one point
        labels = fitted(features, num_clusters=(30,)).pseudo_labels[:, 0]
        assert len(labels.unique()) == 30

    def test_an_empty_cluster_moves_to_the_farthest_point(self, monkeypatch):
        groups = (torch.arange(40) % 4 == 0).long()
        features = torch.eye(2, 4)[groups] + 0.01 * blobs(40, 4, 1)
        stuck = torch.eye(2, 4)[[0, 0]]  # both start on the first group: the second stays empty
        monkeypatch.setattr(advssl.heads, "_plus_plus", lambda *_: stuck)
        labels = fitted(features, num_clusters=(2,)).pseudo_labels[:, 0]
        assert torch.equal(labels, groups)

    def test_more_clusters_than_distinct_points(self):
        features = blobs(6, 4, 6).repeat(20, 1)
        labels = fitted(features, num_clusters=(50,)).pseudo_labels[:, 0]
        assert inertia(features, labels) < 1e-5
        assert torch.equal(labels, labels[:6].repeat(20))

    @pytest.mark.parametrize("zeros", [1, 30, 60])
    def test_zero_rows(self, zeros):
        features = blobs(60, 6, 5)
        features[:zeros] = 0
        head = fitted(features)
        assert head.centroids.isfinite().all()
        assert (head.pseudo_labels >= 0).all()
        rest = features[zeros:]
        if len(rest) >= 5:
            assert len(head.assign(rest)[:, 1].unique()) == 5

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions(self, dtype):
        features = blobs(200, 6, 5).to(dtype)
        assert same_fit(fitted(features), fitted(features.float()))

    def test_autocast_and_inference_mode_change_nothing(self):
        features = blobs(200, 6, 5)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            head = fitted(features.clone())
        assert same_fit(copy.deepcopy(head), fitted(features))
        assert not head.pseudo_labels.is_inference()

    def test_assign_repeats_the_labels_and_extends_them(self):
        features = blobs(200, 6, 5, spread=0.05)
        head = fitted(features)
        assert torch.equal(head.assign(features), head.pseudo_labels)
        assert torch.equal(head.assign(3 * features[:7]), head.pseudo_labels[:7])

    @LOWERED
    def test_precision_set_elsewhere_changes_nothing(self, how):
        features = blobs(500, 64, 40, spread=2.0)
        wanted = fitted(features, num_clusters=(40,))
        with lowered(how):
            head = fitted(features, num_clusters=(40,))
            assert same_fit(head, wanted)
            assert torch.equal(head.assign(features), wanted.pseudo_labels)

    def test_torchs_defaults_change_nothing(self):
        features, wanted = blobs(60, 6, 5), fitted()
        head, z, index = ClusterFitHead(8, (2, 5)), torch.randn(4, 8), torch.arange(4)
        head.load_state_dict(wanted.state_dict())
        loss = head(z, index)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                head = ClusterFitHead(8, (2, 5)).to_empty(device="cpu").float()
                head.fit(features)
                head.load_state_dict(wanted.state_dict())
                assert torch.equal(head(z, index), loss)
        finally:
            torch.set_default_dtype(torch.float32)
        assert same_fit(head, wanted)

    def test_leaves_its_features_alone(self):
        features = blobs(60, 6, 5).requires_grad_()
        before = features.detach().clone()
        head = fitted(features)
        assert torch.equal(features, before)
        assert features.grad is None
        assert not head.centroids.requires_grad

    def test_memory_does_not_grow_with_the_features(self, monkeypatch):
        monkeypatch.setattr(advssl.heads, "_MAX_ITERATIONS", 2)
        features = blobs(50_000, 64, 100).half()
        largest = Largest()
        with largest:
            ClusterFitHead(8, (100,)).fit(features)
        assert 50_000 <= largest.elements <= 2**21 < features.numel() < 50_000 * 100


class Largest(TorchDispatchMode):
    """The most elements that any operation's new output had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if torch.is_tensor(t)}
        for t in tree_leaves(result):
            if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, t.numel())
        return result


class TestLoss:
    @pytest.fixture
    def head(self):
        return fitted()

    embeddings = blobs(12, 8, 3, seed=2)
    index = torch.randint(60, (12,), generator=torch.Generator().manual_seed(3))

    def slow(self, head):
        rows = []
        for z, i in zip(self.embeddings.double(), self.index.tolist(), strict=True):
            terms = []
            for h, linear in enumerate(head.heads):
                scores = linear.weight.double() @ z + linear.bias.double()
                terms.append(scores.exp().sum().log() - scores[head.pseudo_labels[i, h]])
            rows.append(sum(terms) / len(terms))
        return torch.stack(rows)

    def test_is_the_formula(self, head):
        expected = self.slow(head)
        torch.testing.assert_close(
            head(self.embeddings, self.index, "none"), expected.float(), rtol=1e-5, atol=1e-5
        )
        for reduction, total in (("mean", expected.mean()), ("sum", expected.sum())):
            loss = head(self.embeddings, self.index, reduction)
            torch.testing.assert_close(loss, total.float(), rtol=1e-5, atol=1e-5)

    def test_float64_stays(self, head):
        loss = head(self.embeddings.double(), self.index, "none")
        torch.testing.assert_close(loss, self.slow(head))

    @LOWERED
    def test_precision_set_elsewhere_changes_neither_value_nor_any_derivative(self, how):
        head = fitted(in_features=64)
        index, z = torch.arange(8), torch.randn(8, 64)
        # To look at an index breaks the graph.
        assert_float32s(lambda z: head(z, index), z, how=how, one_graph=False)

    def test_gradients(self, head):
        head = head.double()
        z = self.embeddings.double().requires_grad_()
        weight, bias = (p.detach().clone().requires_grad_() for p in head.heads[0].parameters())

        def loss(z, weight, bias):
            given = {"heads.0.weight": weight, "heads.0.bias": bias}
            return torch.func.functional_call(head, given, (z, self.index))

        assert torch.autograd.gradcheck(loss, (z, weight, bias))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_is_float32(self, head, dtype):
        expected = head(self.embeddings, self.index)
        with torch.autocast("cpu", dtype):
            loss = head(self.embeddings, self.index)
            narrow = head(self.embeddings.to(dtype), self.index)
        assert torch.equal(loss, expected)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, expected, rtol=0, atol=0.02)

    def test_a_half_precision_head_computes_in_float32(self, head):
        expected = head(self.embeddings, self.index)
        labels = head.pseudo_labels
        head = head.bfloat16()
        assert torch.equal(head.pseudo_labels, labels)
        assert head.centroids.dtype == torch.float32
        loss = head(self.embeddings.bfloat16(), self.index)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0, atol=0.05)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_any_integer_type_is_an_index(self, head, dtype):
        loss = head(self.embeddings, self.index.to(dtype))
        assert torch.equal(loss, head(self.embeddings, self.index))

    def test_compiled(self, head):
        compiled = torch.compile(head, backend="aot_eager")
        loss = compiled(self.embeddings, self.index)
        torch.testing.assert_close(loss, head(self.embeddings, self.index))

    def test_learns_the_labels(self, head):
        features = blobs(60, 6, 5)
        head = fitted(features, in_features=6)
        optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
        for _ in range(200):
            optimizer.zero_grad()
            head(features, torch.arange(60)).backward()
            optimizer.step()
        right = [x.argmax(1) for x in head.logits(features)]
        assert (torch.stack(right, 1) == head.pseudo_labels).float().mean() > 0.95


class TestState:
    def test_round_trip_into_a_fresh_head(self, tmp_path):
        head = fitted()
        torch.save(head.state_dict(), tmp_path / "head.pt")
        state = torch.load(tmp_path / "head.pt", weights_only=True)
        fresh = ClusterFitHead(8, (2, 5))
        assert str(fresh.load_state_dict(state)) == "<All keys matched successfully>"
        assert same_fit(fresh, head)
        z, index = torch.randn(4, 8), torch.arange(4)
        assert torch.equal(fresh(z, index), head(z, index))
        state["pseudo_labels"].fill_(7)
        assert same_fit(fresh, head)  # it took a copy

    def test_round_trip_inside_a_model_through_safetensors(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.torch")
        model = nn.ModuleDict({"body": nn.Linear(3, 8), "head": fitted()})
        safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
        fresh = nn.ModuleDict({"body": nn.Linear(3, 8), "head": ClusterFitHead(8, (2, 5))})
        fresh.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
        assert same_fit(fresh["head"], model["head"])

    def test_assigned_to_a_head_on_the_meta_device(self):
        head = fitted()
        with torch.device("meta"):
            fresh = ClusterFitHead(8, (2, 5))
        fresh.load_state_dict(head.state_dict(), assign=True)
        assert same_fit(fresh, head)

    def test_an_unfitted_head_saves_and_loads_plainly(self):
        fresh = ClusterFitHead(8, (2, 5))
        state = fresh.state_dict()
        assert not set(FITTED) & set(state)
        ClusterFitHead(8, (2, 5)).load_state_dict(state)

    def test_a_fitted_head_misses_the_fit_of_an_unfitted_one(self):
        head, state = fitted(), ClusterFitHead(8, (2, 5)).state_dict()
        before = copy.deepcopy(head)
        with pytest.raises(RuntimeError, match=r"Missing key.*pseudo_labels.*centroids"):
            head.load_state_dict(state)
        head.load_state_dict(state, strict=False)
        assert same_fit(head, before)

    def test_a_partial_fit_is_reported(self):
        state = fitted().state_dict()
        del state["centroids"]
        fresh = ClusterFitHead(8, (2, 5))
        with pytest.raises(RuntimeError, match=r'Missing key.*"centroids"'):
            fresh.load_state_dict(state)
        assert fresh.pseudo_labels is None

    def test_foreign_keys_are_still_unexpected(self):
        state = fitted().state_dict() | {"stranger": torch.zeros(1)}
        with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "stranger"'):
            ClusterFitHead(8, (2, 5)).load_state_dict(state)

    def test_refuses_a_fit_of_other_data_and_stays_as_it_was(self):
        head = fitted()
        before = copy.deepcopy(head.state_dict())
        other = fitted(blobs(70, 6, 5))
        with pytest.raises(ValueError, match=r"fitted to 60 .* 70 of size 6 .* fresh head"):
            head.load_state_dict(other.state_dict())
        assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())

    def test_the_fingerprint_knows_one_changed_feature(self):
        features = blobs(60, 6, 5)
        changed = features.clone()
        changed[3, 2] += 1e-6
        one, same, other = fitted(features), fitted(features, seed=1), fitted(changed)
        assert torch.equal(one.fingerprint, same.fingerprint)
        assert not torch.equal(one.fingerprint, other.fingerprint)
        one.load_state_dict(same.state_dict())
        with pytest.raises(ValueError, match="different data"):
            one.load_state_dict(other.state_dict())

    @pytest.mark.parametrize(
        ("name", "damage", "message"),
        [
            ("pseudo_labels", lambda t: t[:, :1], r"pseudo_labels \(60, 2\)"),
            ("pseudo_labels", lambda t: t[:50], r"got \(50, 2\)"),
            ("pseudo_labels", lambda t: t + 1, "0 to K - 1"),
            ("pseudo_labels", lambda t: t - 1, "0 to K - 1"),
            ("pseudo_labels", lambda t: t.float(), "damaged or was cast"),
            ("centroids", lambda t: t[:-1], r"got .* and \(6, 6\)"),
            ("fingerprint", lambda t: t[:2], "3 integers"),
            ("fingerprint", lambda t: t.float(), "3 integers"),
        ],
    )
    def test_refuses_a_damaged_fit(self, name, damage, message):
        state = fitted().state_dict()
        state[name] = damage(state[name])
        with pytest.raises(ValueError, match=message):
            ClusterFitHead(8, (2, 5)).load_state_dict(state)

    @pytest.mark.parametrize("name", FITTED)
    @pytest.mark.parametrize("entry", [None, [1, 2, 3], "labels", 3.0, torch.tensor(True)])
    def test_refuses_entries_of_any_other_kind(self, name, entry):
        state, head = fitted().state_dict(), fitted()
        before = copy.deepcopy(head)
        with pytest.raises(ValueError, match="|".join((*FITTED, "fingerprint must"))):
            head.load_state_dict({**state, name: entry})
        assert same_fit(head, before)

    @pytest.mark.parametrize("entry", [torch.inf, torch.nan])
    def test_refuses_centroids_that_are_not_finite(self, entry):
        state = copy.deepcopy(fitted().state_dict())
        state["centroids"][1, 2] = entry
        with pytest.raises(ValueError, match="centroids must be finite"):
            ClusterFitHead(8, (2, 5)).load_state_dict(state)

    def test_refuses_a_fit_for_other_numbers_of_clusters(self):
        with pytest.raises(ValueError, match="make the head with the checkpoint's num_clusters"):
            ClusterFitHead(8, (2, 6)).load_state_dict(fitted().state_dict())

    def test_deepcopy_and_pickle(self):
        head = fitted()
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert same_fit(twin, head)
            assert twin.pseudo_labels.data_ptr() != head.pseudo_labels.data_ptr()

    def test_no_buffers_and_frozen_leaves_the_labels_in_place(self):
        head = fitted()
        assert not list(head.named_buffers())
        labels, version = head.pseudo_labels, head.pseudo_labels._version
        with frozen(head):
            head(torch.randn(4, 8), torch.arange(4))
        assert head.pseudo_labels is labels
        assert labels._version == version

    @pytest.mark.parametrize(
        "convert",
        [nn.Module.half, nn.Module.double, lambda m: m.type(torch.bfloat16), lambda m: m.to("cpu")],
    )
    def test_conversions_keep_the_types_of_the_fit(self, convert):
        head = fitted()
        before = copy.deepcopy(head)
        assert convert(head) is head
        assert same_fit(head, before)
        assert head.pseudo_labels.dtype == torch.int64

    def test_moves_with_the_module(self):
        head = fitted().to("meta")
        assert head.pseudo_labels.is_meta
        assert head.centroids.is_meta
        assert not head.fingerprint.is_meta

    def test_repr(self):
        assert ClusterFitHead(8).num_clusters == (2, 10, 50, 100, 500)
        assert "in_features=8, num_clusters=(2, 5), not fitted" in repr(ClusterFitHead(8, (2, 5)))
        assert "fitted to 60 examples of size 6" in repr(fitted())


class TestBadInput:
    @pytest.mark.parametrize(
        "num_clusters", [(), (2, 2), (1, 5), 10, "10", None, (2.5,), (True, 5), (2, None)]
    )
    def test_numbers_of_clusters(self, num_clusters):
        with pytest.raises(ValueError, match=r"num_clusters must be .*got "):
            ClusterFitHead(8, num_clusters)

    @pytest.mark.parametrize("in_features", [0, -1, 2.5, "8", None, (8,), True])
    def test_in_features(self, in_features):
        with pytest.raises(ValueError, match=r"in_features must be .*got "):
            ClusterFitHead(in_features)

    def test_numpys_numbers_are_numbers(self):
        head = ClusterFitHead(np.int64(8), np.array([2, 5]))
        assert repr(head.num_clusters) == "(2, 5)"

    def test_more_clusters_than_examples(self):
        with pytest.raises(ValueError, match="61 clusters need as many examples, got 60"):
            fitted(num_clusters=(2, 61))

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            (torch.randn(9, 2, 2), r"shape \(N, D\).*got torch.float32 of shape \(9, 2, 2\)"),
            (torch.ones(9, 2, dtype=torch.int64), "floating point.*got torch.int64"),
            (torch.full((9, 2), torch.nan), "finite"),
            (torch.tensor([[torch.inf, 1.0]] * 9), "finite"),
            ([[1.0, 2.0]] * 9, r"shape \(N, D\), got list"),
            (np.zeros((9, 2)), r"shape \(N, D\), got a ndarray"),
        ],
    )
    def test_features(self, features, message):
        head = fitted()
        before = copy.deepcopy(head)
        with pytest.raises(ValueError, match=message):
            head.fit(features)
        with pytest.raises(ValueError, match=message if "finite" not in message else "size|finite"):
            head.assign(features)
        assert same_fit(head, before)

    def test_assign_wants_the_features_that_fit_had(self):
        with pytest.raises(ValueError, match=r"fitted to features of size 6, got shape \(3, 8\)"):
            fitted().assign(torch.randn(3, 8))
        with pytest.raises(ValueError, match="finite"):
            fitted().assign(torch.full((3, 6), torch.nan))

    def test_before_fit(self):
        head = ClusterFitHead(8, (2, 5))
        with pytest.raises(ValueError, match="call fit"):
            head(torch.randn(3, 8), torch.arange(3))
        with pytest.raises(ValueError, match="call fit"):
            head.assign(torch.randn(3, 6))
        assert [tuple(x.shape) for x in head.logits(torch.randn(3, 8))] == [(3, 2), (3, 5)]

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            (torch.tensor([0, 1, 60]), r"\[0, 60\).*got 0 to 60"),
            (torch.tensor([0, -1, 5]), "got -1 to 5"),
            (torch.arange(4), "3 integers, one per embedding"),
            (torch.rand(3), "3 integers"),
            (torch.ones(3, dtype=torch.bool), "3 integers"),
            ([0, 1, 2], "index must be 3 integers"),
            (np.arange(3), "index must be 3 integers"),
        ],
    )
    def test_index(self, index, message):
        with pytest.raises(ValueError, match=message):
            fitted()(torch.randn(3, 8), index)

    @pytest.mark.parametrize(
        ("embeddings", "message"),
        [
            (torch.randn(3, 9), r"embeddings of size 8, got shape \(3, 9\)"),
            (torch.randn(3, 8, 1, 1), "flatten"),
            (torch.ones(3, 8, dtype=torch.int64), "floating point"),
            ([[0.0] * 8] * 3, "embeddings must be floating point"),
            (np.zeros((3, 8)), "embeddings must be floating point"),
        ],
    )
    def test_embeddings(self, embeddings, message):
        with pytest.raises(ValueError, match=message):
            fitted()(embeddings, torch.arange(3))

    def test_reduction(self):
        with pytest.raises(ValueError, match="reduction must be"):
            fitted()(torch.randn(3, 8), torch.arange(3), "batchmean")


def _two_ranks(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    features = blobs(60, 6, 5)
    head = ClusterFitHead(8, (2, 5))
    messages = []
    for wrong in (
        features[: 50 + rank],  # a shard each
        features if rank == 0 else None,
        torch.full_like(features, torch.nan) if rank == 0 else features,
        features[:4],
    ):
        try:
            head.fit(wrong)
        except ValueError as error:
            messages.append(str(error))
    head.fit(features if rank == 0 else torch.empty(60, 6, device="meta"))
    torch.save({**{n: getattr(head, n) for n in FITTED}, "messages": messages}, results[rank])
    dist.barrier()  # the process ends here: leaving one by one hung on torch 2.5


def test_rank_0_fits_for_all(tmp_path):
    results = [tmp_path / f"{rank}.pt" for rank in range(2)]
    torch.multiprocessing.spawn(_two_ranks, (tmp_path / "store", results), nprocs=2)
    alone = fitted()
    for path in results:
        there = torch.load(path, weights_only=True)
        assert all(torch.equal(there[name], getattr(alone, name)) for name in FITTED)
        shard, nothing, finite, few = there["messages"]
        assert re.search(r"rank 0 .*\(50, 6\).*rank 1 .*\(51, 6\)", shard)
        assert re.search(r"rank 0 .*\(60, 6\).*rank 1 .*None", nothing)
        assert "finite" in finite
        assert "5 clusters need as many examples, got 4" in few


class Photo(NamedTuple):
    image: torch.Tensor
    label: int

    def named(self):
        return ("even", "odd")[self.label]


class Numbered(NamedTuple):
    index: int  # its own
    image: torch.Tensor


@dataclass
class Record:
    image: torch.Tensor


FORMS = {  # of a sample of which the image is a number: what it is without index and with it
    "tensor": (lambda x: x, lambda x, i: (x, i)),
    "number": (float, lambda x, i: (float(x), i)),
    "pair": (lambda x: (x, 7), lambda x, i: (x, 7, i)),
    "alone in a tuple": (lambda x: (x,), lambda x, i: (x, i)),
    "named": (lambda x: Photo(x, 1), lambda x, i: (x, 1, i)),
    "index of its own": (lambda x: Numbered(9, x), lambda x, i: (9, x, i)),
    "views": (lambda x: [x, x], lambda x, i: ([x, x], i)),
    "nested": (lambda x: ([x, {"y": x}], 7), lambda x, i: ([x, {"y": x}], 7, i)),
    "dict": (lambda x: {"image": x}, lambda x, i: {"image": x, "index": i}),
    "ordered": (lambda x: OrderedDict(image=x), lambda x, i: {"image": x, "index": i}),
    "record": (Record, lambda x, i: (Record(x), i)),
}


class Numbers(Dataset):
    """Ten images that are their own place, in a form of one's own."""

    classes = ("even", "odd")

    def __init__(self, form=None):
        self.form = form
        self.transform = None

    def __len__(self):
        return 10

    def __getitem__(self, index):
        image = torch.tensor(float(index))
        image = self.transform(image) if self.transform else image
        return self.form(image) if self.form else image


class Together(Numbers):
    """Reads a batch at once, as tables and databases do, and nothing else."""

    def __getitem__(self, index):
        raise AssertionError

    def __getitems__(self, indices):
        return [torch.tensor(float(index)) for index in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))


def doubled(x):
    return 2 * x


@pytest.mark.parametrize("name", FORMS)
class TestFormsOfSamples:
    def test_hold_their_index_and_are_what_they_were(self, name):
        form, expected = FORMS[name]
        dataset = IndexedDataset(Numbers(form))
        for place in (3, np.int64(3), torch.tensor(3), -7):
            sample = dataset[place]
            assert sample == expected(torch.tensor(3.0), 3)
            twin = pickle.loads(pickle.dumps(copy.deepcopy(sample)))
            assert twin == sample
            assert type(twin) is type(sample)
            bare, index = without_index(sample)
            assert (bare, type(bare), index) == (Numbers(form)[3], type(Numbers(form)[3]), 3)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_batches_without_index_are_those_of_the_dataset(self, name, workers):
        if name == "record":
            pytest.skip("no batch of these without a collate function of one's own")
        plain = Numbers(FORMS[name][0])
        dataset = IndexedDataset(plain)
        loaders = [
            DataLoader(
                d, 4, num_workers=workers, multiprocessing_context="fork" if workers else None
            )
            for d in (plain, dataset)
        ]
        places = []
        for batch, indexed in zip(*loaders, strict=True):
            bare, index = without_index(indexed)
            places.append(index)
            assert str(bare) == str(batch)
            assert type(bare) is type(batch)
        assert torch.equal(torch.cat(places), torch.arange(10))

    def test_a_collate_function_never_sees_the_index(self, name):
        plain, seen = Numbers(FORMS[name][0]), []

        def collate(samples):
            seen.extend(samples)
            return "a batch"

        dataset = IndexedDataset(plain)
        loader = DataLoader(dataset, 5, collate_fn=dataset.with_index(collate))
        batches, places = zip(*loader, strict=True)
        assert seen == [plain[i] for i in range(10)]
        assert batches == ("a batch",) * 2
        assert torch.equal(torch.cat(places), torch.arange(10))
        assert without_index(next(iter(loader)))[0] == "a batch"


class TestIndexedDataset:
    def test_named_fields_keep_their_names_class_and_methods(self):
        photo = IndexedDataset(Numbers(FORMS["named"][0]))[3]
        assert isinstance(photo, Photo)
        assert (photo.image, photo.label, photo.index, photo.named()) == (3, 1, 3, "odd")
        assert photo._replace(label=0) == (3, 0, 3)
        assert list(photo._asdict()) == ["image", "label", "index"]
        assert repr(photo) == "Photo(image=tensor(3.), label=1, index=3)"
        numbered = IndexedDataset(Numbers(FORMS["index of its own"][0]))[3]
        assert (numbered.index, numbered.index_) == (9, 3)

    def test_is_a_sequence(self):
        dataset = IndexedDataset(Numbers())
        assert len(dataset) == 10
        assert [index for _, index in dataset] == list(range(10))
        assert dataset[-1] == (9.0, 9)
        with pytest.raises(IndexError):
            dataset[10]

    @pytest.mark.parametrize(
        "places", [slice(1, 3), [1, 2], torch.tensor([1, 2]), np.array([1, 2])]
    )
    def test_several_at_once_have_several_indices(self, places):
        dataset = IndexedDataset(TensorDataset(torch.arange(10.0), torch.arange(10)))
        x, y, index = dataset[places]
        assert x.tolist() == y.tolist() == index.tolist() == [1, 2]

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("kind", [Numbers, Together])
    def test_in_a_loader(self, kind, workers):
        loader = DataLoader(IndexedDataset(kind()), 4, num_workers=workers)
        values, index = zip(*loader, strict=True)
        assert torch.equal(torch.cat(index), torch.arange(10))
        assert torch.equal(torch.cat(values), torch.arange(10.0))

    def test_indices_of_a_part_are_those_of_the_whole_and_of_a_sum_those_of_the_sum(self):
        part, _ = random_split(IndexedDataset(Numbers()), [4, 6])
        assert all(value == index for value, index in part)
        assert IndexedDataset(Subset(Numbers(), [5, 7]))[1] == (7.0, 1)
        assert IndexedDataset(ConcatDataset([Numbers(), Numbers()]))[12] == (2.0, 12)

    def test_is_seen_through(self):
        inner = Numbers()
        dataset = IndexedDataset(inner)
        for twin in (dataset, copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
            assert twin.classes == ("even", "odd")
            with pytest.raises(AttributeError, match="targets"):
                _ = twin.targets
            twin.targets = [1]
            assert twin.dataset.targets == twin.targets == [1]
            twin.transform = doubled
            assert twin[3] == (6.0, 3)
            del twin.targets
            assert not hasattr(twin, "targets")
        assert inner.transform is doubled
        dataset.dataset = Numbers()
        assert dataset[3] == (3.0, 3)

    def test_lightlys_collate_function_works_on_it(self):
        data = pytest.importorskip("lightly.data.multi_view_collate")
        samples = [([torch.full((1,), float(i))] * 2, i % 2, f"{i}.png") for i in range(4)]
        dataset = IndexedDataset(samples)
        collate = dataset.with_index(data.MultiViewCollate())
        ((x0, _), labels, names), index = next(iter(DataLoader(dataset, 4, collate_fn=collate)))
        assert x0.flatten().tolist() == index.tolist() == [0, 1, 2, 3]
        assert labels.tolist() == [0, 1, 0, 1]
        assert names == ["0.png", "1.png", "2.png", "3.png"]

    @pytest.mark.parametrize("dataset", [Stream(), iter([1]), {1, 2}, 5])
    def test_refuses_what_has_no_index(self, dataset):
        with pytest.raises(ValueError, match="__getitem__ and __len__, got"):
            IndexedDataset(dataset)

    def test_refuses_what_would_be_overwritten_and_a_batch_that_lost_it(self):
        with pytest.raises(ValueError, match="an entry 'index' of its own"):
            IndexedDataset([{"index": 1}])[0]
        for batch in (torch.zeros(2), {"image": 1}, [torch.zeros(2)]):
            with pytest.raises(ValueError, match=r"there is no index in .*with_index\(collate_fn"):
                without_index(batch)
