"""Logits: an answer with one meaning is read, any other is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import EVERY, Linear

from advssl.evaluation.attacks import (
    PGD,
    AutoAttack,
    Clean,
    measure,
)
from advssl.evaluation.logits import class_count


def test_classes_are_counted_on_one_image():
    seen = []

    class Three(nn.Module):
        def forward(self, images):
            seen.append(len(images))
            return images.flatten(1)[:, :3]

    assert class_count(Three(), torch.rand(4, 1, 8, 8)) == 3
    assert seen == [1]


class TestWrongInput:
    @pytest.mark.parametrize(
        ("answer", "complaint"),
        [
            (lambda x: x, r"logits \(4, K\), .*got torch.float32 of shape \(4, 1, 8, 8\)"),
            (lambda x: (x.flatten(1), x.flatten(1)), "got tuple of"),
            (lambda x: x.flatten(1).numpy(force=True), "got a ndarray"),
            (lambda x: x.flatten(1)[:1], r"got torch.float32 of shape \(1, 64\)"),
            (lambda x: x.flatten(1)[:, :1], "at least two"),
            (lambda x: x.flatten(1).argsort(), "in floating point.*int64"),
            (lambda x: x.flatten(1) / 0, "logits are not finite"),
        ],
    )
    def test_logits(self, answer, complaint):
        class Answers(nn.Module):
            def forward(self, images):
                return answer(images)

        with pytest.raises(ValueError, match=complaint):
            PGD()(Answers(), torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), seed=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_a_classifier_of_another_precision(self, dtype):
        model = Linear(4).to(dtype)
        with pytest.raises(ValueError, match=r"float32 and weight is not.*classifier.float\(\)"):
            Clean()(model, torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), seed=0)


class BreaksAway(nn.Module):
    """Answers only to the images that it knows; anywhere else with ``value``."""

    def __init__(self, inner, known, value) -> None:
        super().__init__()
        self.inner, self.known, self.value = inner, known, value

    def forward(self, images):
        known = torch.stack([(self.known == x).flatten(1).all(dim=1).any() for x in images])
        return torch.where(known[:, None], self.inner(images), self.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("attack", EVERY, ids=lambda a: a.name)
def test_logits_that_are_not_finite_anywhere_are_refused(net, batch, attack, value):
    if isinstance(attack, AutoAttack):
        pytest.importorskip("pyautoattack")
    x, y = batch[0][:6], net(batch[0][:6]).argmax(1)
    with pytest.raises(ValueError, match="logits are not finite"):
        measure(BreaksAway(net, x, value), attack, [(x, y)])


class Answers(nn.Module):
    def __init__(self, inner, answer) -> None:
        super().__init__()
        self.inner, self.answer = inner, answer

    def forward(self, images):
        return self.answer(self.inner(images))


@pytest.mark.parametrize(
    "answer",
    [
        lambda z: (z,),
        lambda z: {"logits": z, "loss": None, "hidden": z},
        lambda z: SimpleNamespace(logits=z, hidden=z),
        lambda z: z[:, :, None, None],
        lambda z: z.double(),
    ],
)
@pytest.mark.parametrize("attack", EVERY[:2], ids=lambda a: a.name)
def test_an_answer_with_one_meaning_is_read(net, batch, attack, answer):
    found = attack.search(Answers(net, answer), *batch, seed=0)
    assert torch.equal(found.correct, attack.search(net, *batch, seed=0).correct)
