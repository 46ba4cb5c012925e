"""A host that is built or trained otherwise, and is the same function, trains as it did."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from borrowed import Trace
from components import COMPONENTS, WIDTH, Case, batch, encoder
from torch import Tensor, nn


@pytest.fixture(params=COMPONENTS)
def case(request) -> Case:
    torch.manual_seed(4)
    return COMPONENTS[request.param]


def trained(case: Case, model: nn.Module, part=None) -> dict[str, Tensor]:
    """The term, and the gradients that a backward leaves in the model."""
    torch.manual_seed(4)
    term = case.term(case.make(), model, [batch() if part is None else part])
    term.backward()
    return {"term": term.detach(), **gradients(model)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Answers(nn.Module):
    """A network whose answer holds more than embeddings, and what a loop takes from it."""

    def __init__(self, net: nn.Module, pack: Callable[..., Any], take: Callable[[Any], Tensor]):
        super().__init__()
        self.net, self.pack, self.take = net, pack, take

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return self.take(self.pack(z, z.detach().mean()))


class Named(NamedTuple):
    z: Tensor
    extra: Tensor


@dataclass
class Output:
    z: Tensor
    extra: Tensor


ANSWERS = {
    "tuple": (lambda z, extra: (z, extra), lambda answer: answer[0]),
    "named tuple": (Named, lambda answer: answer.z),
    "dict": (lambda z, extra: {"z": z, "extra": extra}, lambda answer: answer["z"]),
    "dataclass": (Output, lambda answer: answer.z),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_model_that_answers_more_than_embeddings(case, answer):
    plain = trained(case, encoder())
    found = trained(case, Answers(encoder(), *ANSWERS[answer]))
    for name, value in plain.items():
        other = found[name if name == "term" else f"net.{name}"]
        torch.testing.assert_close(other, value, rtol=0, atol=0)


class Constant(nn.Module):
    """A convolution whose numbers are none of its parameters."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("w", conv.weight.detach())
        self.register_buffer("b", conv.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b)


def test_a_frozen_layer_is_no_parameter_and_stays_as_it_is(case):
    frozen, constant = encoder(), encoder()
    frozen[0].requires_grad_(False)
    constant[0] = Constant(constant[0])
    trace = Trace(frozen[0])
    found, expected = trained(case, frozen), trained(case, constant)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    trace.assert_none()


class Twice(nn.Module):
    """One weight that two places use: by one parameter, or by two modules that are tied."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH) if tied else None
        if self.second is not None:
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, z: Tensor) -> Tensor:
        return (self.second or self.first)(self.first(z).tanh())


def test_tied_weights_are_one(case):
    found, expected = (
        trained(case, nn.Sequential(*encoder(), Twice(tied))) for tied in (True, False)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_batchnorm_that_its_owner_has_frozen_stays_so(case):
    """In a network in train mode, whose other BatchNorm learns its statistics."""
    model = nn.Sequential(nn.BatchNorm2d(3), *encoder()).train()
    model[2].eval()
    before = copy.deepcopy(model[2].state_dict())
    trained(case, model)
    assert [m.training for m in model] == [True, True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model[2].state_dict().items())
    assert model[0].num_batches_tracked > 0


def test_gradients_of_parts_add_up(case):
    images, index = batch()
    parts = list(zip(images.chunk(2), index.chunk(2), strict=True))
    alone = [trained(case, encoder(), part) for part in parts]
    together = encoder()
    for part in parts:
        trained(case, together, part)
    for name, value in gradients(together).items():
        torch.testing.assert_close(value, alone[0][name] + alone[1][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaled_loss_takes_the_step_of_float32(case, dtype):
    """Under autocast with a GradScaler: no step is skipped, and all parameters move as they did."""
    plain, model = encoder(), encoder()
    trained(case, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype):
        torch.manual_seed(4)
        term = case.term(case.make(), model, [batch()])
    scaler.scale(term).backward()
    scaler.unscale_(optimizer)
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    expected = torch.cat([p.grad.flatten() for p in plain.parameters()])
    assert torch.cosine_similarity(found, expected, dim=0) > 0.97
    torch.testing.assert_close(found.norm(), expected.norm(), rtol=0.1, atol=0)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**12
    moved = [
        not torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True)
    ]
    assert all(moved)


def test_a_vision_transformer(case):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    vit = timm.create_model("test_vit", img_size=8, patch_size=4, num_classes=WIDTH).eval()
    found = trained(case, vit)
    assert all(value.isfinite().all() for value in found.values())
    assert found["patch_embed.proj.weight"].abs().max() > 0
