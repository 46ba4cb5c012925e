"""Pixels there and back, in every unit; and numbers in another unit are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advssl.pixels import CIFAR10, IMAGENET, Pixels

GREY = Pixels((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), (0, 255))
EVERY = pytest.mark.parametrize(
    "pixels", [Pixels(), IMAGENET, CIFAR10, GREY, Pixels((0.5,) * 3, (0.25,) * 3, None)]
)
ADVICE = r"of 255 grey levels write mean and std over 255"


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestThereAndBack:
    def test_of_undoes_to(self, pixels, dtype):
        images = torch.randn(2, 3, 4, 5, dtype=dtype)
        back = pixels.of(pixels.to(images))
        assert back.dtype == dtype
        torch.testing.assert_close(back, images, rtol=1e-5, atol=1e-5)

    def test_to_is_affine_in_each_channel(self, pixels, dtype):
        images = torch.randn(2, 3, 4, 5, dtype=dtype)
        mean, std = pixels.mean or (0,) * 3, pixels.std or (1,) * 3
        for c, found in enumerate(pixels.to(images).unbind(1)):
            torch.testing.assert_close(found, images[:, c] * std[c] + mean[c])

    def test_slope_is_the_gradient_through_of(self, pixels, dtype):
        inside = torch.rand(2, 3, 4, 5, dtype=dtype, requires_grad=True)
        weights = torch.randn(2, 3, 4, 5, dtype=dtype)
        (weights * pixels.of(inside)).sum().backward()
        torch.testing.assert_close(pixels.slope(weights), inside.grad)

    def test_clamp_is_into_the_bounds_and_leaves_what_is_there(self, pixels, dtype):
        far = torch.linspace(-600, 600, 60, dtype=dtype).view(1, 3, 4, 5)
        clamped = pixels.clamp(far)
        if pixels.bounds is None:
            assert torch.equal(clamped, far)
        else:
            low, high = pixels.bounds
            assert clamped.aminmax() == (low, high)
            inside = (low <= far) & (far <= high)
            assert torch.equal(clamped[inside], far[inside])


@given(mean=st.floats(0, 1), std=st.floats(1e-3, 2), pixel=st.floats(0, 1))
def test_one_channel_by_hand(mean, std, pixel):
    image = Pixels((mean,), (std,)).of(torch.full((1, 1, 1, 1), pixel, dtype=torch.float64))
    assert image.item() == pytest.approx((pixel - mean) / std, rel=1e-12, abs=1e-12)


def test_it_is_a_value():
    given_ = Pixels(np.array([0.5, 0.25]), torch.tensor([0.5, 1.0]), [0, 1])
    plain = Pixels((0.5, 0.25), (0.5, 1.0))
    assert given_ == plain
    assert hash(given_) == hash(plain)
    assert {type(v) for v in (*given_.mean, *given_.std, *given_.bounds)} == {float}
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.mean = None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5,)}, r"mean and std go together, got mean=\(0.5,\) and std=None"),
        ({"std": (0.5,)}, "mean and std go together"),
        ({"mean": (0.5,), "std": (0.5, 0.5)}, "one number per channel"),
        ({"mean": (), "std": ()}, "one number per channel"),
        ({"mean": (0.5,), "std": (0,)}, "std above zero"),
        ({"mean": (float("nan"),), "std": (1,)}, "all finite"),
        ({"mean": 0.5, "std": 0.5}, "mean must be several numbers"),
        ({"mean": ("a",), "std": (1,)}, "each of mean must be a number"),
        ({"bounds": (1, 0)}, r"bounds must be \(low, high\) with low < high"),
        ({"bounds": (0, 1, 2)}, r"bounds must be \(low, high\)"),
        ({"bounds": 1.0}, "bounds must be several numbers"),
        ({"mean": (123.7,), "std": (0.2,)}, rf"mean must lie in bounds \(0.0, 1.0\).*; {ADVICE}"),
        ({"mean": (0.5,), "std": (58.4,)}, rf"std \(58.4,\) is wider than the range.*; {ADVICE}"),
        ({"mean": (-1,), "std": (58.4,), "bounds": (0, 255)}, "mean must lie in bounds"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Pixels(**settings)


@pytest.mark.parametrize("method", ["to", "of"])
def test_images_with_other_channels(method):
    grey = torch.rand(2, 1, 4, 4)
    assert not IMAGENET.fits(grey)
    assert Pixels().fits(grey)
    with pytest.raises(ValueError, match="mean and std have 3 channels, the images 1"):
        getattr(IMAGENET, method)(grey)


def test_constants_are_those_of_the_data_sets():
    """Of CIFAR-10's training images the mean and the deviation over all pixels of a channel."""
    assert Pixels((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)) == CIFAR10
    assert Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == IMAGENET
