"""From a trained method to its measurements, each of which says in fields what it is of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advssl import keep_branch
from advssl.evaluation import probes
from harness import chain
from harness.recording import Place, place_of

from . import tiny
from .tiny import opened, silent

# --- what is measured -----------------------------------------------------------------------------


def test_each_branch_is_a_plain_encoder():
    method, _ = opened(tiny.plan("advcl"))
    assert list(chain.encoders(method)) == ["pgd", "normal"]
    assert list(chain.encoders(method, "own")) == ["pgd"]
    x = torch.rand(4, 3, 8, 8)
    for value, name in enumerate(("pgd", "normal")):
        nn.init.constant_(getattr(method.encoder.bn1, name).bias, value)
    for name, encoder in chain.encoders(method).items():
        expected = keep_branch(method.encoder, name).eval()
        assert torch.equal(encoder.eval()(x), expected(x))
    single = chain.encoders(opened(tiny.plan("at"))[0])
    assert list(single) == [""]


def places(plan, tmp_path) -> list[Place]:
    method, data = opened(plan)
    found = chain.measured(plan, method, data, tmp_path, silent)
    assert {m.n for m in found} == {20}
    assert {(m.seed, m.attack_seed) for m in found} == {(plan.seed, 0)}
    assert len({m.dataset for m in found}) == 1
    assert {m.model.backbone for m in found} == {plan.backbone}
    return [place_of(m) for m in found]


PGD = ["PGD-20 l_inf 0.1, step 0.025", "PGD-20 l_inf 0.1, step 0.01"]


@pytest.mark.slow
def test_every_branch_is_measured_after_its_last_and_its_best_epoch(tmp_path):
    found = places(tiny.plan("gsa_rsl", "--attacks", "pgd,pgd-l2"), tmp_path)
    by_label = {of.label: [p.attack for p in found if p.label == of.label] for of in found}
    best = [label for label in by_label if "best" in label]
    assert [label.split(", epoch")[0] for label in by_label] == [
        label
        for branch in ("adversarial", "clean")
        for label in (f"slf {branch}", f"slf {branch}, best on validation")
    ]
    for label, attacks in by_label.items():
        whole = ["clean", *PGD, "PGD-20 l_2 0.5, step 0.05"]
        assert attacks == (["clean", PGD[0]] if label in best else whole)


@pytest.mark.slow
def test_a_best_epoch_is_named_after_what_it_was_best_on(tmp_path, monkeypatch):
    released = probes.PRESETS["released"]["slf"]
    monkeypatch.setitem(probes.PRESETS, "released", {"slf": replace(released, epochs=1)})
    plan = replace(tiny.plan("simclr"), preset="released")
    found = dict.fromkeys(place.label for place in places(plan, tmp_path))
    assert list(found) == ["slf", "slf, selected on test, epoch 1 of 1"]


@pytest.mark.slow
def test_a_classifier_is_measured_with_its_own_head_too(tmp_path):
    plan = replace(tiny.plan("at"), protocols=())
    found = places(plan, tmp_path)
    assert {place.label for place in found} == {"own head"}
    assert [place.attack for place in found] == ["clean", *PGD]


def test_how_far_it_is_is_told(tmp_path):
    plan = replace(tiny.plan("at"), protocols=(), attacked=())
    told = []
    chain.measured(plan, *opened(plan), tmp_path, lambda *said: told.append(said))
    assert told
