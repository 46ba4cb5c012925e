"""Each operation is torchvision's, image by image; the draws follow the papers' laws."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from scipy.stats import binomtest, chisquare, ks_2samp, kstest
from torchvision import transforms
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from advssl.evaluation.data import open_data
from harness import augment
from harness.augment import Gentle, Strong, Weak, augmentation, dynamic

B = 12
MANY = 2_000  # draws of a law
STILL = {"scale": (1.0, 1.0), "jitter_p": 0.0, "gray_p": 0.0, "flip_p": 0.0}
ALL = [
    Strong(8),
    Strong(8, blur_p=0.5, interpolation="bicubic"),
    dynamic(8, 0.5),
    Weak(8),
    Gentle(8),
]


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


def test_shifts_are_torchvisions_crops(photos):
    top, left = torch.arange(B) % 5, torch.arange(B) * 3 % 5
    flipped = torch.arange(B) % 2 == 0

    def theirs(image, top, left, flipped):
        view = tv.crop(tv.pad(image, [2]), top, left, 8, 8)
        return tv.horizontal_flip(view) if flipped else view

    parameters = [p.to(photos.device) for p in (top, left, flipped)]
    ours = augment.shifted(photos, *parameters, pad=2)
    assert torch.equal(ours, one_by_one(theirs, photos, *parameters))


def test_motions_are_torchvisions(photos):
    degrees = torch.linspace(-40, 40, B, device=photos.device)
    shift = torch.linspace(-0.3, 0.3, 2 * B, device=photos.device).view(B, 2)
    magnification = torch.linspace(0.7, 1.4, B, device=photos.device)

    def theirs(image, degrees, shift, magnification):
        pixels = [8 * share for share in shift]
        return tv.affine(
            image, degrees, pixels, magnification, [0.0, 0.0], InterpolationMode.BILINEAR
        )

    ours = augment.moved(photos, degrees, shift, magnification)
    close(ours, one_by_one(theirs, photos, degrees, shift, magnification))


def test_jitter_is_torchvisions_in_one_of_24_orders(monkeypatch):
    monkeypatch.setattr(
        "harness.strong.uniform", lambda images, _, high: torch.full((len(images),), high)
    )
    image = torch.rand(3, 4, 4)
    steps = [
        lambda x: tv.adjust_brightness(x, 1.1),
        lambda x: tv.adjust_contrast(x, 1.2),
        lambda x: tv.adjust_saturation(x, 1.3),
        lambda x: tv.adjust_hue(x, 0.1),
    ]
    expected = []
    for order in permutations(steps):
        view = image
        for step in order:
            view = step(view)
        expected.append(view)
    strong = Strong(4, **STILL | {"jitter_p": 1.0}, jitter=(0.1, 0.2, 0.3, 0.1))
    views = strong(image.expand(MANY, -1, -1, -1))
    distances = (views[:, None] - torch.stack(expected)).abs().amax(dim=(2, 3, 4))
    assert distances.amin(dim=1).max() < 1e-5
    assert chisquare(distances.argmin(dim=1).bincount(minlength=24)).pvalue > 1e-3


# --- laws of the draws ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.55, 1.0)])
@pytest.mark.parametrize("shape", [(32, 32), (24, 40), (10, 40)])
def test_boxes_are_distributed_as_torchvisions(shape, scale):
    ratio = (3 / 4, 4 / 3)
    ours = augment.crop_boxes(torch.empty(MANY, 3, *shape), scale, ratio)
    draw = transforms.RandomResizedCrop.get_params
    image = torch.empty(3, *shape)
    theirs = torch.tensor([draw(image, list(scale), list(ratio)) for _ in range(MANY)])
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(a.numpy(), b.numpy(), method="asymp").pvalue > 1e-3
    top, left, h, w = ours.T
    assert (torch.stack([top, left]) >= 0).all()
    assert (top + h <= shape[0]).all()
    assert (left + w <= shape[1]).all()


@pytest.mark.parametrize("setting", ["flip_p", "gray_p", "blur_p", "jitter_p"])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_thing_happens_with_its_probability(setting, probability, monkeypatch):
    # At its strongest, so that it shows.
    monkeypatch.setattr(
        "harness.strong.uniform", lambda images, _, high: torch.full((len(images),), high)
    )
    image = torch.rand(3, 4, 4)
    strong = Strong(4, **STILL | {setting: probability})
    views = strong(image.expand(MANY, -1, -1, -1))
    changed = (views - image).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert binomtest(int(changed.sum()), MANY, probability).pvalue > 1e-3


@pytest.mark.parametrize(
    ("which", "image"),
    [
        (0, torch.tensor([0.4])),  # lighter as a whole
        (1, torch.tensor([0.4, 0.6]).repeat(2)),  # light from dark columns
        (2, torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)),  # channel from channel
    ],
)
def test_factors_are_uniform(which, image):
    image = image.expand(3, 4, 4)
    most = [0.4 if i == which else 0.0 for i in range(4)]
    views = Strong(4, **STILL | {"jitter_p": 1.0}, jitter=most)(image.expand(MANY, -1, -1, -1))

    def measured(images):
        return images.mean(dim=(1, 2, 3)) if which == 0 else images.flatten(1).std(dim=1)

    factors = measured(views) / measured(image[None])
    assert kstest(factors.numpy(), "uniform", args=(0.6, 0.8)).pvalue > 1e-3


def test_turns_of_hue_are_uniform():
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(MANY, -1, 4, 4)
    views = Strong(4, **STILL | {"jitter_p": 1.0}, jitter=(0.0, 0.0, 0.0, 0.1))(red)
    assert (views[:, 0] == 1).all()
    turns = (views[:, 1] - views[:, 2])[:, 0, 0] / 6  # toward yellow or toward magenta
    assert kstest(turns.numpy(), "uniform", args=(-0.1, 0.2)).pvalue > 1e-3


def test_shifts_are_uniform():
    image = torch.arange(1.0, 65).view(1, 8, 8).expand(3, 8, 8) / 64
    views = Weak(8, pad=2, flip_p=0.0)(image.expand(MANY, -1, -1, -1))
    codes = (views[:, 0, 4, 4] * 64 - 1).round().long()  # which pixel came to the middle
    rows, columns = codes // 8 - 2, codes % 8 - 2
    assert chisquare((rows * 5 + columns).bincount(minlength=25)).pvalue > 1e-3


def test_gentle_motions_stay_gentle():
    dot = torch.zeros(3, 32, 32)
    dot[:, 15:17, 15:17] = 1  # at the centre: rotation and size leave its place
    views = Gentle(32, light=0.0)(dot.expand(MANY, -1, -1, -1))[:, 0]
    mass = views.sum(dim=(1, 2))
    pixel = torch.arange(32.0) - 15.5
    for axis in (1, 2):
        place = (views.sum(dim=axis) * pixel).sum(dim=1) / mass
        assert kstest(place.numpy(), "uniform", args=(-3.2, 6.4)).pvalue > 1e-3
    sizes = (mass / 4).sqrt()
    assert sizes.min() > 0.8
    assert sizes.max() < 1.2


# --- what all of them keep ------------------------------------------------------------------------


@pytest.mark.parametrize("augmenting", ALL, ids=repr)
class TestLaws:
    def test_every_image_has_its_own_draw(self, augmenting, device):
        views = augmenting(torch.rand(1, 3, 8, 8, device=device).expand(6, -1, -1, -1))
        assert len({view.cpu().numpy().tobytes() for view in views}) > 3

    def test_a_seed_decides_all(self, augmenting, photos):
        views = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            views.append(augmenting(photos))
        assert torch.equal(views[0], views[1])
        assert not torch.equal(views[0], views[2])

    def test_pixels_stay_pixels(self, augmenting, photos):
        for _ in range(5):
            view = augmenting(photos)
            assert view.shape == (B, 3, 8, 8)
            assert view.dtype == torch.float32
            assert view.device == photos.device
            assert 0 <= view.min() <= view.max() <= 1

    def test_the_images_are_left_alone(self, augmenting, photos):
        before = photos.clone()
        view = augmenting(photos.requires_grad_())
        assert torch.equal(photos, before)
        assert not view.requires_grad
        assert view.data_ptr() != photos.data_ptr()

    def test_memory_format_is_kept(self, augmenting, photos):
        torch.manual_seed(0)
        view = augmenting(photos)
        assert view.is_contiguous()
        torch.manual_seed(0)
        other = augmenting(photos.contiguous(memory_format=torch.channels_last))
        assert other.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(view, other)

    def test_autocast_does_not_reach_it(self, augmenting, photos):
        torch.manual_seed(0)
        view = augmenting(photos)
        torch.manual_seed(0)
        with torch.autocast(photos.device.type, torch.bfloat16):
            assert torch.equal(augmenting(photos), view)

    def test_stored_images_are_refused(self, augmenting):
        with pytest.raises(ValueError, match=r"torch.uint8 of shape \(2, 3, 8, 8\); divide"):
            augmenting(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_strong_also_resizes():
    assert Strong(16)(torch.rand(2, 3, 24, 40)).shape == (2, 3, 16, 16)


# --- which one ------------------------------------------------------------------------------------


def test_strength_goes_from_flips_to_acls():
    image = torch.rand(3, 8, 8)
    for view in dynamic(8, 0.0)(image.expand(20, -1, -1, -1)):
        assert any((view - whole).abs().max() < 1e-6 for whole in (image, image.flip(2)))
    full, half = dynamic(8, 1.0), dynamic(8, 0.5, interpolation="bicubic")
    assert full.scale == pytest.approx((0.1, 1.0))
    assert (full.jitter, full.jitter_p, full.gray_p) == ((0.4, 0.4, 0.4, 0.1), 0.8, 0.2)
    assert half.scale == pytest.approx((0.55, 1.0))
    assert (half.jitter, half.jitter_p, half.gray_p) == ((0.2, 0.2, 0.2, 0.05), 0.4, 0.1)
    assert (half.flip_p, half.interpolation) == (0.5, "bicubic")
    assert repr(Strong(8, blur_p=0.4).at(1.0)) == repr(Strong(8, blur_p=0.4))
    assert Strong(8, blur_p=0.4).at(0.5).blur_p == 0.2


def test_what_digits_have_goes_to_nothing():
    images = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(Gentle(8).at(0.0)(images), images, rtol=0, atol=1e-5)
    assert repr(Gentle(8).at(1.0)) == repr(Gentle(8))
    half = Gentle(8, degrees=10, scale=(0.9, 1.2)).at(0.5)
    assert (half.degrees, half.shift, half.light) == pytest.approx((5, 0.05, 0.2))
    assert half.scale == pytest.approx((0.95, 1.1))
    with pytest.raises(NotImplementedError, match="Weak has one strength"):
        Weak(8).at(0.5)


def test_photographs_and_digits_have_their_own():
    digits = open_data("digits", image_size=8)
    photographs = replace(digits, natural=True)
    settings = {"scale": (0.1, 1.0), "blur_p": 0.5}
    strong = augmentation("strong", photographs, 32, **settings)
    assert repr(strong) == repr(Strong(32, **settings))
    assert repr(augmentation("weak", photographs, 32)) == "Weak(32, pad=4, flip_p=0.5)"
    assert isinstance(augmentation("strong", digits, 16, **settings), Gentle)
    assert repr(augmentation("weak", digits, 16)) == "Weak(16, pad=2, flip_p=0.0)"


def test_unknown_names_are_refused():
    digits = open_data("digits", image_size=8)
    with pytest.raises(ValueError, match='"strong" or "weak", got \'none\''):
        augmentation("none", digits, 8)
    with pytest.raises(TypeError, match="blurr"):
        augmentation("strong", digits, 8, blurr=0.5)
    with pytest.raises(ValueError, match="one of \\['bilinear', 'bicubic'\\], got 'area'"):
        Strong(8, interpolation="area")
    with pytest.raises(ValueError, match=r"Weak\(8\) shifts images of that size"):
        Weak(8)(torch.rand(2, 3, 9, 9))
