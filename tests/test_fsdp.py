"""FSDP2 on two processes: what trains a sharded encoder as one process trains a whole one."""

from __future__ import annotations

import pytest
import torch
from components import COMPONENTS, batch, encoder, mean_over
from ranks import WORLD, on_two_ranks

from advssl import AdversarialViewGenerator

REFUSED = {"AdversarialViewGenerator": "use DDP, or freeze=()", "SAMWrapper": "use DDP"}


def attacked(model, parts):
    """With ``freeze=()``, of a model in eval mode."""
    adversary = AdversarialViewGenerator(steps=3, start="zero")

    def paid(x, _):
        z = model(x.flip(3))
        hard = adversary(x, lambda v: (model(v) - z.detach()).square().sum(1), freeze=())
        return model(hard).square().mean()

    return mean_over(parts, paid)


def term_of(name: str, model, parts):
    torch.manual_seed(4)
    if name == "freeze=()":
        return attacked(model, parts)
    return COMPONENTS[name].term(COMPONENTS[name].make().double(), model, parts)


NAMES = [*COMPONENTS, "freeze=()"]


def halves() -> list:
    images, index = batch(dtype=torch.float64)
    return list(zip(images.chunk(WORLD), index.chunk(WORLD), strict=True))


def every_component(rank: int) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (WORLD,)), {}
    for name in NAMES:
        model = encoder(torch.float64)
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        try:
            term_of(name, model, [halves()[rank]]).backward()
            found[name] = [p.grad.full_tensor() for p in model.parameters()]
        except ValueError as error:
            found[name] = str(error)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("before torch 2.6")
    return on_two_ranks(every_component, tmp_path_factory.mktemp("fsdp"))


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_encoder_trains_or_is_refused(ranks, name):
    if name in REFUSED:
        for found in ranks:
            assert "DTensor (FSDP2)" in found[name]
            assert REFUSED[name] in found[name]
        return
    model = encoder(torch.float64)
    term_of(name, model, halves()).backward()
    for found in ranks:
        for g, p in zip(found[name], model.parameters(), strict=True):
            torch.testing.assert_close(g, p.grad, rtol=1e-9, atol=1e-12)
