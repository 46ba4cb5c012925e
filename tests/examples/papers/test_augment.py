"""Each operation is torchvision's, image by image; the draws follow the papers' laws."""

from __future__ import annotations

import pytest
import torch
from harness import augment
from harness.augment import Gentle, Strong, Weak, augmentation, dynamic
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from advssl.evaluation.data import open_data

B = 12
STRONG = {"blur_p": 0.5, "interpolation": "bicubic"}
ALL = [Strong(8), Strong(8, **STRONG), dynamic(8, 0.5), Weak(8), Gentle(8)]


@pytest.fixture
def photos(device) -> torch.Tensor:
    """Coloured, with gray, black and white images among them."""
    images = torch.rand(B, 3, 8, 8)
    images[0], images[1] = images[0, :1], 0
    images[2] = 1
    return images.to(device)


def one_by_one(function, images, *parameters):
    """``function`` on each image with its own parameters, stacked."""
    rows = zip(images, *(p.tolist() for p in parameters), strict=True)
    return torch.stack([function(*row) for row in rows])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


# --- operations are torchvision's -----------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 11, 5])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_torchvisions_antialiased_ones(photos, interpolation, size):
    box = augment.crop_boxes(photos, (0.1, 1.0), (3 / 4, 4 / 3))
    flipped = torch.arange(B, device=photos.device) % 2 == 0

    def theirs(image, box, flipped):
        mode = InterpolationMode(interpolation)
        box = [int(side) for side in box]
        view = tv.resized_crop(image, *box, [size, size], mode, antialias=True)
        return (tv.horizontal_flip(view) if flipped else view).clamp(0, 1)

    ours = augment.resized_crop(photos, box, flipped, size, interpolation)
    close(ours, one_by_one(theirs, photos, box, flipped))


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [(0, tv.adjust_brightness), (1, tv.adjust_contrast), (2, tv.adjust_saturation)],
)
def test_light_and_colour_are_torchvisions(photos, kind, theirs):
    factor = torch.linspace(0.2, 1.8, B, device=photos.device)
    ours = augment.blend(photos, torch.full((B,), kind, device=photos.device), factor)
    close(ours, one_by_one(theirs, photos, factor))


def test_hue_is_torchvisions(photos):
    turn = torch.linspace(-0.5, 0.5, B, device=photos.device)
    close(augment.turn_hue(photos, turn), one_by_one(tv.adjust_hue, photos, turn))


def test_gray_is_torchvisions(photos):
    close(augment.luma(photos), tv.rgb_to_grayscale(photos))


def test_blur_is_torchvisions(photos):
    sigma = torch.linspace(0.1, 2.0, B, device=photos.device)
    theirs = one_by_one(lambda image, s: tv.gaussian_blur(image, [3, 3], [s, s]), photos, sigma)
    close(augment.blur(photos, sigma), theirs)
