"""What is borrowed comes back, on every exit, without invalidating a graph made before."""

from __future__ import annotations

import array
import copy
import io

import pytest
import torch
from borrowed import Trace
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from advssl import AdversarialViewGenerator, SAMWrapper
from advssl.modes import evaluating, frozen, learning, unlogged, weights_recomputed


class Boom(Exception):
    pass


def test_frozen_gives_everything_back(encoder, images):
    encoder(images).sum().backward()
    trace = Trace(encoder)
    with frozen(encoder):
        assert not any(p.requires_grad for p in encoder.parameters())
        encoder.eval()
        encoder.train()
        encoder(images)
    trace.assert_none()


def test_frozen_gives_everything_back_after_an_exception(encoder, images):
    trace = Trace(encoder)
    with pytest.raises(Boom), frozen(encoder):
        encoder(images)
        raise Boom
    trace.assert_none()


def test_a_graph_made_before_frozen_is_as_good_after_it(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)).eval()
    twin = copy.deepcopy(model)
    twin(images).square().sum().backward()

    loss = model(images).square().sum()
    with frozen(model):
        model.train()(images)  # moves the running statistics that the eval graph multiplies by
    loss.backward()

    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0)


def test_frozen_gives_back_a_momentum_encoder(encoder):
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1)
    trace = Trace(teacher)
    with frozen(encoder, teacher), torch.no_grad():
        for slow, fast in zip(teacher.parameters(), encoder.parameters(), strict=True):
            slow.data.lerp_(fast, 0.5)
    trace.assert_none()


def test_frozen_gives_back_a_buffer_that_was_replaced():
    bank = nn.Module()
    bank.register_buffer("queue", torch.arange(3.0))
    queue = bank.queue
    with frozen(bank):
        bank.queue = torch.zeros(5)
        bank.register_buffer("late", torch.ones(1))
    assert bank.queue is queue
    assert dict(bank.named_buffers()).keys() == {"queue"}


@pytest.mark.parametrize(
    ("held", "change"),
    [
        (bytearray(b"ab"), lambda held: held.append(0)),
        (bytearray(b"ab"), lambda held: held.__setitem__(0, 99)),
        (array.array("d", [1, 2]), lambda held: held.__setitem__(0, 99)),
        ([1, [2]], lambda held: held[1].append(3)),
    ],
)
def test_frozen_gives_back_the_contents_of_plain_collections(held, change):
    module, before = nn.Module(), copy.deepcopy(held)
    module.held = held
    with frozen(module):
        change(held)
        assert held != before
    assert module.held is held
    assert held == before


@pytest.mark.parametrize("before", [None, torch.ones(6, 8)])
def test_frozen_gives_back_gradients_that_were_exchanged(before):
    layer = nn.Linear(8, 6)
    layer.weight.grad = before
    with frozen(layer):
        layer.zero_grad()
        layer.weight.grad = torch.zeros(6, 8)
    assert layer.weight.grad is before


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("scripted", [False, True])
def test_learning_is_of_every_parameter(scripted):
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    layer = torch.jit.script(layer) if scripted else layer
    for learns in (False, True):
        learning(layer, learns)
        assert {p.requires_grad for p in layer.parameters()} == {learns}


@pytest.mark.parametrize("block", [frozen, evaluating])
@pytest.mark.parametrize("one", [None, "encoder", nn.Linear(1, 1).weight, [nn.Linear(1, 1)]])
def test_what_is_no_module_is_refused(block, one):
    with pytest.raises(ValueError, match=rf"{block.__name__} takes modules, got"), block(one):
        pass


def test_frozen_names_a_trainable_parameter_that_was_changed(encoder):
    before = encoder[-1].weight.detach().clone()
    with (
        pytest.raises(ValueError, match=r"weight, shape \(6, 8\).*changed in place"),
        frozen(encoder),
        torch.no_grad(),
    ):
        encoder[-1].weight.add_(1)
    assert encoder[-1].weight.requires_grad
    assert torch.equal(encoder[-1].weight, before)


class Plain(nn.Module):
    """A tensor as a parameter, buffer or attribute, in another's memory or alone."""

    def __init__(self, tensor: torch.Tensor, place: str) -> None:
        super().__init__()
        if place == "buffer":
            self.register_buffer("held", tensor)
        elif place == "attribute":
            self.held = tensor
        else:
            self.held = nn.Parameter(tensor, requires_grad=place == "trainable")


def in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3)


TENSORS = {
    "dense": lambda: torch.ones(4, 6),
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.empty(0, 3),
    "transposed": lambda: torch.ones(4, 6).t(),
    "channels last": lambda: torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.ones(1, 6).expand(4, 6),
    "expanded scalar": lambda: torch.tensor(1.0).expand(3),
    "sliding": lambda: torch.ones(10).unfold(0, 4, 1),
    "column": lambda: torch.ones(5, 5)[:, 2],
    "half": lambda: torch.ones(3, dtype=torch.bfloat16),
    "whole": lambda: torch.arange(1, 5),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "complex": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "rows compressed": lambda: torch.eye(3).to_sparse_csr(),
    "columns compressed": lambda: torch.eye(3).to_sparse_csc(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "inference": in_inference_mode,
    "meta": lambda: torch.ones(3, device="meta"),
}


def values(tensor: torch.Tensor) -> list:
    if tensor.is_meta:
        return []
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return dense.flatten().tolist()


def zeroed(tensor: torch.Tensor) -> None:
    """In the memory that the tensor has."""
    with torch.inference_mode(tensor.is_inference()):
        data = tensor.data
        if data.layout == torch.sparse_coo:
            data = data._values()
        elif data.layout != torch.strided:
            data = data.values()
        if not data.is_meta:
            data[tuple(slice(1 if s == 0 else None) for s in data.stride())] = 0


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("place", ["trainable", "parameter", "buffer", "attribute"])
@pytest.mark.parametrize("kind", TENSORS)
def test_every_kind_of_tensor_comes_back(kind, place):
    """Changed in its memory, moved to another, or exchanged: its value, memory and version."""
    tensor = TENSORS[kind]()
    if place == "trainable" and (tensor.is_inference() or not tensor.is_floating_point()):
        return
    module = Plain(tensor, place)
    held, before = module.held, values(module.held)
    strided = held.layout == torch.strided
    lies = (held.data_ptr(), held.stride()) if strided else None
    version = None if held.is_inference() else held._version

    def exchanged(_):
        new = held.detach().clone()
        module.held = nn.Parameter(new, False) if isinstance(held, nn.Parameter) else new

    def moved(t):
        if strided and not t.is_meta:
            t.data = torch.zeros(7, dtype=t.dtype)

    for change in (zeroed, moved, exchanged):
        with frozen(module):
            change(held)
            assert change is not zeroed or not before or values(held) != before
        assert module.held is held
        assert values(held) == before
        assert held.requires_grad == (place == "trainable")
        assert lies is None or lies == (held.data_ptr(), held.stride())
        assert version is None or version == held._version


def test_views_of_one_memory_come_back():
    memory, module = torch.arange(12.0), nn.Module()
    module.first, module.second = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])
    with frozen(module):
        module.first.data.zero_()
        module.second.data = torch.ones(8)
        module.second.data.neg_()
    assert memory.tolist() == list(range(12))
    with torch.no_grad():
        module.second[0] = -1
    assert module.first[4] == -1


@pytest.mark.filterwarnings("ignore:DTensor random operators may not")  # of torch 2.5
def test_a_shard_is_refused():
    import torch.distributed as dist
    from torch.distributed.tensor import DeviceMesh, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(2, 2, bias=False)
        shard = distribute_tensor(model.weight.detach(), DeviceMesh("cpu", [0]))
        model.weight = nn.Parameter(shard)
        with pytest.raises(ValueError, match=r"a DTensor \(FSDP2\).*use DDP"), frozen(model):
            pass
    finally:
        dist.destroy_process_group()


def test_a_lazy_module_is_refused():
    with pytest.raises(ValueError, match=r"lazy module has no parameters yet.*one batch"):
        frozen(nn.Sequential(nn.LazyLinear(3))).__enter__()


def test_a_model_made_in_inference_mode_is_refused_and_a_copy_of_it_is_not():
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    images = torch.rand(4, 3, 2, 2)
    for use in (
        lambda m: frozen(m).__enter__(),
        lambda m: SAMWrapper(m)(lambda: m(images).square().mean()),
        lambda m: AdversarialViewGenerator(steps=1)(images, lambda v: m(v).sum(), freeze=m),
    ):
        with pytest.raises(ValueError, match=r"weight was made under torch\.inference_mode.*copy"):
            use(model)
        use(copy.deepcopy(model))


def test_weights_are_computed_for_the_block_alone():
    """Remembered inside without gradient, they would train nothing outside."""
    layer, x = weight_norm(nn.Linear(3, 2)), torch.randn(4, 3)
    with parametrize.cached():
        height = layer(x).sum()
        with frozen(layer):
            assert not layer(x).requires_grad
        height = height + layer(x).sum()
    height.backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_freezing_leaves_the_global_random_states_alone(encoder):
    torch.manual_seed(3)
    first = torch.rand(2)
    torch.manual_seed(3)
    with frozen(encoder):
        assert torch.equal(torch.rand(2), first)
    assert not torch.equal(torch.rand(2), first)


def test_evaluating_gives_each_flag_back(encoder):
    trace = Trace(encoder)
    with pytest.raises(Boom), evaluating(encoder):
        assert not any(m.training for m in encoder.modules())
        raise Boom
    trace.assert_none()
    assert encoder.training
    assert not encoder[4].training


class Merging(nn.Linear):
    """As low-rank adapters do it: eval() adds the low-rank part to the weight, train() takes it."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.low = nn.Parameter(torch.randn(4, 6))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += self.low.detach() * (-1 if mode else 1)
            self.merged = not mode
        return self


class Stubborn(nn.BatchNorm1d):
    """Stays in eval mode, whatever it is told."""

    def train(self, mode=True):  # noqa: ARG002
        return super().train(False)


@pytest.mark.parametrize("merged_before", [False, True])
def test_what_train_and_eval_do_is_undone_by_them(merged_before):
    module = nn.Sequential(Merging(), Stubborn(4), nn.Sequential(nn.BatchNorm1d(4), Merging()))
    module[2].eval()
    module[2][0].train()
    module[0].train(not merged_before)
    flags = [m.training for m in module.modules()]
    merged, weight = [module[0].merged, module[2][1].merged], module[0].weight.detach().clone()
    assert merged == [merged_before, True]
    with evaluating(module):
        assert module[0].merged
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module.modules()] == flags
    assert [module[0].merged, module[2][1].merged] == merged
    torch.testing.assert_close(module[0].weight.detach(), weight, rtol=0, atol=1e-5)


def test_an_exported_program_has_no_mode(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    exported = torch.export.export(model, (images,)).module()
    with pytest.raises(ValueError, match=r"cannot be put into eval mode.*exported"):
        evaluating(exported).__enter__()


class Counts(nn.Module):
    """State of every kind that TorchScript knows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.calls, self.seen, self.mean = nn.BatchNorm1d(3), 0, [1], torch.zeros(3)
        self.register_buffer("queue", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.seen.append(self.calls)
        self.queue = self.queue + 1
        self.mean += 1
        return self.norm(x)


def through_a_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("wrap", [torch.jit.script, through_a_file])
@pytest.mark.parametrize("nested", [False, True])
def test_scripted_modules_come_back(wrap, nested):
    scripted = wrap(Counts())
    module = nn.Sequential(scripted) if nested else scripted
    scripted.norm.eval()
    with evaluating(module):
        assert not scripted.training
    assert scripted.training
    assert not scripted.norm.training
    parameters, queue = list(module.parameters()), scripted.queue
    with frozen(module):
        module.train()
        for _ in range(2):
            assert not module(torch.randn(4, 3)).requires_grad
        scripted.norm.weight.data.zero_()
    assert [scripted.calls, list(scripted.seen), scripted.queue.sum(), scripted.mean.sum()] == [
        *(0, [1], 0, 0)
    ]
    assert scripted.queue is queue
    assert not scripted.norm.training
    assert scripted.norm.num_batches_tracked == 0
    assert scripted.norm.weight.sum() == 3
    assert all(p.requires_grad for p in parameters)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_traced_and_compiled_in_script_modules_come_back():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    for module in (
        torch.jit.trace(net, torch.randn(4, 3)),
        torch.jit.freeze(through_a_file(net)),
    ):
        before = {n: t.clone() for n, t in module.state_dict().items()}
        with frozen(module), evaluating(module):
            module(torch.randn(4, 3))
        assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_weights_that_torch_remembers_are_the_callers_again():
    layer = weight_norm(nn.Linear(3, 2))
    with parametrize.cached():
        weight = layer.weight
        with pytest.raises(Boom), weights_recomputed():
            assert layer.weight is not weight
            assert layer.weight is layer.weight  # remembered, for as long as the block
            raise Boom
        assert layer.weight is weight
    assert layer.weight is not weight


class Speaks(nn.Module):
    """As a LightningModule does."""

    def log(self, name, value):
        HEARD.append((name, value))

    def log_dict(self, named):
        HEARD.append(named)

    def print(self, *said):
        HEARD.append(said)


HEARD: list = []


def test_unlogged_is_silent_and_then_speaks_as_it_did():
    HEARD.clear()
    inner, outer = Speaks(), Speaks()
    outer.inner = inner
    outer.log = own = lambda *told: HEARD.append(("own", *told))
    with pytest.raises(Boom), unlogged(outer):
        outer.log("a", 1)
        inner.log_dict({"b": 2})
        inner.print("c", 3)
        assert inner.log.experiment["c"](3) is inner.log
        raise Boom
    assert HEARD == []
    assert vars(outer)["log"] is own
    assert not {"log", "log_dict", "print"} & {*vars(inner)}
    outer.log("a", 1)
    inner.log("b", 2)
    assert HEARD == [("own", "a", 1), ("b", 2)]
