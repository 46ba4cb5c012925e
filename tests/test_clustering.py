"""K-means against scikit-learn's and against Lloyd's iterations written slowly."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from clusters import blobs, fitted, inertia, same_fit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import advssl.clustering
from advssl.heads import ClusterFitHead
from precision import LOWERED, lowered


class TestKMeans:
    @pytest.mark.slow
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
        monkeypatch.setattr(advssl.clustering, "_plus_plus", lambda *_: centroids.float())
        # Negative: no gain is too small, and only the number of iterations ends it.
        monkeypatch.setattr(advssl.clustering, "_TOLERANCE", -1.0)
        monkeypatch.setattr(advssl.clustering, "_MAX_ITERATIONS", 3)
        head = fitted(features, num_clusters=(7,))
        for _ in range(6):  # three on the sample, which is all rows here, and three on all rows
            labels = torch.tensor([int((centroids @ x).argmax()) for x in unit])
            centroids = F.normalize(torch.stack([unit[labels == k].sum(0) for k in range(7)]))
        labels = torch.tensor([int((centroids @ x).argmax()) for x in unit])
        assert torch.equal(head.pseudo_labels[:, 0], labels)
        torch.testing.assert_close(head.centroids.double(), centroids, rtol=0, atol=1e-6)
        assert inertia(features, head.pseudo_labels[:, 0]) == inertia(features, labels)

    def test_rows_outside_the_sample_move_the_centroids(self, monkeypatch):
        monkeypatch.setattr(advssl.clustering, "_SAMPLE", 100)
        monkeypatch.setattr(advssl.clustering, "_SAMPLE_PER_CLUSTER", 10)
        features = blobs(4000, 6, 5, spread=2.0)
        head = fitted(features, num_clusters=(5,))
        labels = head.pseudo_labels[:, 0]
        means = torch.stack([F.normalize(features)[labels == k].mean(0) for k in range(5)])
        assert F.cosine_similarity(means, head.centroids).min() > 0.999
        monkeypatch.setattr(advssl.clustering, "_SAMPLE", 4000)
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
        monkeypatch.setattr(advssl.clustering, "_TOLERANCE", 1e9)
        axes = torch.eye(4)
        cloud = axes[[0, 1]].repeat(50, 1) + 0.1 * torch.randn(100, 4)
        features = torch.cat([cloud, -axes[[2, 2]], axes[3:] + 0.5 * axes[0]])
        found = advssl.clustering._iterate(features, 1 / features.norm(dim=1), axes[[0, 1, 0, 0]])
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
        monkeypatch.setattr(advssl.clustering, "_plus_plus", lambda *_: stuck)
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

    def test_leaves_its_features_alone(self):
        features = blobs(60, 6, 5).requires_grad_()
        before = features.detach().clone()
        head = fitted(features)
        assert torch.equal(features, before)
        assert features.grad is None
        assert not head.centroids.requires_grad

    def test_memory_does_not_grow_with_the_features(self, monkeypatch):
        monkeypatch.setattr(advssl.clustering, "_MAX_ITERATIONS", 2)
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
