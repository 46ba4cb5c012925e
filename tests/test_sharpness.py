"""The SAM term: exact on a quadratic, an ordinary term in a sum, invisible in what it moves."""

from __future__ import annotations

import copy
import random
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from borrowed import Trace
from flops import flops
from ranks import WORLD, as_second_of_twins, on_two_ranks
from torch import Tensor, nn
from torch.nn.utils import parametrize

from advssl.branches import branch_batchnorm, on_branch
from advssl.losses import MultiViewNTXentLoss
from advssl.sharpness import SAMWrapper


class Point(nn.Module):
    """Weights and nothing else."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))

    def forward(self) -> Tensor:
        return self.w.square().sum() / 2


def mlp(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 6)
    )


def by_hand(model: nn.Module, closure, rho: float) -> dict[str, Tensor]:
    """The SAM gradient, with the weights moved in place on a copy of everything."""
    params = list(model.parameters())
    g = torch.autograd.grad(closure(), params)
    length = torch.cat([x.flatten() for x in g]).norm()
    with torch.no_grad():
        for p, x in zip(params, g, strict=True):
            p.add_(rho * x / length)
    found = torch.autograd.grad(closure(), params)
    with torch.no_grad():
        for p, x in zip(params, g, strict=True):
            p.sub_(rho * x / length)
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters()]


class TestQuadratic:
    def test_sam(self):
        point = Point(3.0, 4.0)  # ∇L(w) = w, ‖w‖ = 5
        term = SAMWrapper(point, rho=0.5)(point)
        term.backward()
        torch.testing.assert_close(term, torch.tensor(5.5**2 / 2))
        torch.testing.assert_close(point.w.grad, torch.tensor([3.3, 4.4]))

    def test_adaptive(self):
        point = Point(1.0, 2.0)  # e = ρ w² g / ‖w g‖ = ρ w³ / ‖w²‖
        SAMWrapper(point, rho=0.5, adaptive=True)(point).backward()
        w = torch.tensor([1.0, 2.0])
        torch.testing.assert_close(point.w.grad, w + 0.5 * w**3 / (w**2).norm())

    @pytest.mark.parametrize("adaptive", [False, True])
    def test_rho_zero_is_the_plain_loss(self, adaptive):
        point = Point(3.0, -4.0)
        term = SAMWrapper(point, rho=0.0, adaptive=adaptive)(point)
        term.backward()
        assert term == 12.5
        assert torch.equal(point.w.grad, point.w.data)

    def test_no_slope_no_move(self):
        point = Point(0.0, 0.0)
        assert SAMWrapper(point)(point) == 0

    def test_the_step_does_not_depend_on_the_scale_of_the_loss(self):
        point = Point(3.0, 4.0)
        sam = SAMWrapper(point, rho=0.5)
        torch.testing.assert_close(sam(lambda: 1e-12 * point()), 1e-12 * sam(point))


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_pytorch_optimizers_sam_when_it_is_the_only_term(images, adaptive):
    from pytorch_optimizer import SAM

    ours = mlp().double().eval()
    theirs = copy.deepcopy(ours)
    x = images.double().flatten(1)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    other = SAM(
        theirs.parameters(), torch.optim.SGD, rho=0.3, adaptive=adaptive, lr=0.1, perturb_eps=0.0
    )
    term = SAMWrapper(ours, rho=0.3, adaptive=adaptive)
    for _ in range(3):
        optimizer.zero_grad()
        term(lambda: ours(x).square().mean()).backward()
        optimizer.step()

        theirs(x).square().mean().backward()
        other.first_step(zero_grad=True)
        theirs(x).square().mean().backward()
        other.second_step(zero_grad=True)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Theirs takes the gradient's length in float32 whatever the parameters are.
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_is_a_term_beside_others_whose_gradients_are_kept(images):
    """Also those of parameters that only the other terms reach: the other branch's BatchNorm."""
    model = branch_batchnorm(mlp()).double()
    x = images.double().flatten(1)
    nt_xent = MultiViewNTXentLoss()

    def benign():
        return nt_xent(model(x), model(x.flip(1)))

    def adversarial():
        with on_branch(model, "adversarial"):
            return nt_xent(model(x + 0.1), model(x.flip(1)))

    sam = SAMWrapper(model, rho=0.2)
    (adversarial() + 2 * sam(benign)).backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    adversarial().backward()
    (2 * sam(benign)).backward()
    for name, g, p in zip(
        dict(model.named_parameters()), together, model.parameters(), strict=True
    ):
        assert g.abs().max() > 0, name
        torch.testing.assert_close(g, p.grad)


def test_equals_moving_the_weights_by_hand(images):
    model = mlp().double()
    x = images.double().flatten(1)
    closure = lambda: model(x).pow(3).mean()  # noqa: E731
    expected = by_hand(model, closure, 0.7)
    SAMWrapper(model, rho=0.7)(closure).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_a_loss_at_theta_saves_a_forward_and_keeps_its_graph(images):
    model, x = mlp(), images.flatten(1)
    sam, calls = SAMWrapper(model, rho=0.2), []

    def closure():
        calls.append(1)
        return model(x).square().mean()

    expected = sam(closure)
    assert len(calls) == 2
    calls.clear()
    loss = model(x).square().mean()
    term = sam(closure, loss)
    assert len(calls) == 1
    torch.testing.assert_close(term, expected)
    (term + loss).backward()


def test_costs_two_forwards_and_two_backwards(images):
    model, x = nn.Sequential(nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 8)), images.flatten(1)
    forward = flops(lambda: model(x))
    closure = lambda: model(x).square().mean()  # noqa: E731
    plain = flops(lambda: closure().backward())
    assert flops(lambda: SAMWrapper(model)(closure).backward()) == 2 * plain
    loss = closure()
    given = flops(lambda: (SAMWrapper(model)(closure, loss)).backward())
    assert given == 2 * plain - forward


def square(model: nn.Module, x: Tensor):
    return lambda: model(x).square().mean()


def test_leaves_no_trace(images):
    model, x = mlp(0.3), images.flatten(1)
    square(model, x)().backward()
    sam, loss = SAMWrapper(model), square(model, x)()
    trace = Trace(model)
    sam(square(model, x), loss)  # with the loss given, BatchNorm's buffers stay too
    trace.assert_none()


@pytest.mark.parametrize("pass_", [1, 2])
def test_leaves_no_trace_after_an_exception_in_either_pass(images, pass_):
    model, x, calls = mlp().eval(), images.flatten(1), []

    def closure():
        calls.append(1)
        loss = model(x).square().mean()
        if len(calls) == pass_:
            raise KeyError
        return loss

    trace = Trace(model)
    with pytest.raises(KeyError):
        SAMWrapper(model)(closure)
    trace.assert_none()
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_batchnorm_buffers_move_once(images):
    model, x = mlp(), images.flatten(1)
    once = copy.deepcopy(model)
    once(x)
    SAMWrapper(model)(square(model, x))
    for mine, other in zip(model.buffers(), once.buffers(), strict=True):
        assert torch.equal(mine, other)


def test_a_momentum_encoder_that_the_closure_updates_moves_once(images):
    x = images.flatten(1)
    student, teacher = mlp(), mlp().requires_grad_(False)
    start = teacher[0].weight.clone()

    def closure():
        with torch.no_grad():
            teacher[0].weight.mul_(0.5)
        return (student(x) - teacher(x)).square().mean()

    SAMWrapper(student, teacher)(closure)
    torch.testing.assert_close(teacher[0].weight, start / 2)


@pytest.mark.parametrize("given", [False, True])
def test_dropout_repeats(images, given):
    model, x, seen = mlp(0.5), images.flatten(1), []
    model[1].eval()
    sam = SAMWrapper(model, rho=0.0)

    def closure():
        seen.append(model(x))
        return seen[-1].square().mean()

    state = sam.rng_state()
    loss = closure() if given else None
    sam(closure, loss, rng_state=state if given else None)
    first, second = seen
    assert torch.equal(first, second)
    after = torch.get_rng_state()
    torch.set_rng_state(state[0])
    model(x)
    assert torch.equal(torch.get_rng_state(), after)  # as much was drawn as in one pass


@pytest.mark.parametrize("given", [False, True])
def test_draws_of_numpy_and_python_repeat(given):
    point, seen = Point(3.0, 4.0), []

    def closure():
        seen.append((np.random.rand(), random.random()))  # noqa: NPY002
        return point()

    sam = SAMWrapper(point)
    state = sam.rng_state()
    loss = closure() if given else None
    sam(closure, loss, rng_state=state if given else None)
    assert seen[0] == seen[1]
    closure()
    assert seen[2] != seen[1]


def drawn_by(one) -> float:
    return torch.rand((), generator=one).item() if type(one) is torch.Generator else one.random()


@pytest.mark.parametrize("on", ["object", "class"])
def test_draws_of_generators_that_the_closure_holds_repeat(on):
    own = (torch.Generator().manual_seed(3), np.random.RandomState(3), np.random.default_rng(3))
    mask = SimpleNamespace(own=own) if on == "object" else type("Mask", (), {"own": own})()
    also, point, seen = random.Random(3), Point(3.0, 4.0), []

    def closure():
        seen.append([drawn_by(one) for one in (*mask.own, also)])
        return point()

    SAMWrapper(point)(closure)
    closure()
    assert seen[0] == seen[1] != seen[2]


def test_graphs_built_before_and_after_are_valid(images):
    model, x = mlp().double(), images.double().flatten(1)
    twin = copy.deepcopy(model)
    (square(twin, x)() + square(twin, x.flip(0))()).backward()

    before = square(model, x)()
    SAMWrapper(model, rho=1.0)(square(model, x))
    after = square(model, x.flip(0))()
    (before + after).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_a_loss_of_prototypes_that_a_closure_normalises_is_handed_over(images):
    """SwAV's: computed anew beside the loss, the prototypes of its graph would have changed."""
    model = mlp()

    def loss() -> Tensor:
        with torch.no_grad():
            model[-1].weight.div_(model[-1].weight.norm(dim=1, keepdim=True))
        return model(images.flatten(1)).square().mean()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss() + SAMWrapper(model)(loss)).backward()
    model.zero_grad()
    plain = loss()
    (plain + SAMWrapper(model, rho=0.0)(loss, plain)).backward()
    both = gradients(model)
    model.zero_grad()
    loss().backward()
    for twice, once in zip(both, gradients(model), strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_parameters_that_the_closure_does_not_reach_are_left_alone():
    reached, other = Point(3.0, 4.0), Point(1.0, 1.0)
    sam = SAMWrapper(reached, other, rho=0.5)

    def closure():
        assert torch.equal(other.w.data, torch.ones(2))
        return reached()

    (sam(closure) + other()).backward()
    torch.testing.assert_close(reached.w.grad, torch.tensor([3.3, 4.4]))
    torch.testing.assert_close(other.w.grad, torch.ones(2))


def test_parameters_outside_the_modules_keep_their_gradient():
    """They do not move, but the term is theirs too."""
    inside, outside = Point(3.0, 4.0), Point(2.0)
    SAMWrapper(inside, rho=0.5)(lambda: outside.w.sum() * inside()).backward()
    torch.testing.assert_close(outside.w.grad, torch.tensor([5.5**2 / 2]))
    torch.testing.assert_close(inside.w.grad, 2 * torch.tensor([3.3, 4.4]))


def test_tied_weights_move_together():
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    tied.double()[2].weight = tied[0].weight
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = by_hand(tied, square(tied, x), 0.3)
    SAMWrapper(tied, rho=0.3)(square(tied, x)).backward()
    torch.testing.assert_close(tied[0].weight.grad, expected["0.weight"])


def in_two_places() -> tuple[nn.Module, list[nn.Module]]:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Sequential(layer))
    return model, [model]


def given_with_a_part_of_it() -> tuple[nn.Module, list[nn.Module]]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, [model, model[0]]


def given_with_what_wraps_it() -> tuple[nn.Module, list[nn.Module]]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, [torch.compile(model, backend="eager"), model]


@pytest.mark.parametrize("made", [in_two_places, given_with_a_part_of_it, given_with_what_wraps_it])
def test_a_module_with_several_names_moves_once_and_keeps_its_parameters(made):
    model, given = made()
    model.double()
    before = [(p, p.detach().clone()) for p in model.parameters()]
    closure = square(model, torch.randn(4, 3, dtype=torch.float64))
    expected = by_hand(model, closure, 0.3)
    SAMWrapper(*given, rho=0.3)(closure).backward()
    for now, (p, value) in zip(model.parameters(), before, strict=True):
        assert now is p
        torch.testing.assert_close(p.detach(), value)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_lazy_modules_get_their_shapes_in_the_first_pass():
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    SAMWrapper(model)(square(model, torch.randn(5, 4))).backward()
    assert [type(m) for m in model] == [nn.Linear, nn.BatchNorm1d]
    assert all(isinstance(p.grad, Tensor) for p in model.parameters())
    assert model[1].num_batches_tracked == 1


def test_sparse_gradients_move_as_dense_ones():
    sparse = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    dense, words = copy.deepcopy(sparse), torch.tensor([0, 0, 3])
    dense[0].sparse = False
    for model in (sparse, dense):
        SAMWrapper(model, rho=0.3)(square(model, words)).backward()
    for p, q in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(p.grad.to_dense(), q.grad)


def test_recurrent_weights_move_too():
    lstm = nn.LSTM(3, 2).double()
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    closure = lambda: lstm(x)[0].square().sum()  # noqa: E731
    expected = by_hand(lstm, closure, 0.3)
    SAMWrapper(lstm, rho=0.3)(closure).backward()
    for name, p in lstm.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    flat = [torch.cat([g.flatten().float() for g in gs]) for gs in (a, b)]
    return torch.cosine_similarity(*flat, dim=0).item()


def curved() -> nn.Module:
    """A net whose SAM gradient is far from its plain one at ρ = 2."""
    return nn.Sequential(nn.Linear(192, 32), nn.Tanh(), nn.Linear(32, 6))


def test_under_an_outer_autocast_it_is_the_float32_sam_gradient(images):
    """Autocast's cache of cast weights would silently give the plain gradient."""
    model, x = curved(), images.flatten(1)
    exact, plain = copy.deepcopy(model), copy.deepcopy(model)
    SAMWrapper(exact, rho=2.0)(square(exact, x)).backward()
    square(plain, x)().backward()
    assert cosine(gradients(exact), gradients(plain)) < 0.95
    with torch.autocast("cpu", torch.bfloat16):
        square(model, x)()  # fills the cache
        term = SAMWrapper(model, rho=2.0)(square(model, x))
    term.backward()
    assert cosine(gradients(model), gradients(exact)) > 0.99


def test_float16_with_a_scaler(images):
    model, x = curved(), images.flatten(1)
    exact = copy.deepcopy(model)
    small = lambda m: lambda: 1e-4 * m(x).float().square().mean()  # noqa: E731
    (SAMWrapper(exact, rho=2.0)(small(exact)) + small(exact)()).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.float16):
        loss = SAMWrapper(model, rho=2.0)(small(model)) + small(model)()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert cosine(gradients(model), gradients(exact)) > 0.99
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("given", [False, True])
def test_is_right_with_a_compiled_module(images, given):
    model, x = curved(), images.flatten(1)
    exact = copy.deepcopy(model)
    expected = SAMWrapper(exact, rho=2.0)(square(exact, x))
    expected.backward()
    compiled = torch.compile(model, backend="aot_eager")
    # A graph that is back-propagated twice, as that of a given loss is, must keep its buffers.
    with torch._functorch.config.patch(donated_buffer=not given):
        loss = square(compiled, x)() if given else None
        term = SAMWrapper(compiled, rho=2.0)(square(compiled, x), loss)
        term.backward()
    torch.testing.assert_close(term, expected)
    assert cosine(gradients(model), gradients(exact)) > 0.9999


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_refused(images, reentrant):
    """Recomputed in backward, when the weights are back, it would silently be wrong."""
    from torch.utils.checkpoint import checkpoint

    model, x = curved(), images.flatten(1).requires_grad_()
    closure = lambda: checkpoint(model, x, use_reentrant=reentrant).square().mean()  # noqa: E731
    trace = Trace(model)
    with pytest.raises(RuntimeError, match=r"activation checkpointing.*unmoved weights"):
        SAMWrapper(model)(closure)
    trace.assert_none()


class TestWhatTorchRemembers:
    """The pass at the moved weights computes with them, and nothing of them stays behind."""

    def closure(self, model):
        x = torch.linspace(-1, 1, 27, dtype=torch.float64).view(9, 3)
        return lambda: model(x).pow(3).mean()

    def net(self, wrapped) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(wrapped(nn.Linear(3, 8)), nn.Tanh(), wrapped(nn.Linear(8, 3))).double()

    class Low(nn.Module):
        def __init__(self, rows: int, columns: int) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.randn(rows, 1))
            self.b = nn.Parameter(torch.randn(1, columns))

        def forward(self, weight):
            return weight + self.a @ self.b

    def low_rank(self, layer: nn.Linear) -> nn.Module:
        layer.weight.requires_grad_(False)
        low = self.Low(*layer.weight.shape)
        return parametrize.register_parametrization(layer, "weight", low)

    @pytest.mark.parametrize("given", [False, True])
    @pytest.mark.parametrize("kind", ["weight_norm", "orthogonal", "low_rank", "none"])
    def test_cached_weights_are_computed_anew(self, kind, given):
        wrapped = {
            "weight_norm": nn.utils.parametrizations.weight_norm,
            "orthogonal": nn.utils.parametrizations.orthogonal,
            "low_rank": self.low_rank,
            "none": lambda layer: layer,
        }[kind]
        model = self.net(wrapped)
        twin = copy.deepcopy(model)
        expected = SAMWrapper(twin, rho=0.3)(self.closure(twin))
        (expected + self.closure(twin)()).backward()
        closure, sam = self.closure(model), SAMWrapper(model, rho=0.3)
        with parametrize.cached():
            loss = closure()
            found = sam(closure, loss) if given else sam(closure)
            (found + closure()).backward()
            torch.testing.assert_close(closure(), loss)
        torch.testing.assert_close(found, expected)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)

    @pytest.mark.parametrize("given", [False, True])
    def test_vectors_of_spectral_norm_move_once(self, given):
        model = self.net(nn.utils.parametrizations.spectral_norm)
        once = copy.deepcopy(model)
        self.closure(once)()
        closure = self.closure(model)
        SAMWrapper(model, rho=0.3)(closure, closure() if given else None)
        for mine, other in zip(model.buffers(), once.buffers(), strict=True):
            torch.testing.assert_close(mine, other)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_a_weight_that_a_hook_leaves_is_not_the_moved_one(self):
        model, twin = self.net(nn.utils.weight_norm), self.net(nn.utils.weight_norm)
        SAMWrapper(model, rho=0.3)(self.closure(model))
        self.closure(twin)()
        torch.testing.assert_close(model[0].weight, twin[0].weight)


class TestOtherModulesThatTheClosureCalls:
    """Their state moves once too."""

    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("queue", torch.zeros(3))
            self.pointer, self.seen = 0, []
            self.last = None

        def forward(self, z):
            self.queue[self.pointer % 3] = z.detach().mean()
            self.pointer += 1
            self.seen.append(self.pointer)
            self.queue = self.queue.clone()
            return z

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 8).requires_grad_(False)

        def forward(self, z):
            self.net.weight.mul_(0.5)
            return z + self.net(z)

    OUTSIDE = pytest.mark.parametrize(
        "outside",
        [
            lambda: nn.BatchNorm1d(8),
            lambda: branch_batchnorm(nn.Sequential(nn.BatchNorm1d(8))),
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
            Bank,
            Slow,
        ],
    )

    def state(self, module):
        plain = {n: v for n, v in vars(module).items() if isinstance(v, int | list)}
        plain.pop("_is_torch_compile", None)
        return plain, [t.clone() for t in (*module.parameters(), *module.buffers())]

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @OUTSIDE
    @pytest.mark.parametrize("given", [False, True])
    @pytest.mark.parametrize("how", ["closure", "attribute", "collection", "compiled"])
    def test_move_once(self, outside, given, how):
        encoder, head, x = nn.Linear(6, 8), outside(), torch.randn(9, 6)
        once = copy.deepcopy(head)
        called = torch.compile(head, backend="eager") if how == "compiled" else head
        holder = types.SimpleNamespace(head=called)
        heads = {"first": [called]}
        use = {
            "closure": lambda z: called(z),
            "compiled": lambda z: called(z),
            "attribute": lambda z: holder.head(z),
            "collection": lambda z: heads["first"][0](z),
        }[how]

        def closure():
            return use(encoder(x)).square().mean()

        once(encoder(x))
        SAMWrapper(encoder)(closure, closure() if given else None)
        (found, tensors), (wanted, others) = self.state(head), self.state(once)
        assert found == wanted
        for mine, other in zip(tensors, others, strict=True):
            torch.testing.assert_close(mine, other)

    class Noisy(nn.Module):
        """A generator of its own, one of numpy's, and a schedule that counts."""

        def __init__(self) -> None:
            super().__init__()
            self.draws, self.others = torch.Generator(), np.random.default_rng(0)
            self.calls = 0

        def forward(self, z):
            self.calls += 1
            return z * torch.rand((), generator=self.draws) * self.others.random() / self.calls

    class Queue(nn.Module):
        """Compares with what is in it, then takes the batch in."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", torch.ones(4, 8))

        def forward(self, z):
            seen = z @ self.rows.mT
            self.rows = torch.cat([z.detach(), self.rows])[:4]
            return seen

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("outside", [Noisy, Queue, Slow, lambda: nn.BatchNorm1d(8)])
    @pytest.mark.parametrize("moved", [False, True])
    def test_at_no_distance_the_second_pass_is_the_first(self, outside, moved):
        encoder, head, x = nn.Linear(6, 8), outside(), torch.randn(9, 6)
        once = copy.deepcopy(head)
        wanted = once(encoder(x)).square().mean()
        sam = SAMWrapper(encoder, *[head] * moved, rho=0.0)
        for _ in range(2):
            torch.testing.assert_close(sam(lambda: head(encoder(x)).square().mean()), wanted)
            wanted = once(encoder(x)).square().mean()

    def test_move_once_also_when_the_second_pass_fails(self):
        encoder, head, x, calls = nn.Linear(6, 8), nn.BatchNorm1d(8), torch.randn(9, 6), []

        def closure():
            loss = head(encoder(x)).square().mean()
            calls.append(1)
            if len(calls) == 2:
                raise KeyError
            return loss

        with pytest.raises(KeyError):
            SAMWrapper(encoder)(closure)
        assert head.num_batches_tracked == 1

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    def test_compiled_ones_are_compiled_once(self):
        graphs = []

        def backend(graph, inputs):  # noqa: ARG001
            graphs.append(graph)
            return graph.forward

        torch._dynamo.reset()
        encoder, x = nn.Linear(6, 8), torch.randn(9, 6)
        head = torch.compile(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)), backend=backend)
        sam = SAMWrapper(encoder)
        for _ in range(3):
            sam(lambda: head(encoder(x)).square().mean())
        assert len(graphs) == 1


class Remembering(nn.Module):
    """Normalises its weight once, and takes that in every later call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6))
        self.known = None

    def forward(self, x):
        if self.known is None:
            self.known = nn.functional.normalize(self.weight, dim=1)
        return x @ self.known.mT


def of_remembered(x: Tensor):
    module = Remembering()
    return module, lambda: module(x).square().mean()


def of_a_variable_bound_before(x: Tensor):
    module = nn.Linear(6, 3)
    weight = module.weight
    return module, lambda: module(x).square().mean() + weight.square().sum()


def of_embeddings_made_before(x: Tensor):
    module = nn.Linear(6, 3, bias=False)
    z = module(x)
    return module, lambda: (module(-x) - z).square().mean()


@pytest.mark.parametrize(
    "made", [of_remembered, of_a_variable_bound_before, of_embeddings_made_before]
)
def test_weights_taken_as_they_were_are_refused(made):
    module, closure = made(torch.randn(5, 6))
    with pytest.raises(ValueError, match=r"took 0.weight as it was: "):
        SAMWrapper(module)(closure, closure())


@pytest.mark.parametrize("given", [False, True])
def test_tensors_outside_of_modules_that_move_twice_are_said_once(given):
    encoder, x, center = nn.Linear(6, 3), torch.randn(5, 6), torch.zeros(3)

    def closure():
        z = encoder(x)
        center.mul_(0.9).add_(z.detach().mean(0))
        return (z - center.clone()).square().mean()

    sam = SAMWrapper(encoder)
    with pytest.warns(UserWarning, match=r"changes what is outside of modules: Tensor \("):
        sam(closure, closure() if given else None)
    sam(closure)


def test_a_closure_may_copy_what_moves():
    encoder, x, copies = nn.Linear(6, 3), torch.randn(5, 6), []

    def closure():
        copies.append(copy.deepcopy(encoder))
        return (encoder(x) - copies[-1](x).detach().mean(0)).square().mean()

    SAMWrapper(encoder, rho=0.5)(closure).backward()
    first, second = (list(c.parameters()) for c in copies)
    assert all(p.is_leaf for p in second)
    for p, q in zip(first, encoder.parameters(), strict=True):
        assert torch.equal(p, q)
    moves = [(p - q).flatten() for p, q in zip(second, first, strict=True)]
    assert torch.cat(moves).norm().item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("size", [1e-22, 1e20])
def test_adaptive_at_every_size_of_weights(size):
    x, moves = torch.randn(4, 6), []
    for factor in (1, size):
        torch.manual_seed(0)
        layer, seen = nn.Linear(6, 3, bias=False), []
        with torch.no_grad():
            layer.weight.mul_(factor)

        def closure(layer=layer, seen=seen, factor=factor):
            seen.append(layer.weight.detach().double())
            return (layer(x) / factor - 1).square().mean()

        SAMWrapper(layer, rho=0.1, adaptive=True)(closure)
        moves.append((seen[1] - seen[0]) / factor)
    torch.testing.assert_close(*[move / move.norm() for move in moves], rtol=1e-3, atol=1e-4)


ALONE = {
    "in half precision": lambda m: m.bfloat16(),
    "frozen": lambda m: m.requires_grad_(False),
    "of another shape": lambda m: setattr(m, "weight", nn.Parameter(torch.ones(4, 6))),
    "no gradient": lambda m: m.register_forward_hook(lambda *a: a[-1].detach()),
    "RuntimeError: out of memory": lambda m: m.register_forward_hook(runs_out),
}


def runs_out(*_):
    raise RuntimeError("out of memory")


def said_on_rank(rank: int) -> dict[str, str]:
    said = {}
    for name, fault in ALONE.items():
        module = nn.Linear(6, 3, bias=False)
        if rank == 1:
            fault(module)
        x = torch.ones(2, 6)
        try:
            SAMWrapper(module)(
                lambda m=module, x=x: m(x.to(m.weight.dtype)).float().square().mean()
            )
        except ValueError as error:
            said[name] = str(error)
    return said


def reached_on_rank(rank: int) -> Tensor:
    torch.manual_seed(0)
    moved, other = nn.Linear(6, 3), nn.Linear(6, 3)
    x = torch.ones(2, 6)
    return SAMWrapper(moved)(lambda: (other if rank else moved)(x).square().mean()).detach()


def climb(images: Tensor, weight: Tensor, *, gathers: bool = False) -> Tensor:
    torch.manual_seed(0)
    model, seen = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)), []
    contrastive = MultiViewNTXentLoss(0.1, gather_distributed=True)

    def closure():
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        with torch.autocast("cpu", torch.float16):
            z = model(weight[:, None] * images)
            other = model(weight[:, None] * images.flip(1))
        if gathers:
            return contrastive(z, other)
        return (weight * (z.float() - 1).square().mean(1)).mean()

    SAMWrapper(model, rho=0.3)(closure)
    return seen[1] - seen[0]


def half_learned() -> tuple[Tensor, Tensor]:
    """The second rank's images pay a hundredth, so its gradients have another scale."""
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    return images, torch.tensor([1.0] * 4 + [0.01] * 4)


def climb_of_rank(rank: int, *, gathers: bool) -> Tensor:
    return climb(*(values.chunk(WORLD)[rank] for values in half_learned()), gathers=gathers)


def on_rank(rank: int) -> dict:
    return {
        "said": said_on_rank(rank),
        "reached": reached_on_rank(rank),
        "climb": {gathers: climb_of_rank(rank, gathers=gathers) for gathers in (False, True)},
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(on_rank, tmp_path_factory.mktemp("ranks"))


def test_a_fault_of_one_rank_is_said_on_both(ranks):
    for found in ranks:
        assert found["said"].keys() == ALONE.keys()
        assert all("all ranks must hold the same" in message for message in found["said"].values())
        assert all(
            f"rank 1 SAMWrapper: {m}" in said for m, said in found["said"].items() if ":" in m
        )


def test_ranks_compare_once_what_they_hold_and_average_once(monkeypatch):
    point = Point(3.0, 4.0)
    alone = SAMWrapper(point)(point)
    sent = as_second_of_twins(monkeypatch)
    assert torch.equal(SAMWrapper(point)(point), alone)
    assert [name for name, _ in sent] == ["all_gather", "all_reduce"]


def test_a_rank_may_reach_none_of_the_parameters(ranks):
    assert all(found["reached"].isfinite() for found in ranks)


@pytest.mark.parametrize("gathers", [False, True])
def test_two_ranks_in_float16_climb_as_one_process(ranks, gathers):
    alone = climb(*half_learned(), gathers=gathers)
    for found in ranks:
        assert (found["climb"][gathers] - alone).norm() < 0.01 * alone.norm()


def test_the_climb_of_a_tiny_loss_is_rho():
    """Its gradients have squares below the smallest float32."""
    point = Point(3.0, 4.0)
    sam = SAMWrapper(point, rho=0.5)
    torch.testing.assert_close(sam(lambda: 1e-25 * point()) * 1e25, sam(point))


@pytest.mark.parametrize("rho", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), np.int64(1)])
def test_rho_as_numpy_and_torch_give_it(rho):
    sam = SAMWrapper(Point(3.0, 4.0), rho=rho, adaptive=np.bool_(False))
    assert type(sam.rho) is float
    assert sam.rho == float(rho)
    sam.rho = 2 * rho
    assert (type(sam.rho), sam.rho) == (float, 2 * float(rho))


@pytest.mark.parametrize("answer", [lambda z: z.view(1), lambda z: {"loss": z}])
@pytest.mark.parametrize("given", [False, True])
def test_a_loss_of_one_element_is_a_scalar(answer, given):
    point = Point(3.0, 4.0)
    term = SAMWrapper(point, rho=0.5)(lambda: answer(point()), answer(point()) if given else None)
    torch.testing.assert_close(term, torch.tensor(5.5**2 / 2))


def test_a_loss_that_is_nan_stays_nan():
    """A gradient scaler skips the step, as it does without SAM."""
    point = Point(3.0, 4.0)
    assert SAMWrapper(point)(lambda: point() * float("nan")).isnan()


def test_defaults_for_new_tensors_change_nothing():
    found = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float64)):
        images, weight = half_learned()
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        closure = lambda: (model(images).half().float().square().mean(1) * weight).mean()  # noqa: E731
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                found.append(SAMWrapper(model, rho=0.3)(closure).item())
        finally:
            torch.set_default_dtype(torch.float32)
    assert found[0] == found[1]


def test_references_its_modules_without_registering_them():
    point = Point(1.0)
    sam = SAMWrapper(point)
    assert list(sam.parameters()) == []
    assert sam.state_dict() == {}
    both = copy.deepcopy(nn.ModuleList([point, sam]))
    assert both[1].modules_moved[0] is both[0]  # a copy of a model takes its term along
    assert "Point, rho=0.05, adaptive=False" in repr(sam)


class TestErrors:
    @pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
    def test_rho(self, rho):
        sam = SAMWrapper(Point(1.0))
        with pytest.raises(ValueError, match="rho must be non-negative and finite, got"):
            SAMWrapper(Point(1.0), rho=rho)
        with pytest.raises(ValueError, match="rho must be non-negative and finite, got"):
            sam.rho = rho  # as a schedule sets it
        assert sam.rho == 0.05

    def test_no_module(self):
        with pytest.raises(ValueError, match="needs the modules whose weights move"):
            SAMWrapper()

    @pytest.mark.parametrize(
        "one",
        [
            torch.ones(1),
            [Point(1.0)],
            Point(1.0).parameters(),
            torch.optim.SGD(Point(1.0).parameters(), 0.1),
            0.05,
            "encoder",
        ],
    )
    def test_what_is_no_module(self, one):
        with pytest.raises(ValueError, match="SAMWrapper takes modules, got"):
            SAMWrapper(one)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script")
    def test_torchscript(self):
        with pytest.raises(ValueError, match="weights of TorchScript cannot move"):
            SAMWrapper(nn.Sequential(torch.jit.script(nn.Linear(2, 1))))

    @pytest.mark.parametrize("adaptive", ["asam", 0.5, None])
    def test_adaptive(self, adaptive):
        with pytest.raises(ValueError, match="adaptive must be True or False, got"):
            SAMWrapper(Point(1.0), adaptive=adaptive)

    @pytest.mark.parametrize("rho", ["0.1", None, torch.ones(2)])
    def test_rho_is_a_number(self, rho):
        with pytest.raises(ValueError, match="rho must be a number, got"):
            SAMWrapper(Point(1.0), rho=rho)

    def test_no_closure(self):
        point = Point(1.0)
        with pytest.raises(ValueError, match=r"takes a closure .* got torch.float32 of shape \(\)"):
            SAMWrapper(point)(point())

    @pytest.mark.parametrize("answer", [lambda z: z.item(), lambda z: (z, z), lambda z: {"a": z}])
    @pytest.mark.parametrize("given", [False, True])
    def test_what_is_no_loss(self, answer, given):
        point = Point(1.0)
        with pytest.raises(ValueError, match=r"closure.* must return a scalar, .*, got"):
            SAMWrapper(point)(lambda: answer(point()), answer(point()) if given else None)

    @pytest.mark.parametrize("given", [False, True])
    def test_detached(self, given):
        point = Point(1.0)
        loss = point().detach()
        with pytest.raises(ValueError, match="requires_grad=False; compute it without detach"):
            SAMWrapper(point)(lambda: loss, loss if given else None)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("mixed", [False, True])
    def test_parameters_in_half_precision(self, dtype, mixed):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1 if mixed else slice(None)].to(dtype)
        with pytest.raises(ValueError, match=rf"weight is in {dtype}.*autocast"):
            SAMWrapper(model)(pytest.fail)

    def test_nothing_requires_gradient(self):
        with pytest.raises(ValueError, match="no parameter of the modules requires gradient"):
            SAMWrapper(Point(1.0).requires_grad_(False))(lambda: torch.zeros(()))

    def test_not_a_scalar(self):
        point = Point(1.0, 2.0)
        with pytest.raises(ValueError, match=r"must return a scalar.* of shape \(2,\)"):
            SAMWrapper(point)(lambda: point.w * 2)

    def test_not_a_function_of_the_modules(self):
        other = Point(1.0)
        with pytest.raises(ValueError, match="depends on no parameter of the modules"):
            SAMWrapper(Point(1.0))(other)

    def test_rng_state_without_a_loss(self):
        point = Point(1.0)
        sam = SAMWrapper(point)
        with pytest.raises(ValueError, match="give loss too"):
            sam(point, rng_state=sam.rng_state())

    @pytest.mark.filterwarnings("ignore:DTensor random operators may not")
    def test_dtensor(self):
        import torch.distributed as dist
        from torch.distributed.tensor import DeviceMesh, distribute_tensor

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            point = Point(1.0, 2.0)
            point.w = nn.Parameter(distribute_tensor(point.w.detach(), DeviceMesh("cpu", [0])))
            with pytest.raises(ValueError, match=r"w is a DTensor \(FSDP2\).*use DDP"):
                SAMWrapper(point)(point)
        finally:
            dist.destroy_process_group()
