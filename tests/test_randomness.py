"""What is drawn inside a block leaves no trace outside it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from advssl.randomness import random_state, random_state_kept, seeded_state


def drawn(device) -> tuple[torch.Tensor, ...]:
    """By whatever an objective may draw with; of normal numbers half are left over."""
    others = np.random.rand(), np.random.randn(), random.random(), random.gauss(0, 1)  # noqa: NPY002
    return torch.rand(3, device=device), torch.rand(3), torch.tensor(others)


@pytest.mark.parametrize("left_over", [False, True])
def test_random_state_is_kept_and_replayed(device, left_over):
    if left_over:
        drawn(device)
    start = random_state(device)
    first = drawn(device)
    after = random_state(device)
    with random_state_kept(device, replay=start):
        again = drawn(device)
    for a, b in zip(first + after, again + random_state(device), strict=True):
        assert torch.equal(a, b)


def test_torchs_part_of_a_state_is_one(device):
    start = random_state(device)
    first = drawn(device)
    with random_state_kept(device, replay=(start[0], *start[2:])):
        again = drawn(device)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[2], again[2])


def test_seeded_state_depends_on_the_generator_alone(device):
    def draw():
        with random_state_kept(device, seeded_state(device, torch.Generator().manual_seed(5))):
            return torch.cat(drawn(device))

    first = draw()
    torch.manual_seed(99)
    drawn(device)
    assert torch.equal(first, draw())


def test_states_of_two_seeds_draw_otherwise(device):
    def draw(seed):
        with random_state_kept(device, seeded_state(device, torch.Generator().manual_seed(seed))):
            return torch.cat(drawn(device)).float()

    assert (draw(5) != draw(6)).all()


def test_another_bit_generator_of_numpys_is_left_alone(device):
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        expected = np.random.RandomState(np.random.PCG64(1)).rand(2).tolist()
        with random_state_kept(device, random_state(device)):
            found = [np.random.rand()]  # noqa: NPY002
        assert [*found, np.random.rand()] == expected  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("replayed", [False, True])
def test_draws_inside_are_never_made_outside(device, replayed):
    replay = seeded_state(device, torch.Generator().manual_seed(5)) if replayed else None
    before = random_state(device)
    with pytest.raises(KeyError), random_state_kept(device, replay):
        drawn(device)
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True))
