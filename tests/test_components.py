"""What is common to all components: a test per sentence, for each."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from borrowed import Trace
from components import COMPONENTS, SIZE, Case, batch, encoder
from ranks import WORLD, on_two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture(params=COMPONENTS)
def case(request) -> Case:
    torch.manual_seed(4)
    return COMPONENTS[request.param]


LIGHT = {("AdversarialViewGenerator", "encoder"), ("SAMWrapper", "step")}  # when compiled


def used(case: Case, component: nn.Module, model: nn.Module, part) -> tuple:
    """The term's value, and its gradient in the encoder."""
    term = case.term(component, model, [part])
    return term.detach(), torch.autograd.grad(term, list(model.parameters()), allow_unused=True)


def assert_close(found: tuple, expected: tuple, **tolerance) -> None:
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    for f, e in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(f, e, **tolerance)


def test_is_a_module_that_says_what_it_is(case):
    component = case.make()
    assert isinstance(component, nn.Module)
    assert case.says in repr(component)


def test_gives_the_encoder_a_gradient(case, device):
    value, gradients = used(case, case.make().to(device), encoder().to(device), batch(device))
    assert value.ndim == 0
    for g in gradients:
        assert g.isfinite().all()
        assert g.abs().max() > 0


def test_moves_with_to(case, device):
    """To a device and to a type; float64 stays float64 throughout."""
    expected = used(case, case.make(), encoder(), batch())
    torch.manual_seed(4)
    component = case.make().to(device, torch.float64)
    model = encoder(torch.float64).to(device)
    found = used(case, component, model, batch(device, torch.float64))
    assert found[0].dtype == torch.float64
    to_cpu = (found[0].cpu().float(), [g.cpu().float() for g in found[1]])
    assert_close(to_cpu, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_works_under_autocast(case, device, dtype):
    component, model, part = case.make().to(device), encoder().to(device), batch(device)
    exact, _ = used(case, component, model, part)
    with torch.autocast(device.type, dtype):
        value, gradients = used(case, component, model, part)
    assert value.dtype in (torch.float32, dtype)
    torch.testing.assert_close(value.float(), exact, rtol=0.05, atol=0.01)
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


def test_works_with_channels_last(case, device):
    component, model, (x, index) = case.make().to(device), encoder().to(device), batch(device)
    expected = used(case, component, model, (x, index))
    layout = {"memory_format": torch.channels_last}
    found = used(case, component, model.to(**layout), (x.to(**layout), index))
    assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("name", "what"),
    [
        # The tests of each component compile it too.
        pytest.param(name, what, marks=() if (name, what) in LIGHT else pytest.mark.heavy)
        for name in COMPONENTS
        for what in ("encoder", "step")
    ],
)
def test_works_under_compile(name, device, what):
    """With the encoder compiled, and with the whole step."""
    torch.manual_seed(4)
    case = COMPONENTS[name]
    component, model, part = case.make().to(device), encoder().to(device), batch(device)
    expected = used(case, component, model, part)
    trace = Trace(model, component)
    torch._dynamo.reset()
    if what == "encoder":
        found = used(case, component, torch.compile(model, backend="aot_eager"), part)
    else:
        step = torch.compile(lambda: case.term(component, model, [part]), backend="aot_eager")
        term = step()
        found = term.detach(), torch.autograd.grad(term, list(model.parameters()))
    assert_close(found, expected, rtol=1e-3, atol=1e-5)
    trace.assert_none()


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("what", ["encoder", "step"])
def test_compiled_it_is_not_so_anew_for_other_batches(case, what):
    """After two steps, whatever images, labels and places in the dataset come."""
    compiled: list = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    component, model = case.make(), encoder()
    quick = torch.compile(model, backend=backend) if what == "encoder" else model

    def term(x, index):
        return case.term(component, quick, [(x, index)])

    step = torch.compile(term, backend=backend) if what == "step" else term
    images, index = batch()
    counts = []
    for turn in range(5):
        order = torch.randperm(len(index))
        step(images[order] * (1 - turn / 8), index[order]).backward()
        counts.append(len(compiled))
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 4


@pytest.mark.parametrize("how", ["deepcopy", "state_dict"])
def test_survives(case, how):
    component, model, part = case.make(), encoder(), batch()
    expected = used(case, component, model, part)
    if how == "deepcopy":
        again = copy.deepcopy(component)
    else:
        file = io.BytesIO()
        torch.save(component.state_dict(), file)
        file.seek(0)
        torch.manual_seed(99)
        again = case.make()
        again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_close(used(case, again, model, part), expected, rtol=0, atol=0)


def test_leaves_no_trace(case, device):
    component, model, part = case.make().to(device), encoder().to(device), batch(device)
    model(part[0]).sum().backward()
    model[1].train()
    model.eval()
    trace, clean = Trace(model, component), part[0].clone()
    case.term(component, model, [part])
    trace.assert_none()
    assert torch.equal(part[0], clean)


def test_leaves_no_trace_after_an_exception_in_any_forward(case):
    component, model, part, calls = case.make(), encoder(), batch(), []
    fail_at = [0]

    def fail(module, inputs, output):  # noqa: ARG001
        calls.append(1)
        if len(calls) == fail_at[0]:
            raise KeyError

    model.register_forward_hook(fail)
    case.term(component, model, [part])
    forwards = len(calls)
    trace = Trace(model, component)
    for fail_at[0] in range(1, forwards + 1):
        calls.clear()
        with pytest.raises(KeyError):
            case.term(component, model, [part])
        trace.assert_none()


def test_a_graph_built_before_can_be_backpropagated_after(case):
    component, model, part = case.make(), encoder(), batch()
    expected = torch.autograd.grad(model(part[0]).pow(3).sum(), list(model.parameters()))
    before = model(part[0]).pow(3).sum()
    case.term(component, model, [part]).backward()
    found = torch.autograd.grad(before, list(model.parameters()))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=0)


def test_wrong_input_is_a_value_error_that_says_what_to_do(case):
    with pytest.raises(ValueError, match=case.complaint):
        case.misuse(case.make())


@pytest.mark.parametrize("name", [n for n, c in COMPONENTS.items() if c.is_loss])
def test_losses_take_pytorchs_reductions(name):
    case, model, part = COMPONENTS[name], encoder(), batch()
    paid = {}
    for reduction in ("none", "sum", "mean"):
        component = case.make()
        component.reduction = reduction
        paid[reduction] = component
    rebuilt = type(component)(reduction="none")
    assert rebuilt.reduction == "none"
    with pytest.raises(ValueError, match="reduction must be"):
        type(component)(reduction="average")

    def each(x, index):
        view = model(x), model(1 - x)
        extra = () if "NTXent" in name else (index % 3, index % 2, index % 2)
        return {r: c(*view, *extra) for r, c in paid.items()}

    out = each(*part)
    assert out["none"].shape == ((2, SIZE) if "NTXent" in name else (SIZE,))
    torch.testing.assert_close(out["none"].sum(), out["sum"])
    torch.testing.assert_close(out["none"].mean(), out["mean"])


@pytest.mark.parametrize("source", ["timm", "lightly", "torchvision"])
def test_does_not_know_where_its_encoder_came_from(case, source):
    model = foreign_encoder(source)
    value = case.term(case.make(), model, [batch()])
    value.backward()
    assert value.isfinite()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def foreign_encoder(source: str) -> nn.Module:
    if source == "timm":
        import timm

        backbone = timm.create_model("resnet10t", num_classes=0)
        return nn.Sequential(backbone, nn.Linear(512, 6))
    if source == "lightly":
        from lightly.models.modules import SimCLRProjectionHead

        return nn.Sequential(nn.Flatten(), SimCLRProjectionHead(192, 16, 6))
    import torchvision

    backbone = torchvision.models.squeezenet1_1(num_classes=6)
    return nn.Sequential(nn.Upsample(32), backbone)


class Trained(nn.Module):
    """What DDP wraps: the term is made in one module's forward."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.component = COMPONENTS[name].make().double()
        # It gives its own parameters no gradient in this term, so DDP must not wait for them.
        if name == "GlobalDivergenceCritic":
            self.component.requires_grad_(False)
        self.encoder = encoder(torch.float64)
        self.term = COMPONENTS[name].term

    def forward(self, parts):
        return self.term(self.component, self.encoder, parts)


def halves() -> list:
    images, index = batch(dtype=torch.float64)
    return list(zip(images.chunk(WORLD), index.chunk(WORLD), strict=True))


def every_component(rank: int) -> dict:
    found = {}
    for name in COMPONENTS:
        model = DistributedDataParallel(Trained(name))
        model([halves()[rank]]).backward()
        found[name] = [p.grad.clone() for p in model.module.encoder.parameters()]
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(every_component, tmp_path_factory.mktemp("components"))


@pytest.mark.parametrize("name", COMPONENTS)
def test_works_under_ddp(ranks, name):
    """Two ranks with a part each train as one process on both parts does."""
    model = Trained(name)
    model(halves()).backward()
    for rank in range(WORLD):
        for g, p in zip(ranks[rank][name], model.encoder.parameters(), strict=True):
            torch.testing.assert_close(g, p.grad, rtol=1e-9, atol=1e-12)
