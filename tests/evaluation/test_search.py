"""A search leaves no trace, whatever is set around it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toys import EVERY, QUICK, Linear, Told

from advssl import L2, Linf
from advssl.evaluation.attacks import (
    PGD,
    AutoAttack,
    Clean,
    class_balanced,
    measure,
)
from advssl.evaluation.search import ball_name, ball_settings, in_levels
from precision import default_dtype, low_precision


class TestNoTrace:
    @pytest.fixture
    def model(self, encoder):
        encoder[-1] = nn.Linear(8, 6)
        return encoder.train()

    @pytest.fixture
    def rgb(self):
        return torch.rand(6, 3, 8, 8), torch.arange(6)

    @staticmethod
    def state(model):
        tensors = {k: v.clone() for k, v in model.state_dict().items()}
        flags = [m.training for m in model.modules()]
        asks = [p.requires_grad for p in model.parameters()]
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        return tensors, flags, asks, grads, torch.get_rng_state()

    @staticmethod
    def assert_same(one, other):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

    @pytest.mark.parametrize("attack", [*QUICK, AutoAttack(Linf(0.3))], ids=lambda a: a.name)
    def test_all_is_as_it_was(self, model, rgb, attack):
        if isinstance(attack, AutoAttack):
            pytest.importorskip("pyautoattack")
        model[4].eval()
        model(rgb[0]).sum().backward()
        before = self.state(model)
        attack(model, *rgb, seed=0)
        self.assert_same(self.state(model), before)

    @pytest.mark.parametrize("call", [1, 2, 4])
    def test_after_an_exception_too(self, model, rgb, call):
        told = Told(model, breaks_at=call)
        before = self.state(told)
        with pytest.raises(RuntimeError, match="broke down"):
            PGD()(told, *rgb, seed=0)
        self.assert_same(self.state(told), before)

    def test_a_graph_from_before_can_still_be_used(self, model, rgb):
        loss = model(rgb[0]).square().mean()
        measure(model, PGD(), [rgb])
        loss.backward()
        assert model[0].weight.grad is not None

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_where_the_caller_has_no_gradient(self, net, batch, context):
        wanted = PGD()(net, *batch, seed=0)
        with context():
            x = batch[0].clone()  # an inference tensor, in inference mode
            assert torch.equal(PGD()(net, x, batch[1], seed=0), wanted)

    def test_always_float32(self, net, batch):
        wanted = PGD().search(net, *batch, seed=0)
        seen = set()
        hook = net[0].register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
        with hook, torch.autocast("cpu", dtype=torch.bfloat16):
            got = PGD().search(net, *batch, seed=0)
        assert seen == {torch.float32}
        assert torch.equal(got.images, wanted.images)

    def test_runs_in_eval_mode(self, batch):
        dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), Linear(4)).train()
        flags = Clean().search(dropped, *batch, seed=0).correct
        assert torch.equal(flags, dropped.eval()(batch[0]).argmax(1) == batch[1])


@pytest.mark.slow
@pytest.mark.parametrize("around", [default_dtype, low_precision, lambda: torch.device("meta")])
@pytest.mark.parametrize("attack", EVERY, ids=lambda a: a.name)
def test_what_torch_is_set_to_changes_nothing(net, batch, attack, around):
    if isinstance(attack, AutoAttack):
        pytest.importorskip("pyautoattack")
    x, y = batch[0][:6], batch[1][:6]
    expected = attack(net, x, y, seed=0), measure(net, attack, [(x, y)])
    chosen = class_balanced(y, 4, 0)
    with around():
        found = attack(net, x, y, seed=0), measure(net, attack, [(x, y)])
        assert class_balanced(y, 4, 0).tolist() == chosen.tolist()
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (8 / 255, "8/255"),
        (0.8 / 255, "0.8/255"),
        (0.5, "0.5"),
        (1.0, "1"),
        (0.125, "0.125"),
        (0.0123, "0.0123"),
    ],
)
def test_lengths_are_written_as_papers_write_them(value, said):
    assert in_levels(value) == said
    assert ball_name(Linf(value)) == f"l_inf {said}"


@dataclass(frozen=True)
class Band:
    """A ball by somebody else."""

    radius: float
    low: int = 3


def test_settings_of_a_ball_are_its_name_and_all_that_it_holds():
    assert ball_settings(L2(0.5)) == {"norm": "L2", "radius": 0.5}
    assert ball_settings(Band(0.25)) == {"norm": "Band", "low": 3, "radius": 0.25}
