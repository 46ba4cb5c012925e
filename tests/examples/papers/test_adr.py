"""ADR's step against its equation, pair by pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from adr import ADR

from .test_methods import COUNT, a_batch, build, close, run


def test_adr_written_out_pair_by_pair():
    method = build(ADR, natural=0.5, global_smooth=2.0, local_smooth=3.0, confidence=0.7)
    r = run(method)
    (x,), ((hard,),), labels = r.drawn, r.found, a_batch().labels
    z, z_adv = r.seen(x), r.seen(hard)
    logits, attacked = method.head(z), method.head(z_adv)
    p, q = logits.softmax(1), attacked.softmax(1)

    def apart(i, j):  # attacked i, clean j
        return sum((z_adv[i, k] - z[j, k]).abs() for k in range(z.shape[1])) / z.shape[1]

    def unlike(i, j):
        return -sum(p[j, c] * q[i, c].log() for c in range(4))

    each, pairs = range(COUNT), [(i, j) for i in range(COUNT) for j in range(COUNT)]
    weight = {(i, j): 1 if labels[i] == labels[j] else 1 - 1 / 0.99 for i, j in pairs}
    expected = {
        "adversarial": F.cross_entropy(attacked, labels),
        "natural": 0.5 * F.cross_entropy(logits, labels),
        "confidence": -0.7 * sum(q[i, c] * q[i, c].log() for i in each for c in range(4)) / COUNT,
        "local_compact": sum(apart(i, i) for i in each) / COUNT,
        "local_smooth": 3 * sum(unlike(i, i) for i in each) / COUNT,
        "global_compact": sum(weight[pair] * apart(*pair) for pair in pairs) / COUNT**2,
        "global_smooth": 2 * sum(weight[pair] * unlike(*pair) for pair in pairs) / COUNT**2,
    }
    assert r.terms.keys() == expected.keys()
    for name, term in expected.items():
        close(r.terms[name], term)
    targets = [term for name, term in r.terms.items() if name != "natural"]
    assert torch.autograd.grad(sum(targets), z, allow_unused=True)[0] is None


def test_a_batch_of_one_class_has_weights_of_one():
    method = build(ADR)
    alike = torch.zeros(COUNT, dtype=torch.long)
    images = torch.rand(COUNT, 3, 8, 8)
    terms = method.step(images, alike, torch.arange(COUNT))
    assert terms["global_compact"] > terms["local_compact"] / 10 > 0
    assert run(build(ADR)).terms["global_compact"] < terms["global_compact"]


def test_of_its_terms_the_release_leaves_one_out():
    released = ADR.settings_type.of("released")
    names = ("confidence", "local_compact", "local_smooth", "global_compact", "global_smooth")
    assert [getattr(released, name) for name in names] == [1.0, 1.0, 1.0, 1.0, 0.0]
