"""The head's loss against the formula, and its checkpoint."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from clusters import FITTED, blobs, fitted, same_fit
from components import PUT_ON_WEIGHTS
from oracles import slow_cluster_fit
from ranks import on_two_ranks
from torch import nn

from advssl.heads import ClusterFitHead
from advssl.modes import frozen
from precision import LOWERED_FOR_TERMS, assert_float32s


class TestLoss:
    @pytest.fixture
    def head(self):
        return fitted()

    embeddings = blobs(12, 8, 3, seed=2)
    index = torch.randint(60, (12,), generator=torch.Generator().manual_seed(3))

    def test_is_the_formula(self, head):
        expected = slow_cluster_fit(head, self.embeddings, self.index)
        torch.testing.assert_close(
            head(self.embeddings, self.index, "none"), expected.float(), rtol=1e-5, atol=1e-5
        )
        for reduction, total in (("mean", expected.mean()), ("sum", expected.sum())):
            loss = head(self.embeddings, self.index, reduction)
            torch.testing.assert_close(loss, total.float(), rtol=1e-5, atol=1e-5)

    def test_float64_stays(self, head):
        loss = head(self.embeddings.double(), self.index, "none")
        torch.testing.assert_close(loss, slow_cluster_fit(head, self.embeddings, self.index))

    @pytest.mark.slow
    @LOWERED_FOR_TERMS
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

    @pytest.mark.parametrize("put", PUT_ON_WEIGHTS)
    def test_what_torch_puts_on_a_weight_counts(self, head, put):
        layer = nn.Linear(head.in_features, head.num_clusters[0])
        for one in (head.heads[0], layer):
            PUT_ON_WEIGHTS[put](one)
        layer.load_state_dict(head.heads[0].state_dict())
        head.eval()
        expected = layer.eval()(self.embeddings)
        torch.testing.assert_close(head.logits(self.embeddings)[0], expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_is_float32(self, head, dtype):
        expected = head(self.embeddings, self.index)
        with torch.autocast("cpu", dtype):
            loss = head(self.embeddings, self.index)
            narrow = head(self.embeddings.to(dtype), self.index)
            logits = head.logits(self.embeddings)
        assert torch.equal(loss, expected)
        assert all(map(torch.equal, logits, head.logits(self.embeddings)))
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

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
    def test_any_integer_type_is_an_index(self, head, dtype):
        loss = head(self.embeddings, self.index.to(dtype))
        assert torch.equal(loss, head(self.embeddings, self.index))

    @pytest.mark.slow
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

    def test_a_loaded_head_shares_no_memory_with_what_it_was_loaded_from(self):
        state, fresh = fitted().state_dict(), ClusterFitHead(8, (2, 5))
        fresh.load_state_dict(state)
        for value in state.values():
            value.zero_()
        assert same_fit(fresh, fitted())

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

    def test_assign_gives_no_feature_no_label(self):
        assert fitted().assign(torch.empty(0, 6)).shape == (
            0,
            fitted().assign(torch.ones(1, 6)).shape[1],
        )

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


def fit_of_rank(rank):
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
    return {**{n: getattr(head, n) for n in FITTED}, "messages": messages}


def test_rank_0_fits_for_all(tmp_path):
    alone = fitted()
    for there in on_two_ranks(fit_of_rank, tmp_path):
        assert all(torch.equal(there[name], getattr(alone, name)) for name in FITTED)
        shard, nothing, finite, few = there["messages"]
        assert re.search(r"rank 0 .*\(50, 6\).*rank 1 .*\(51, 6\)", shard)
        assert re.search(r"rank 0 .*\(60, 6\).*rank 1 .*None", nothing)
        assert "finite" in finite
        assert "5 clusters need as many examples, got 4" in few
