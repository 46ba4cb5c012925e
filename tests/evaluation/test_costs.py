"""Costs are those that are counted: forwards by a hook, backwards by their gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advssl import L2, Linf
from advssl.evaluation import attacks, costs, probes
from advssl.evaluation.data import InMemory, open_data
from advssl.evaluation.protocols import PRESETS

CLASSES = 4


class Counted(nn.Module):
    """A linear classifier whose copies all count: images forwards, and gradients to them."""

    total = 0

    def __init__(self, out: int, pixels: int = 48) -> None:
        super().__init__()
        Counted.total = 0
        self.layer = nn.Linear(pixels, out)

    def forward(self, images):
        Counted.total += len(images)
        if images.requires_grad:
            images.register_hook(lambda gradient: Counted.add(len(gradient)))
        return self.layer(images.flatten(1))

    @staticmethod
    def add(count: int) -> None:
        Counted.total += count


def standing(images):
    """A classifier that no small change moves, and the labels it answers."""
    torch.manual_seed(0)
    net = Counted(CLASSES)
    net.layer.weight.data *= 1e-3
    net.layer.bias.data = torch.tensor([3.0, 2.0, 1.0, 0.0])
    return net, torch.zeros(len(images), dtype=torch.int64)


BALL = Linf(8 / 255)
ALL = [
    attacks.Clean(),
    attacks.PGD(BALL, 7, 0.01),
    attacks.PGD(L2(0.5), 3, 0.3, restarts=3),
    attacks.MultiTargetedPGD(BALL, 5, 0.01),
    attacks.MultiTargetedPGD(BALL, 5, 0.01, targets=2),
]


@pytest.mark.parametrize("attack", ALL, ids=lambda a: a.name)
def test_of_an_attack_whose_images_all_stand_or_all_fall(attack):
    images = torch.rand(3, 3, 4, 4)
    net, labels = standing(images)
    told = costs.forwards(attack, CLASSES)
    Counted.total = 0
    attacks.measure(net, attack, [(images, labels)])
    assert Counted.total == told.most * len(images)
    Counted.total = 0
    attacks.measure(net, attack, [(images, labels + 1)])  # wrong from the start
    assert Counted.total == len(images)


@pytest.mark.parametrize("attack", ALL[1:], ids=lambda a: a.name)
def test_of_an_attack_whose_images_are_right_and_all_fall(attack):
    images = torch.full((3, 3, 4, 4), 0.5)
    net = Counted(CLASSES)
    net.layer.weight.data = torch.eye(CLASSES, 48) * 1e3  # the largest of four pixels
    net.layer.bias.data = torch.tensor([1e-3, 0.0, 0.0, 0.0])
    Counted.total = 0
    attacks.measure(net, attack, [(images, torch.zeros(3, dtype=torch.int64))])
    assert Counted.total == costs.forwards(attack, CLASSES).least * len(images)


@pytest.mark.heavy
def test_of_autoattack():
    images = torch.rand(2, 3, 8, 8)
    torch.manual_seed(0)
    net = Counted(CLASSES, 192)
    net.layer.weight.data *= 1e-3
    net.layer.bias.data = torch.tensor([3.0, 2.0, 1.0, 0.0])
    told = costs.forwards(attacks.AutoAttack(BALL), CLASSES)
    attacks.AutoAttack(BALL)(net, images, torch.zeros(2, dtype=torch.int64), seed=0)
    assert 0.7 * told.most < Counted.total / len(images) < 1.3 * told.most


def test_of_an_attack_by_others_nothing_is_known():
    assert costs.forwards(object(), CLASSES) is None


def small(how):
    return replace(how, epochs=2, batch_size=8)


@pytest.mark.parametrize("natural", [True, False])
@pytest.mark.parametrize(
    ("preset", "name"), [(p, n) for p in ("standardised", "advcl") for n in PRESETS[p]]
)
def test_of_a_probe(preset, name, natural):
    data = open_data("digits", image_size=4)
    part = InMemory(torch.rand(40, 3, 4, 4), torch.arange(40) % 10)
    data = replace(data, train=part, validation=part, test=part, natural=natural)
    net, how = Counted(8), small(PRESETS[preset][name])
    probes.finetune(net, data, how, ball=BALL)
    told = costs.of_probe(how, 40, 40, natural)
    if how.trains_encoder:  # a backward to the weights is not counted by the hook
        told -= how.epochs * 40 * 2
    assert Counted.total - 2 == told  # two tell how wide the features are


def test_what_is_wrong_without_an_attack_takes_one_forward():
    assert costs.Range(43, 90).spared() == (1, 90)
    assert costs.Range(1, 1).spared() == (1, 1)
    assert costs.NOTHING.spared() == costs.NOTHING
