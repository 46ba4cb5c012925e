"""ASCL-2023 against its equations, anchor by anchor, and what its tables' settings change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acl import ACL
from advcl import AdvCL
from ascl_pretrain import ASCLPretrain
from supervised import AT

from .test_methods import a_batch, build, close, length_one, nt_xent, run


def towards(views, attacked, labels, literal, tau=0.5):
    """Eq. 9: every view as an anchor, the mean over the attacked images of its class."""
    rows = [(z, y) for view in views for z, y in zip(length_one(view), labels, strict=True)]
    hard, paid = length_one(attacked), []
    for i, (anchor, label) in enumerate(rows):
        within = [anchor @ z / tau for j, (z, _) in enumerate(rows) if j != i]
        pulls = [anchor @ z / tau for z, other in zip(hard, labels, strict=True) if other == label]
        within += [] if literal else pulls
        below = sum(s.exp() for s in within).log()
        paid.append(sum(below - pull for pull in pulls) / len(pulls))
    return sum(paid) / len(paid)


@pytest.mark.parametrize("batchnorms", ["two", "one"])
@pytest.mark.parametrize("mode", ["released", "paper"])
def test_equation_10(mode, batchnorms):
    method = build(ASCLPretrain, mode, batchnorms=batchnorms)
    r, labels = run(method), a_batch().labels
    x, t1, t2 = r.drawn
    (hard,), (h1, h2), (other,) = r.found
    assert r.given == [(x,), (t1, t2), (x,)]
    assert not torch.equal(hard, other)  # two perturbations of one image
    close(r.terms["adversarial"], F.cross_entropy(method.classify(r.seen(hard)), labels))
    close(r.terms["self_supervised"], 0.5 * nt_xent(r.seen(h1), r.seen(h2)))
    attacked = method.head(r.seen(other))
    expected = towards([r.seen(t1), r.seen(t2)], attacked, labels, mode == "paper")
    close(r.terms["supervised"], 0.2 * expected)
    assert r.terms.keys() == {"adversarial", "self_supervised", "supervised"}
    branches = ("adversarial", "clean") if batchnorms == "two" else ()
    assert method.measured() == (method.encoder, branches)


def test_its_attacks_are_those_of_the_methods_it_is_made_of():
    s = ASCLPretrain.settings_type.of("released")
    assert s.at_steps == AT.settings_type.of("released").steps
    assert {s.steps} == {of.settings_type.of("released").steps for of in (ACL, AdvCL)}


def heights_of(**settings):
    """What each attack of a step climbs, seen at its start, and a twin to say it again."""
    method, twin, seen = build(ASCLPretrain, **settings), build(ASCLPretrain, **settings), []

    def watched(attack, views, height):
        given = (views,) if isinstance(views, torch.Tensor) else tuple(views)
        with torch.no_grad():
            seen.append(height(*given))
        return attack(views, height)

    return run(method, watched), twin, seen


@pytest.mark.parametrize("generation", ["ensemble", "label-based", "label-free"])
def test_every_row_of_table_6(generation):
    r, twin, seen = heights_of(generation=generation)
    (x, t1, t2), labels = r.drawn, a_batch().labels
    clean = twin.embed((t1, t2), "clean")
    pair, z = twin.embed((t1, t2), "adversarial"), twin.embed(x, "adversarial")
    features = torch.cat(twin.encode((t1, t2), "adversarial"))
    missed = F.cross_entropy(twin.classify(twin.encode(x, "adversarial")), labels)
    missed_pair = F.cross_entropy(twin.classify(features), labels.repeat(2))
    expected = {
        "ensemble": [missed, nt_xent(*pair), towards(clean, z, labels, literal=False)],
        "label-based": [missed, missed_pair],
        "label-free": [nt_xent(z, clean[0]), nt_xent(*pair)],
    }[generation]
    for ours, theirs in zip(seen, expected, strict=True):
        close(ours, theirs)
    if generation != "ensemble":  # one attacked image for both losses
        ((hard,), _), views = r.found, [r.seen(t1), r.seen(t2)]
        attacked = twin.head(r.seen(hard))
        close(r.terms["supervised"], 0.2 * towards(views, attacked, labels, literal=False))


@pytest.mark.parametrize(
    ("without", "left"),
    [
        ({"self_supervised": 0.0}, {"adversarial", "supervised"}),
        ({"supervised": 0.0}, {"adversarial", "self_supervised"}),
        ({"self_supervised": 0.0, "supervised": 0.0}, {"adversarial"}),
    ],
)
def test_every_row_of_table_5(without, left):
    method = build(ASCLPretrain, **without)
    r = run(method)
    assert r.terms.keys() == left
    assert len(r.found) == len(left)
    sum(r.terms.values()).backward()
    assert all(p.grad is not None for p in method.parameters())  # nothing stands idle


def test_the_attack_on_cross_entropy_has_steps_of_its_own():
    counts = []

    def watched(attack, views, height):
        counts.append(0)

        def counted(*moved):
            counts[-1] += 1
            return height(*moved)

        return attack(views, counted)

    run(build(ASCLPretrain), watched)
    assert counts == [10, 5, 5]
