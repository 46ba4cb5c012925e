"""One BatchNorm per branch: separate in statistics and affine parameters, plain again on demand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from advssl.branches import BranchBatchNorm, branch_batchnorm, keep_branch, on_branch


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 5),
        nn.BatchNorm1d(5),
    )


@pytest.fixture
def branched() -> nn.Module:
    return branch_batchnorm(net())


def statistics(model: nn.Module, name: str) -> list[torch.Tensor]:
    norms = [m for m in model.modules() if isinstance(m, BranchBatchNorm)]
    return [b.clone() for m in norms for b in m[name].buffers()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_branch_starts_as_the_plain_model(images):
    plain = net()
    for mode in (True, False):
        plain.train(mode)
        model = branch_batchnorm(copy.deepcopy(plain))
        assert [m.training for m in model] == [m.training for m in plain]
        for name in ("clean", "adversarial"):
            with on_branch(model, name):
                assert torch.equal(model(images), copy.deepcopy(plain)(images))


def test_only_the_branch_that_is_on_moves_and_learns(branched, images):
    clean, adversarial = (statistics(branched, n) for n in ("clean", "adversarial"))
    with on_branch(branched, "adversarial"):
        branched(images).sum().backward()
    assert same(statistics(branched, "clean"), clean)
    assert not same(statistics(branched, "adversarial"), adversarial)
    for name, p in branched.named_parameters():
        assert (p.grad is None) == (".clean." in name), name


def test_eval_mode_uses_the_statistics_of_the_branch(branched, images):
    """timm's SplitBatchNorm cannot: its second set is for training only."""
    with on_branch(branched, "adversarial"):
        for _ in range(30):
            branched(images * 3 + 1)
    branched.eval()
    with on_branch(branched, "adversarial"):
        adversarial = branched(images)
    assert not torch.allclose(branched(images), adversarial)
    alone = keep_branch(branched, "adversarial")
    assert torch.equal(alone(images), adversarial)


def test_blocks_nest_and_end_with_an_exception(branched):
    norm = branched[1]
    assert norm.active == "clean"
    with on_branch(branched, "adversarial"):
        with on_branch(branched, "clean"):
            assert norm.active == "clean"
        assert norm.active == "adversarial"
        with pytest.raises(KeyError), on_branch(branched, "clean"):
            raise KeyError
        assert norm.active == "adversarial"
    assert norm.active == "clean"


def test_any_number_of_branches_with_names_of_their_own(images):
    model = branch_batchnorm(net(), ("normal", "pgd", "pgd_ce"))
    for name in ("normal", "pgd", "pgd_ce"):
        with on_branch(model, name):
            model(images + ord(name[-1]))
    found = [statistics(model, n)[0] for n in ("normal", "pgd", "pgd_ce")]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


def test_a_plain_checkpoint_loads_into_every_branch(branched, images):
    plain = net()
    plain(images)
    plain.eval()
    state = plain.state_dict()
    branched.load_state_dict(state)
    assert state.keys() == plain.state_dict().keys()
    branched.eval()
    for name in ("clean", "adversarial"):
        with on_branch(branched, name):
            assert torch.equal(branched(images), plain(images))


def test_a_branched_checkpoint_loads_and_a_kept_branch_is_plain_again(branched, images):
    with on_branch(branched, "adversarial"):
        branched(images)
    again = branch_batchnorm(net())
    again.load_state_dict(branched.state_dict())
    assert same(statistics(again, "adversarial"), statistics(branched, "adversarial"))

    plain = net()
    plain.load_state_dict(keep_branch(branched, "adversarial").state_dict())
    assert same(list(plain.buffers()), statistics(branched, "adversarial"))
    assert branched[1].keys() == {"clean", "adversarial"}  # the model itself is left alone


def test_a_checkpoint_that_lacks_something_says_so(branched):
    state = net().state_dict()
    del state["1.running_mean"]
    with pytest.raises(RuntimeError, match=r"Missing.*1\.clean\.running_mean"):
        branched.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected"):
        net().load_state_dict(branched.state_dict())


def test_deepcopy_is_independent(branched, images):
    twin = copy.deepcopy(branched)
    with on_branch(twin, "adversarial"):
        assert branched[1].active == "clean"
        twin(images)
    assert not same(statistics(twin, "adversarial"), statistics(branched, "adversarial"))


def test_a_batchnorm_alone_and_one_that_is_shared(images):
    alone = branch_batchnorm(nn.BatchNorm2d(3))
    assert isinstance(alone, BranchBatchNorm)
    assert type(keep_branch(alone, "clean")) is nn.BatchNorm2d
    norm = nn.BatchNorm2d(3)
    shared = branch_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
    assert shared[0] is shared[2]
    kept = keep_branch(shared, "clean")
    assert kept[0] is kept[2]
    shared(images)


def test_converts_to_sync_batchnorm(branched, images):
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(branched))
    assert type(sync[1]["adversarial"]) is nn.SyncBatchNorm
    with on_branch(sync.eval(), "adversarial"), on_branch(branched.eval(), "adversarial"):
        assert torch.equal(sync(images), branched(images))
    again = branch_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(net()))
    assert type(again[1]["clean"]) is nn.SyncBatchNorm


def test_subclasses_keep_their_activation(images):
    from timm.layers import BatchNormAct2d

    model = branch_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)))
    for name in ("clean", "adversarial"):
        with on_branch(model, name):
            out = model(images)
            assert out.min() == 0
            assert out.max() > 0


def test_a_timm_resnet_with_a_lightly_head(images):
    import timm
    from lightly.models.modules import SimCLRProjectionHead

    model = branch_batchnorm(
        nn.Sequential(
            timm.create_model("resnet10t", num_classes=0), SimCLRProjectionHead(512, 32, 8)
        )
    )
    z = model(images.repeat(1, 1, 4, 4))
    with on_branch(model, "adversarial"):
        assert torch.equal(model(images.repeat(1, 1, 4, 4)), z)


def test_a_compiled_model_has_one_graph_per_branch_and_mode(branched, images):
    graphs = []

    def backend(graph, inputs):  # noqa: ARG001
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(branched, backend=backend)
    for _ in range(2):
        for mode in (True, False):
            compiled.train(mode)
            for name in ("clean", "adversarial"):
                with on_branch(compiled, name):
                    expected = copy.deepcopy(branched)(images)
                    torch.testing.assert_close(compiled(images), expected)
    assert len(graphs) == 4


class TestActivationCheckpointing:
    """Recomputation happens after the context has closed: right, or an error."""

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_block_around_it_is_an_error(self, branched, images, reentrant):
        with on_branch(branched, "adversarial"):
            out = checkpoint(branched, images.requires_grad_(), use_reentrant=reentrant)
        with pytest.raises(
            RuntimeError, match=r"recomputed during backward.*on_branch\(model, name"
        ):
            out.sum().backward()

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_block_inside_it_is_right(self, branched, images, reentrant):
        twin = copy.deepcopy(branched)

        def forward(x):
            with on_branch(branched, "adversarial"):
                return branched(x)

        checkpoint(forward, images.requires_grad_(), use_reentrant=reentrant).pow(
            3
        ).sum().backward()
        with on_branch(twin, "adversarial"):
            twin(images).pow(3).sum().backward()
        for (name, p), q in zip(branched.named_parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad)


class TestErrors:
    @pytest.mark.parametrize("branches", [(), ("a", "a"), "clean"])
    def test_names(self, branches):
        with pytest.raises(ValueError, match="one or more different names, got"):
            branch_batchnorm(net(), branches)

    @pytest.mark.parametrize("branches", [("a.b",), ("",), ("keys",), ("training",), ("active",)])
    def test_names_that_cannot_be(self, branches):
        with pytest.raises(ValueError, match="plain words, got"):
            branch_batchnorm(net(), branches)

    def test_twice(self, branched):
        with pytest.raises(ValueError, match="has BatchNorm branches already"):
            branch_batchnorm(branched)

    def test_nothing_to_branch(self):
        with pytest.raises(ValueError, match="no BatchNorm to branch"):
            branch_batchnorm(nn.Linear(2, 2))

    def test_lazy(self):
        with pytest.raises(ValueError, match="run one batch through the model first"):
            branch_batchnorm(nn.Sequential(nn.LazyBatchNorm2d()))

    @pytest.mark.parametrize("use", [keep_branch, lambda m, n: on_branch(m, n).__enter__()])
    def test_unknown(self, branched, use):
        with pytest.raises(
            ValueError, match=r"no BatchNorm branch 'pgd'; this model has \['clean'"
        ):
            use(branched, "pgd")
        with pytest.raises(ValueError, match="call branch_batchnorm"):
            use(net(), "clean")


def test_says_which_branch_is_on(branched):
    with on_branch(branched, "adversarial"):
        assert "active='adversarial'" in repr(branched)
