"""One BatchNorm per branch: separate in statistics and affine parameters, plain again on demand."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from ranks import WORLD, on_two_ranks
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from advssl.branches import BranchBatchNorm, branch_batchnorm, keep_branch, on_branch
from advssl.distributed import average, gather, rank, world_size


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
    assert isinstance(sync[1]["adversarial"], nn.SyncBatchNorm)
    with on_branch(sync.eval(), "adversarial"), on_branch(branched.eval(), "adversarial"):
        assert torch.equal(sync(images), branched(images))
    again = branch_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(net()))
    assert isinstance(again[1]["clean"], nn.SyncBatchNorm)


def test_subclasses_keep_their_activation(images):
    from timm.layers import BatchNormAct2d

    model = branch_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)))
    for name in ("clean", "adversarial"):
        with on_branch(model, name):
            out = model(images)
            assert out.min() == 0
            assert out.max() > 0


def test_a_kept_branch_is_plain_inside_too():
    from timm.layers import SplitBatchNorm2d

    plain = nn.Sequential(SplitBatchNorm2d(3))
    kept = keep_branch(branch_batchnorm(copy.deepcopy(plain)), "clean")
    assert [type(m) for m in kept.modules()] == [type(m) for m in plain.modules()]


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


@pytest.mark.slow
def test_a_compiled_model_has_one_graph_per_branch_and_mode(branched, images):
    graphs = []

    def backend(graph, inputs):  # noqa: ARG001
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # graphs of tests before count towards a limit of its own
    compiled = torch.compile(branched, backend=backend)
    for _ in range(2):
        for mode in (True, False):
            compiled.train(mode)
            for name in ("clean", "adversarial"):
                with on_branch(compiled, name):
                    expected = copy.deepcopy(branched)(images)
                    torch.testing.assert_close(compiled(images), expected)
    assert len(graphs) == 4


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def plain_state(model: nn.Module) -> nn.Module:
    model.load_state_dict(net().state_dict(), assign=True)
    return model


def shared_state(model: nn.Module) -> nn.Module:
    """Of a model whose branches shared memory; ``torch.save`` keeps that."""
    state = branch_batchnorm(net()).state_dict()
    state = {k: state[k.replace("adversarial", "clean")] for k in state}
    model.load_state_dict(through_file(state), assign=True)
    return model


def shared_state_over_meta(model: nn.Module) -> nn.Module:
    with torch.device("meta"):
        model = branch_batchnorm(net())
    return shared_state(model)


def one_branch_from_the_other(model: nn.Module) -> nn.Module:
    for norm in (model[1], model[5]):
        norm["clean"].load_state_dict(norm["adversarial"].state_dict(), assign=True)
    return model


def one_layer_for_both(model: nn.Module) -> nn.Module:
    for norm in (model[1], model[5]):
        norm["adversarial"] = norm["clean"]
    return model


def emptied(model: nn.Module) -> nn.Module:
    return plain_state(model.to("meta").to_empty(device="cpu"))


def branched_on_meta(model: nn.Module) -> nn.Module:  # noqa: ARG001
    with torch.device("meta"):
        return branch_batchnorm(net()).to_empty(device="cpu")


def swapped(model: nn.Module) -> nn.Module:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return plain_state(model).double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize(
    "filled",
    [
        plain_state,
        shared_state,
        shared_state_over_meta,
        one_branch_from_the_other,
        one_layer_for_both,
        emptied,
        branched_on_meta,
        swapped,
        copy.deepcopy,
        through_file,
        lambda model: copy.deepcopy(plain_state(model)),
        lambda model: through_file(plain_state(model)),
        lambda model: plain_state(nn.SyncBatchNorm.convert_sync_batchnorm(model)),
    ],
)
def test_every_branch_has_memory_of_its_own_however_it_was_filled(branched, filled):
    model = filled(branched)
    memories = [
        {
            t.untyped_storage().data_ptr()
            for norm in (model[1], model[5])
            for t in tensors(norm[name])
        }
        for name in ("clean", "adversarial")
    ]
    assert all(len(memory) == 10 for memory in memories)
    assert memories[0].isdisjoint(memories[1])


class Noted(nn.BatchNorm2d):
    """Keeps in checkpoints what is no tensor."""

    note = "as it was made"

    def get_extra_state(self) -> str:
        return self.note

    def set_extra_state(self, state: str) -> None:
        self.note = state


@pytest.mark.parametrize("assign", [False, True])
def test_every_branch_gets_what_a_checkpoint_holds_beside_tensors(assign):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), Noted(4))
    model = branch_batchnorm(copy.deepcopy(plain))
    plain[1].note = "as it was saved"
    model.load_state_dict(plain.state_dict(), assign=assign)
    assert [branch.note for branch in model[1].values()] == ["as it was saved"] * 2


def tensors(norm: nn.Module) -> list[torch.Tensor]:
    return [*norm.parameters(), *norm.buffers()]


def test_norms_that_share_a_weight_share_it_in_each_branch():
    model = net().append(nn.BatchNorm1d(5))
    model[6].weight = model[5].weight
    model = branch_batchnorm(model)
    for name in ("clean", "adversarial"):
        assert model[6][name].weight is model[5][name].weight
    assert model[6]["clean"].weight is not model[5]["adversarial"].weight


def lightning(batches, model: nn.Module) -> None:
    """As its callback does before the last epoch and after it."""
    from pytorch_lightning import LightningModule
    from pytorch_lightning.callbacks import StochasticWeightAveraging

    averaging, module = StochasticWeightAveraging(0.1), LightningModule()
    module.model = model
    averaging.reset_batch_norm_and_save_state(module)
    for x in batches:
        model(x)
    averaging.reset_momenta()


def precise(batches, model: nn.Module) -> None:
    """As fvcore's ``update_bn_stats``: an estimate that saw nothing has mean and variance zero."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    ran: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: ran.add(m)) for m in norms]
    seen = [(torch.zeros_like(m.running_mean), torch.zeros_like(m.running_var)) for m in norms]
    for m in norms:
        m.momentum = 1.0
    for count, x in enumerate(batches, 1):
        model(x)
        for m, (mean, var) in zip(norms, seen, strict=True):
            if m in ran:
                mean += (m.running_mean - mean) / count
                var += (m.running_var - var) / count
    for m, momentum, (mean, var) in zip(norms, momenta, seen, strict=True):
        m.running_mean, m.running_var, m.momentum = mean, var, momentum
    for hook in hooks:
        hook.remove()


def by_size(batches, model: nn.Module) -> None:
    """As torchcontrib's ``bn_update``, whose momentum is never None."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.running_mean = torch.zeros_like(m.running_mean)
        m.running_var = torch.ones_like(m.running_var)
    for count, x in enumerate(batches, 1):
        for m in norms:
            m.momentum = 1 / count
        model(x)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def assigned(batches, model: nn.Module) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:
        m.running_mean, m.running_var = torch.zeros_like(m.running_mean), m.running_var * 0 + 1
        m.num_batches_tracked, m.momentum = torch.tensor(0), None
    for x in batches:
        model(x)
    for m in norms:
        m.momentum = 0.1


def reset(batches, model: nn.Module) -> None:
    """And momentum stays as it is set here."""
    for m in model.modules():
        if hasattr(m, "reset_running_stats"):
            m.reset_running_stats()
            m.momentum = None
    for x in batches:
        model(x)


class TestToolsThatWalkOverBatchNorms:
    """Statistics are recomputed for the branches that run, and kept for the others."""

    @pytest.fixture
    def batches(self):
        return list(torch.rand(3, 8, 3, 8, 8, generator=torch.Generator().manual_seed(3)))

    @pytest.fixture
    def trained(self, branched, images):
        for name in ("clean", "adversarial"):
            with on_branch(branched, name):
                branched(images + len(name))
        return branched

    TOOLS = pytest.mark.parametrize(
        "tool", [update_bn, lightning, precise, by_size, assigned, reset]
    )

    @TOOLS
    @pytest.mark.parametrize(
        "taken",
        [
            lambda m: m,
            copy.deepcopy,
            through_file,
            lambda m: AveragedModel(m, use_buffers=True).module,
        ],
    )
    @pytest.mark.parametrize("name", ["clean", "adversarial"])
    def test_recompute_the_branch_that_is_on(self, trained, batches, tool, taken, name):
        (other,) = {"clean", "adversarial"} - {name}
        model = taken(trained)
        kept, alone = statistics(model, other), keep_branch(model, name)
        with on_branch(model, name):
            tool(batches, model)
        assert same(statistics(model, other), kept)
        tool(batches, alone)
        for found, wanted in zip(statistics(model, name), alone.buffers(), strict=True):
            torch.testing.assert_close(found, wanted)

    @TOOLS
    def test_recompute_every_branch_that_the_model_runs(self, batches, tool):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = trained

            def forward(self, x):
                for name in ("pgd", "adversarial"):
                    with on_branch(self.encoder, name):
                        self.encoder(x)

        model = net()
        model(batches[0] * 3)
        trained = branch_batchnorm(model, ("clean", "pgd", "adversarial"))
        clean = statistics(trained, "clean")  # on outside, but it does not run
        alone = keep_branch(trained, "adversarial")
        tool(batches, Both())
        tool(batches, alone)
        assert same(statistics(trained, "clean"), clean)
        for name in ("pgd", "adversarial"):
            for found, wanted in zip(statistics(trained, name), alone.buffers(), strict=True):
                torch.testing.assert_close(found, wanted)

    @pytest.mark.parametrize("tool", [update_bn, lightning, precise, by_size, assigned])
    @pytest.mark.parametrize("again", [1, 2])
    @torch.no_grad()
    def test_training_goes_on_from_what_was_kept(self, trained, batches, tool, again):
        twin = copy.deepcopy(trained)
        for _ in range(again):
            tool(batches, trained)
        for model in (trained, twin):
            with on_branch(model, "adversarial"):
                model(batches[0])
        assert same(statistics(trained, "adversarial"), statistics(twin, "adversarial"))

    @pytest.mark.parametrize("new", [nn.BatchNorm2d, lambda n: nn.GroupNorm(1, n)])
    @pytest.mark.parametrize("put", [setattr, lambda m, name, new: m._modules.update({name: new})])
    def test_exchange_a_layer_in_every_branch(self, trained, put, new, images):
        for parent in list(trained.modules()):
            for name, norm in list(parent.named_children()):
                if isinstance(norm, nn.BatchNorm2d):
                    put(parent, name, new(4))
        with on_branch(trained, "adversarial"):
            trained(images)
        trained.load_state_dict(keep_branch(trained, "clean").state_dict(), assign=True)
        clean, adversarial = (trained[1][name].weight for name in ("clean", "adversarial"))
        assert torch.equal(clean, adversarial)
        assert clean.data_ptr() != adversarial.data_ptr()
        assert type(keep_branch(trained, "clean")[1]) is type(new(4))

    def test_what_is_loaded_is_not_taken_for_a_reset(self, trained):
        with torch.no_grad():
            trained.load_state_dict(net().state_dict(), assign=True)
        assert not trained[1]["adversarial"].running_mean.any()

    def test_reset_parameters_is_at_once(self, trained):
        trained[1]["adversarial"].reset_parameters()
        assert not trained[1]["adversarial"].running_mean.any()

    def test_a_branch_is_seen_as_its_class(self, branched):
        assert isinstance(branched[1]["clean"], nn.BatchNorm2d)
        assert "(clean): BatchNorm2d(4, eps" in repr(branched)


class Whitening(nn.Module):
    """A layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4, 1, 1))

    def forward(self, x):
        if self.training:
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.detach().mean((0, 2, 3), True)[0]
        return x - self.running_mean


class Kept(nn.Module):
    """A running mean that is no buffer."""

    def __init__(self, parameter: bool, name: str) -> None:
        super().__init__()
        mean = torch.zeros(4, 1, 1)
        setattr(self, name, nn.Parameter(mean, requires_grad=False) if parameter else mean)
        self.name = name

    def forward(self, x):
        mean = getattr(self, self.name)
        if self.training:
            mean.data.lerp_(x.detach().mean((0, 2, 3))[:, None, None], 0.1)
        return x - mean


class Centre(nn.Module):
    """As lightly's losses have one: updated by its own method."""

    def __init__(self) -> None:
        super().__init__()
        self.momentum = 0.9
        self.register_buffer("center", torch.zeros(4))


class Averaging(nn.Module):
    """Under other names, and its rate under another still."""

    def __init__(self, name: str, rate: str) -> None:
        super().__init__()
        self.name, self.rate = name, 0.1
        if rate:
            setattr(self, rate, 0.1)
        self.register_buffer(name, torch.zeros(4, 1, 1))

    def forward(self, x):
        mean = getattr(self, self.name)
        if self.training:
            mean.lerp_(x.detach().mean((0, 2, 3))[:, None, None], self.rate)
        return x - mean


def evo_norm() -> nn.Module:
    from timm.layers import EvoNorm2dB0

    return EvoNorm2dB0(4)


AVERAGES = (
    "_running_mean",
    "runningMean",
    "moving_average",
    "ema_mean",
    "mean_ema",
    "avg",
    "pop_mean",
)


class TestOtherLayers:
    @pytest.mark.parametrize("beside", [nn.BatchNorm2d, nn.Identity])
    @pytest.mark.parametrize(
        "layer",
        [
            lambda: nn.InstanceNorm2d(4, track_running_stats=True),
            lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            evo_norm,
            Whitening,
            *(
                lambda parameter=parameter, name=name: Kept(parameter, name)
                for parameter in (False, True)
                for name in ("running_mean", "ema_mean")
            ),
            *(lambda name=name: Averaging(name, "") for name in AVERAGES),
            *(lambda rate=rate: Averaging("mean", rate) for rate in ("momentum", "decay")),
        ],
    )
    def test_with_running_statistics_have_branches(self, images, layer, beside):
        model = branch_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), beside(4), layer()))
        with torch.no_grad(), on_branch(model, "clean"):
            before = model.eval()(images)
        with torch.no_grad(), on_branch(model, "adversarial"):
            model.train()(1 - images)
            assert not torch.equal(model.eval()(images), before)
        with torch.no_grad(), on_branch(model, "clean"):
            assert torch.equal(model(images), before)
        assert type(keep_branch(model, "clean")[2]) is type(layer())

    def test_without_them_are_shared(self):
        model = nn.Sequential(
            nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4)
        )
        assert isinstance(branch_batchnorm(model)[1], nn.InstanceNorm2d)
        assert isinstance(model[2], nn.GroupNorm)

    def test_what_is_no_average_of_a_layer_is_shared(self):
        model = nn.Sequential(nn.BatchNorm2d(4), Averaging("mean", ""), Averaging("std", ""))
        model.momentum = 0.99  # of a teacher
        model.register_buffer("queue", torch.zeros(4))
        model.running_loss = torch.zeros(4)
        model.loss = Centre()
        branch_batchnorm(model)
        assert [type(m) for m in model] == [BranchBatchNorm, Averaging, Averaging, Centre]

    def test_around_others_are_refused(self):
        whole = Whitening()
        whole.body = nn.Linear(2, 2)
        with pytest.raises(ValueError, match="Whitening has running statistics beside submodules"):
            branch_batchnorm(nn.Sequential(nn.BatchNorm2d(4), whole))

    def test_lazy(self):
        lazy = nn.LazyInstanceNorm2d(track_running_stats=True)
        with pytest.raises(ValueError, match="LazyInstanceNorm2d has no shape yet"):
            branch_batchnorm(nn.Sequential(nn.BatchNorm2d(4), lazy))


class TestModulesThatPythonCannotCopy:
    @pytest.mark.parametrize("before", [True, False])
    @pytest.mark.parametrize("how", ["pruned", "parametrized"])
    def test_a_norm_whose_weight_is_computed(self, images, how, before):
        def computed(norm):
            if how == "pruned":
                return prune.l1_unstructured(norm, "weight", 1)
            return parametrize.register_parametrization(norm, "weight", nn.Identity())

        model = net()
        if before:
            computed(model[1])
        branch_batchnorm(model)
        if not before:
            computed(model[1]["clean"])
        model(images)
        plain = keep_branch(model, "clean")
        assert isinstance(plain[1], nn.BatchNorm2d)
        assert torch.equal(plain.eval()(images), model.eval()(images))
        with on_branch(model, "adversarial"):
            model(images).sum().backward()

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("how", ["weight_norm", "remembered"])
    def test_a_branch_is_kept(self, branched, images, how):
        if how == "weight_norm":
            nn.utils.weight_norm(branched[4])
        branched(images).sum().backward()
        if how == "remembered":
            branched.last = branched(images)
        plain = keep_branch(branched, "clean").eval()
        assert torch.equal(plain(images), branched.eval()(images))


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

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.heavy)])
    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("seen", [False, True], ids=["", "first_branch_compiled"])
    def test_around_a_compiled_block_is_an_error_too(
        self, branched, images, reentrant, training, seen
    ):
        torch._dynamo.reset()
        compiled = torch.compile(branched.train(training), backend="aot_eager", fullgraph=True)
        if seen:
            compiled(images)
        with on_branch(branched, "adversarial"):
            out = checkpoint(compiled, images.requires_grad_(), use_reentrant=reentrant)
        with pytest.raises(RuntimeError, match=r"recomputed during backward.*on_branch\(model"):
            out.sum().backward()

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.heavy)])
    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("how", ["inside", "block_inside", "block_compiled"])
    def test_of_a_compiled_block_is_right(self, branched, images, reentrant, training, how):
        if how == "inside" and torch.__version__ < "2.7":
            pytest.skip("torch before 2.7 moves statistics again in a compiled recomputation")
        torch._dynamo.reset()
        twin = copy.deepcopy(branched.train(training))
        images = images.requires_grad_()
        compiled = torch.compile(branched, backend="aot_eager")

        def on_adversarial(x):
            with on_branch(branched, "adversarial"):
                return compiled(x)

        if how == "inside":
            whole = torch.compile(
                lambda x: checkpoint(branched, x, use_reentrant=reentrant), backend="aot_eager"
            )
            with on_branch(branched, "adversarial"):
                out = whole(images)
        elif how == "block_inside":
            out = checkpoint(on_adversarial, images, use_reentrant=reentrant)
        else:
            whole = torch.compile(on_adversarial, backend="aot_eager")
            out = checkpoint(whole, images, use_reentrant=reentrant)
        out.pow(3).sum().backward()
        with on_branch(twin, "adversarial"):
            twin(images).pow(3).sum().backward()
        for (name, p), q in zip(branched.named_parameters(), twin.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


class TestErrors:
    @pytest.mark.parametrize("branches", [(), ("a", "a"), "clean", None, 2, [1, 2], [None]])
    def test_names(self, branches):
        with pytest.raises(ValueError, match="one or more different names, got"):
            branch_batchnorm(net(), branches)

    @pytest.mark.parametrize("branches", [("a.b",), ("",), ("keys",), ("training",), ("active",)])
    def test_names_that_cannot_be(self, branches):
        with pytest.raises(ValueError, match="plain words, got"):
            branch_batchnorm(net(), branches)

    @pytest.mark.parametrize("name", [None, 0, ["clean"]])
    def test_a_branch_has_a_name(self, branched, name):
        with pytest.raises(ValueError, match="no BatchNorm branch"):
            keep_branch(branched, name)

    def test_twice(self, branched):
        with pytest.raises(ValueError, match="has BatchNorm branches already"):
            branch_batchnorm(branched)

    def test_nothing_to_branch(self):
        with pytest.raises(ValueError, match="no BatchNorm to branch"):
            branch_batchnorm(nn.Linear(2, 2))

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script")
    def test_torchscript(self):
        with pytest.raises(ValueError, match="before scripting"):
            branch_batchnorm(torch.jit.script(net()))

    def test_an_exported_program(self, images):
        program = torch.export.export(net(), (images,)).module()
        with pytest.raises(ValueError, match=r"before torch\.export"):
            branch_batchnorm(nn.Sequential(program))

    def test_but_no_graph_that_calls_its_layers(self, branched, images):
        traced = branch_batchnorm(torch.fx.symbolic_trace(net()))
        traced.load_state_dict(branched.state_dict())
        for name in ("adversarial", "clean"):
            with on_branch(traced, name), on_branch(branched, name):
                torch.testing.assert_close(traced(images), branched(images))

    @pytest.mark.parametrize("use", [branch_batchnorm, lambda m: keep_branch(m, "clean")])
    def test_no_module(self, use):
        with pytest.raises(ValueError, match="belong to a module, got dict of"):
            use(dict(net().state_dict()))

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


class Synced(nn.SyncBatchNorm):
    """Its arithmetic on a CPU, for which torch has none: statistics of all ranks' rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_batches_tracked += 1
        everywhere = nn.functional.batch_norm(
            gather(x), self.running_mean, self.running_var, self.weight, self.bias, True
        )
        return everywhere.chunk(world_size())[rank()]


def two_branches(images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Averaged gradients, and statistics, after a step in which each branch has images."""
    torch.manual_seed(6)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net()).double()
    for m in model.modules():
        if isinstance(m, nn.SyncBatchNorm):
            m.__class__ = Synced
    branch_batchnorm(model)
    loss = model(images).square().mean()
    with on_branch(model, "adversarial"):
        loss = loss + model(1 - images).tanh().mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return {"grads": average(grads), "buffers": [b.double() for b in model.buffers()]}


def on_half(r: int, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    return two_branches(images.chunk(WORLD)[r])


@pytest.mark.heavy
def test_synchronised_branches_are_one_process_on_the_whole_batch(images, tmp_path):
    images = images.double()
    expected = two_branches(images)
    for found in on_two_ranks(on_half, tmp_path, images):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
