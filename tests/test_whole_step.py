"""Every component in one step: DDP on two ranks is one process on the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import WORLD, on_ranks
from torch.nn.parallel import DistributedDataParallel
from whole_step import WholeStep, gradients, views


def ddp_step(r: int, bucket_view: bool, micro_batches: int, world: int) -> dict:
    model = DistributedDataParallel(
        WholeStep(gathered=True), gradient_as_bucket_view=bucket_view, broadcast_buffers=False
    )
    for m in range(micro_batches - 1):
        with model.no_sync():
            model(*(v.chunk(world)[r] for v in views(m))).backward()
    loss = model(*(v.chunk(world)[r] for v in views(micro_batches - 1)))
    loss.backward()
    return {"loss": loss.detach(), "gradients": gradients(model.module)}


def one_process(micro_batches: int = 1, world: int = WORLD) -> tuple[torch.Tensor, dict]:
    model = WholeStep(chunks=world)
    for m in range(micro_batches):
        loss = model(*views(m))
        loss.backward()
    return loss.detach(), gradients(model)


def assert_same_gradients(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        assert g.abs().max() > 0, f"{name} has no gradient, the comparison would prove nothing"
        torch.testing.assert_close(found[name], g, rtol=1e-8, atol=1e-12, msg=name)


def test_every_parameter_gets_a_gradient_in_one_process():
    model = WholeStep()
    model(*views()).backward()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
    assert "encoder.1.adversarial.weight" in gradients(model)


STEPS = {"plain": (False, 1), "views and no_sync": (True, 2)}  # buckets, micro-batches


def ddp_steps(r: int, world: int) -> dict:
    return {name: ddp_step(r, *how, world) for name, how in STEPS.items()}


@pytest.fixture(scope="module", params=[WORLD, pytest.param(4, marks=pytest.mark.heavy)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return on_ranks(request.param, ddp_steps, folder, request.param)


@pytest.mark.parametrize("name", STEPS)
def test_ranks_are_one_process_on_the_whole_batch(ranks, name):
    _, micro_batches = STEPS[name]
    loss, expected = one_process(micro_batches, len(ranks))
    mean = sum(found[name]["loss"] for found in ranks) / len(ranks)
    torch.testing.assert_close(mean, loss, rtol=1e-10, atol=0)
    for found in ranks:
        assert_same_gradients(found[name]["gradients"], expected)


@pytest.mark.heavy
def test_two_ranks_through_lightnings_strategy(tmp_path):
    script = Path(__file__).with_name("lightning_ddp.py")
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=300)
    _, expected = one_process()
    for r in range(WORLD):
        found = torch.load(tmp_path / f"rank{r}.pt", weights_only=True)
        assert_same_gradients(found, expected)
