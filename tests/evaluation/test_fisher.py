"""The information is the expected square of a score, and the curvature of a divergence."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import Linear, blobs, trained

from advssl.evaluation import fisher
from advssl.evaluation.fisher import Fisher, fisher_information


class TestFisher:
    def test_of_a_linear_classifier_in_closed_form(self):
        model, (x, y) = Linear(4), blobs(6, 4)
        found = fisher_information(model, [(x[:4], y[:4]), (x[4:], y[4:])])
        w, p = model.weight.detach().double(), F.softmax(model(x).detach().double(), dim=1)
        for i in range(6):
            whole = w.T @ (torch.diag(p[i]) - torch.outer(p[i], p[i])) @ w
            values = torch.linalg.eigvalsh(whole)
            assert found.traces[i] == pytest.approx(float(whole.trace()), rel=1e-4)
            assert found.largest[i] == pytest.approx(float(values[-1]), rel=1e-4)
        assert found.trace == pytest.approx(sum(found.traces) / 6)
        assert found.worst == pytest.approx(sum(found.largest) / 6)
        json.dumps(asdict(found), allow_nan=False)

    def test_is_the_expected_square_of_the_score(self):
        model, (x, y) = trained(3), blobs(3, 3)
        found = fisher_information(model, [(x, y)])
        for i in range(3):
            leaf = x[i : i + 1].clone().requires_grad_()
            log_p, total = F.log_softmax(model(leaf), dim=1)[0], 0.0
            for k in range(3):
                (score,) = torch.autograd.grad(log_p[k], leaf, retain_graph=True)
                total += float(log_p[k].detach().exp() * score.square().sum())
            assert found.traces[i] == pytest.approx(total, rel=1e-4)

    def test_is_the_curvature_of_the_divergence_in_the_worst_direction(self):
        """Of two classes there is one direction that counts: the difference of the weights."""
        model, (x, y) = Linear(2), blobs(1, 2)
        with torch.no_grad():
            model.bias -= model(x)[0] + torch.tensor([0.3, 0.0])  # not saturated
        found = fisher_information(model, [(x, y)])
        way = (model.weight[0] - model.weight[1]).detach().double()
        length = 1e-3
        delta = (length * way / way.norm()).view(1, 1, 8, 8)
        with torch.no_grad():
            model.double()
            log_p, log_q = (F.log_softmax(model(v), dim=1) for v in (x.double(), x + delta))
        kl = float((log_p.exp() * (log_p - log_q)).sum())
        assert found.divergence(length) == pytest.approx(kl, rel=5e-3)

    def test_parts_are_as_the_whole(self, monkeypatch):
        model, (x, y) = trained(3), blobs(5, 3)
        whole = fisher_information(model, [(x, y)])
        monkeypatch.setattr(fisher, "_NUMBERS", 2 * 3 * 64)
        parts = fisher_information(model, [(x, y)])
        assert parts.traces == pytest.approx(whole.traces, rel=1e-4)

    def test_refuses_what_has_none(self):
        class Detached(Linear):
            def forward(self, images):
                return super().forward(images.detach())

        with pytest.raises(ValueError, match="there are no images"):
            fisher_information(Linear(2), [])
        with pytest.raises(ValueError, match="no gradient in the images"):
            fisher_information(Detached(2), [blobs(2, 2)])
        with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
            fisher_information(nn.functional.relu, [blobs(2, 2)])


def test_refuses_a_gradient_that_is_not_finite():
    class Steep(Linear):
        def forward(self, images):
            return super().forward(images) + (images - images.detach()).sqrt().sum()

    with pytest.raises(ValueError, match="gradient of the classifier's logits is not finite"):
        fisher_information(Steep(2), [blobs(2, 2)])


def test_the_mean_is_over_images():
    assert Fisher((1.0, 3.0), (0.5, 1.5)).divergence(2.0) == 2.0


@pytest.mark.parametrize(("traces", "half"), [((9.0, 1.0, 4.0), 4.0), ((1.0, 9.0, 4.0, 2.0), 3.0)])
def test_the_median_is_where_half_of_the_images_have_more(traces, half):
    found = Fisher(traces, traces)
    assert found.median == half
    more = sum(trace > found.median for trace in traces)
    assert more == len(traces) // 2
