"""What all pictures of an encoder have in common: nothing is left behind, and a seed is enough."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass

import pytest
import torch
from torch import nn
from toys import Told, blobs

from advssl import Linf
from advssl.evaluation.attacks import PGD
from advssl.evaluation.embeddings import plane
from advssl.evaluation.fisher import fisher_information
from advssl.evaluation.inversion import inversions
from advssl.evaluation.surfaces import input_surface, weight_surface
from evaluation.traces import odd_classifier, without_a_trace

ATTACK = PGD(Linf(0.1), 2, None)


def batches(count: int = 8):
    x, y = blobs(count, 3)
    return [(x[:5], y[:5]), (x[5:], y[5:])]


def of_plane(model, given):
    return plane(model, ATTACK, given, encoder=None if hasattr(model, "raw") else model)


def of_inversions(model, given):
    return inversions(model, torch.cat([x for x, _ in given]), [0, 2], steps=3)


def of_weights(model, given):
    return weight_surface(model, given, attack=ATTACK, points=3, span=0.5)


def of_sam(model, given):
    return weight_surface(model, given, toward_sam=True, points=3, span=0.1)


def of_input(model, given):
    return input_surface(model, given, points=3)


PICTURES = [of_plane, of_inversions, of_weights, of_sam, of_input, fisher_information]


def numbers(found) -> list:
    """All that was found, flat, but for names."""
    value = asdict(found) if is_dataclass(found) else found
    if isinstance(value, dict):
        return [n for v in value.values() for n in numbers(v)]
    if isinstance(value, torch.Tensor):
        return value.flatten().tolist()
    if isinstance(value, tuple | list):
        return [n for v in value for n in numbers(v)]
    return [] if isinstance(value, str) else [value]


@pytest.mark.parametrize("picture", PICTURES)
class TestPictures:
    @pytest.mark.slow
    def test_leaves_no_trace(self, picture):
        model, given = odd_classifier(), batches()
        before = [x.clone() for x, _ in given]
        with without_a_trace(model):
            picture(model, given)
        assert all(torch.equal(x, old) for (x, _), old in zip(given, before, strict=True))
        assert not any(x.requires_grad for x, _ in given)

    def test_leaves_no_trace_when_the_network_breaks_down(self, picture):
        model = Told(odd_classifier(), breaks_at=2)
        with without_a_trace(model), pytest.raises(RuntimeError, match="broke down"):
            picture(model, batches())

    @pytest.mark.slow
    def test_is_the_same_for_the_same_seed_whatever_the_caller_draws(self, picture):
        model, given = odd_classifier(), batches()
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(numbers(picture(model, given)))
        assert found[0] == found[1]

    @pytest.mark.slow
    def test_does_not_follow_the_callers_settings(self, picture):
        model, given = odd_classifier(), batches()
        expected = numbers(picture(model, given))
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                found = picture(model, given)
        finally:
            torch.set_default_dtype(torch.float32)
        assert numbers(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)

    @pytest.mark.slow
    def test_a_mode_of_training_does_not_count(self, picture):
        model, given = odd_classifier(), batches()
        expected = numbers(picture(model, given))
        assert numbers(picture(model.eval(), given)) == expected

    def test_is_plain_but_for_pixels(self, picture):
        found = picture(odd_classifier(), batches())
        plain = {k: v for k, v in asdict(found).items() if not isinstance(v, torch.Tensor)}
        assert plain
        json.dumps(plain, allow_nan=False)
        with pytest.raises(AttributeError):
            found.images = None  # frozen

    def test_refuses_half_precision_and_what_is_no_module(self, picture):
        with pytest.raises(ValueError, match="evaluation is in float32"):
            picture(odd_classifier().half(), batches())
        with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module"):
            picture(nn.functional.relu, batches())

    def test_refuses_numbers_that_are_not_finite(self, picture):
        model = odd_classifier()
        with torch.no_grad():
            model.linear.bias.fill_(torch.nan)
            model.encoder[5].bias.fill_(torch.nan)
        with pytest.raises(ValueError, match="finite"):
            picture(model, batches())
