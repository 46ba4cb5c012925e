"""What is drawn inside a block leaves no trace outside it."""

from __future__ import annotations

import pytest
import torch

from advssl.randomness import random_state, random_state_kept, seeded_state


def test_random_state_is_kept_and_replayed(device):
    start = random_state(device)
    first = torch.rand(3, device=device), torch.rand(3)
    after = random_state(device)
    with random_state_kept(device, replay=start):
        again = torch.rand(3, device=device), torch.rand(3)
    for a, b in zip(first + after, again + random_state(device), strict=True):
        assert torch.equal(a, b)


def test_seeded_state_depends_on_the_generator_alone(device):
    def draw():
        with random_state_kept(device, seeded_state(device, torch.Generator().manual_seed(5))):
            return torch.rand(3, device=device)

    first = draw()
    torch.manual_seed(99)
    assert torch.equal(first, draw())


@pytest.mark.parametrize("replayed", [False, True])
def test_draws_inside_are_never_made_outside(device, replayed):
    replay = seeded_state(device, torch.Generator().manual_seed(5)) if replayed else None
    before = random_state(device)
    with pytest.raises(KeyError), random_state_kept(device, replay):
        torch.rand(3, device=device)
        torch.rand(3)
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True))
