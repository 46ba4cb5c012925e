"""Both views are linear projections known in closed form; numpy's full FFT is the oracle."""

from __future__ import annotations

import copy
import pickle

import kornia
import numpy as np
import pytest
import torch
from kornia.augmentation import AugmentationSequential, RandomHorizontalFlip
from oracles import filtered, is_high

from advssl import views
from advssl.views import HighFreqView, LowFreqView

BOTH = pytest.mark.parametrize("make", [HighFreqView, LowFreqView])
# In kornia 0.7.4 forward itself breaks the graph, in 0.9 it does not; 0.8 was not tried.
ONE_GRAPH = not kornia.__version__.startswith(("0.7", "0.8"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32)


@pytest.fixture
def masks_made(monkeypatch):
    """The arguments of every mask that is made, with none made yet."""
    made = []
    new_mask = views._new_mask
    monkeypatch.setattr(views, "_new_mask", lambda *key: made.append(key) or new_mask(*key))
    views._cached_mask.cache_clear()
    return made


def wave(cycles, size, axis):
    phase = 2 * torch.pi * cycles * torch.arange(size, dtype=torch.float64) / size
    row = torch.cos(phase + 0.3).expand(1, 1, size, size)
    return row if axis == "columns" else row.mT


class TestMathematics:
    @pytest.mark.parametrize("size", [(32, 32), (33, 33), (32, 48), (27, 40), (40, 27), (1, 9)])
    @pytest.mark.parametrize(("radius", "unit"), [(8, "image"), (3.7, "image"), (0.25, "pixel")])
    def test_equals_numpys_filter(self, size, radius, unit):
        images = torch.rand(2, 3, *size)
        high = is_high(*size, radius, unit)
        for make, kept in ((HighFreqView, high), (LowFreqView, ~high)):
            view = make(radius, unit=unit)
            torch.testing.assert_close(
                view(images).double(), filtered(images, kept), atol=2e-6, rtol=0
            )
            torch.testing.assert_close(view(images.double()), filtered(images, kept))

    def test_removes_193_of_1024_coefficients(self):
        impulse = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
        impulse[..., 0, 0] = 1  # every coefficient is 1
        assert torch.fft.fft2(HighFreqView()(impulse)).abs().lt(0.5).sum() == 193
        assert torch.fft.fft2(LowFreqView()(impulse)).abs().gt(0.5).sum() == 193

    @pytest.mark.parametrize("size", [(32, 32), (17, 30)])
    @pytest.mark.parametrize(("radius", "unit"), [(0, "image"), (5, "image"), (0.3, "pixel")])
    def test_high_and_low_make_the_image(self, size, radius, unit):
        images = torch.rand(2, 3, *size)
        together = HighFreqView(radius, unit=unit)(images) + LowFreqView(radius, unit=unit)(images)
        torch.testing.assert_close(together, images, atol=2e-6, rtol=0)

    @BOTH
    def test_twice_is_once(self, make, images):
        once = make()(images.double())
        torch.testing.assert_close(make()(once), once)

    @BOTH
    def test_linear(self, make, images):
        x, y = images.double().chunk(2)
        view = make()
        torch.testing.assert_close(view(2 * x - 3 * y), 2 * view(x) - 3 * view(y))

    @pytest.mark.parametrize("axis", ["rows", "columns"])
    @pytest.mark.parametrize(
        ("radius", "unit", "size"), [(8, "image", 32), (0.25, "pixel", 32), (0.25, "pixel", 224)]
    )
    def test_splits_waves_at_the_radius(self, axis, radius, unit, size):
        at, below = wave(size // 4, size, axis), wave(size // 4 - 1, size, axis)
        high, low = HighFreqView(radius, unit=unit), LowFreqView(radius, unit=unit)
        for passes, stops, waves in ((high, low, at), (low, high, below)):
            torch.testing.assert_close(passes(waves), waves)
            torch.testing.assert_close(stops(waves), torch.zeros_like(waves))

    def test_a_distance_that_rounds_is_still_at_the_radius(self):
        # 0.18² + 0.24² = 0.3², but not in floating point.
        for rows, columns in ((9, 0), (0, 9), (18, 24), (17, 24)):
            mask = views._new_mask(100, 100, 0.3, "pixel", torch.device("cpu"), torch.float32)
            assert mask[rows, columns] == (np.hypot(rows, columns) < 30)

    @pytest.mark.parametrize("size", [25, 50, 75, 100])
    def test_whatever_the_radius_only_what_is_nearer_is_low(self, size):
        # In whole numbers, where nothing rounds; float32 takes some that are at the radius for low.
        rows = torch.arange(size)
        rows = torch.minimum(rows, size - rows)
        for cycles in range(1, size // 2):
            key = (size, size, cycles / size, "pixel", torch.device("cpu"), torch.float32)
            mask = views._new_mask(*key).bool()
            wanted = rows[:, None] ** 2 + torch.arange(mask.shape[1]) ** 2 < cycles**2
            assert mask.shape[1] >= cycles
            assert torch.equal(mask, wanted), cycles

    def test_the_mean_belongs_to_the_low_view(self, images):
        means = images.mean(dim=(2, 3))
        high, low = HighFreqView()(images), LowFreqView()(images)
        torch.testing.assert_close(high.mean(dim=(2, 3)), torch.zeros(4, 3), atol=1e-6, rtol=0)
        torch.testing.assert_close(low.mean(dim=(2, 3)), means)
        assert high.min() < -0.1  # not clamped

    @BOTH
    def test_gradcheck(self, make):
        images = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(make(2), images)
        assert torch.autograd.gradcheck(make(0.3, unit="pixel"), images)

    @BOTH
    def test_its_own_adjoint(self, make, images):
        weights = torch.rand_like(images)
        images.requires_grad_()
        (make()(images) * weights).sum().backward()
        torch.testing.assert_close(images.grad, make()(weights), atol=2e-6, rtol=0)


@BOTH
class TestKornia:
    def test_inside_a_sequential(self, make, images):
        masks = torch.randint(0, 2, (4, 1, 32, 32)).float()
        pipeline = AugmentationSequential(make(), data_keys=["input", "mask"])
        viewed, same_masks = pipeline(images, masks)
        assert torch.equal(viewed, make()(images))
        assert torch.equal(same_masks, masks)

    @pytest.mark.parametrize("alone", [True, False])
    def test_replays(self, make, alone, images):
        view = make(p=0.5)
        if not alone:
            view = AugmentationSequential(RandomHorizontalFlip(p=0.5), view, data_keys=["input"])
        first = view(images)
        params = copy.deepcopy(view._params)
        for _ in range(3):
            view(images)  # draws anew
        assert torch.equal(view(images, params=params), first)

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_all_or_none(self, make, p, images):
        expected = make()(images) if p else images
        assert torch.equal(make(p=p)(images), expected)

    def test_chooses_per_image(self, make):
        images = torch.rand(64, 1, 32, 32)
        mixed, viewed = make(p=0.5)(images), make()(images)
        chosen = (mixed != images).flatten(1).any(dim=1)
        assert 10 < chosen.sum() < 54
        assert torch.equal(mixed[~chosen], images[~chosen])
        torch.testing.assert_close(mixed[chosen], viewed[chosen])

    def test_chooses_one_for_the_batch(self, make, images):
        view = make(p=0.5, same_on_batch=True)
        seen = set()
        for _ in range(20):
            changed = (view(images) != images).flatten(1).any(dim=1)
            assert changed.all() or not changed.any()
            seen.add(bool(changed.all()))
        assert seen == {True, False}

    def test_draws_from_the_global_generator(self, make, images):
        def under_seed_1():
            torch.manual_seed(1)
            return make(p=0.5)(images)

        assert torch.equal(under_seed_1(), under_seed_1())

    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_keepdim(self, make, p, images):
        assert make(p=p)(images[0]).shape == (1, 3, 32, 32)
        assert make(p=p, keepdim=True)(images[0]).shape == (3, 32, 32)
        assert make(p=p, keepdim=True)(images).shape == images.shape
        assert torch.equal(make(keepdim=True)(images[0]), make()(images[:1])[0])

    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_an_empty_batch(self, make, p, images):
        assert make(p=p)(images[:0]).shape == (0, 3, 32, 32)


@BOTH
class TestPrecisionAndLayout:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_half_in_half_out(self, make, dtype, p, images):
        half = images.to(dtype)
        view = make(p=p)
        result = view(half)
        assert result.dtype == dtype
        wide = view(half.float(), params=view._params)
        assert torch.equal(result, wide.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_autocast_changes_nothing(self, make, dtype, p, images):
        images = images.to(dtype)
        view = make(p=p)
        result = view(images)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = view(images, params=view._params)
        assert under_autocast.dtype == dtype
        assert torch.equal(under_autocast, result)

    def test_torchs_default_type_changes_nothing(self, make, images):
        wanted = make(3)(images)
        views._cached_mask.cache_clear()
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(make(3)(images), wanted)
        finally:
            torch.set_default_dtype(torch.float32)
            views._cached_mask.cache_clear()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_channels_last_stays(self, make, dtype, p, images):
        images = images.to(dtype)
        view = make(p=p)
        result = view(images.to(memory_format=torch.channels_last))
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result, view(images, params=view._params), atol=1e-6, rtol=1e-3)
        assert view(images).is_contiguous()

    def test_strided_images(self, make, images):
        strided = images[..., ::2]
        torch.testing.assert_close(make()(strided), make()(strided.contiguous()), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_images_are_left_alone(self, make, p, images):
        before = images.clone()
        make(p=p)(images)
        assert torch.equal(images, before)


class TestMaskCache:
    def test_made_once_per_size_dtype_and_setting(self, masks_made, images):
        view = HighFreqView()
        for _ in range(3):
            view(images)
            HighFreqView()(images[:1].bfloat16())  # another view, the same filter
        assert len(masks_made) == 1
        view(images.double())
        view(images[..., :30])
        HighFreqView(0.25, unit="pixel")(images)
        assert len(masks_made) == 4
        LowFreqView()(images)  # what the high view takes away
        assert len(masks_made) == 4

    def test_made_once_per_device(self, masks_made, images):
        view = HighFreqView()
        for device in ("cpu", "meta", "cpu", "meta"):
            assert view.apply_transform(images.to(device)).device.type == device
        assert len(masks_made) == 2

    def test_bounded(self, masks_made):
        for size in range(1, views._MASKS_KEPT + 9):
            HighFreqView()(torch.rand(1, 1, 1, size))
        assert len(masks_made) == views._MASKS_KEPT + 8
        assert views._cached_mask.cache_info().currsize == views._MASKS_KEPT

    def test_made_in_inference_mode_serves_training(self, masks_made, images):
        view = HighFreqView()
        with torch.inference_mode():
            view(images)
        view(images.requires_grad_()).square().sum().backward()
        assert len(masks_made) == 1
        assert images.grad is not None

    def test_made_under_a_transform_serves_after_it(self, masks_made, images):
        view = HighFreqView()
        gradient = torch.func.grad(lambda x: view(x).square().sum())(images)
        assert len(masks_made) == 1
        torch.testing.assert_close(gradient, 2 * view(images), atol=4e-6, rtol=0)


@BOTH
class TestModule:
    def test_owns_no_state(self, make, images):
        view = make()
        view(images)
        assert not view.state_dict()
        assert not list(view.buffers())
        view.load_state_dict({})

    @pytest.mark.parametrize("used", [True, False])
    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
    def test_copies_and_pickles(self, make, used, duplicate, images):
        view = make(0.2, unit="pixel", p=0.5)
        if used:
            view(images.clone().requires_grad_())
        twin = duplicate(view)
        assert repr(twin) == repr(view)
        params = view.forward_parameters(images.shape)
        assert torch.equal(twin(images, params=params), view(images, params=params))

    def test_pickles_without_its_masks(self, make):
        view = make()
        view.apply_transform(torch.rand(1, 1, 224, 224))  # not forward: old kornia keeps its images
        assert len(pickle.dumps(view)) < 20_000

    def test_to(self, make, images):
        view = make().to("cpu").to(torch.float64).half()
        assert torch.equal(view(images), make()(images))

    def test_repr(self, make):
        view = make(0.25, unit="pixel", p=0.5)
        expected = "radius=0.25, unit='pixel', p=0.5, same_on_batch=False, keepdim=False"
        assert view.extra_repr() == expected
        assert repr(view) == f"{make.__name__}({expected})"
        assert repr(view) in repr(AugmentationSequential(view))

    # Dynamo's own, where old kornia breaks the graph.
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("size", [(32, 32), (9, 14)])
    def test_compiles(self, make, size):
        torch.compiler.reset()
        images = torch.rand(2, 3, *size, requires_grad=True)
        view = make(3)
        compiled = torch.compile(view, backend="aot_eager", fullgraph=ONE_GRAPH)
        torch.testing.assert_close(compiled(images), view(images), atol=1e-6, rtol=0)
        compiled(images).square().sum().backward()
        torch.testing.assert_close(images.grad, 2 * view(images).detach(), atol=2e-6, rtol=0)


@BOTH
class TestRefuses:
    @pytest.mark.parametrize("radius", [-1.0, float("nan"), float("inf")])
    @pytest.mark.parametrize("unit", ["image", "pixel"])
    def test_radius(self, make, radius, unit):
        with pytest.raises(ValueError, match=f"radius must be finite and not neg.*, got {radius}"):
            make(radius, unit=unit)

    def test_radius_of_the_other_unit(self, make):
        make(0.71, unit="pixel")
        with pytest.raises(ValueError, match=r'0.71 cycles per pixel, got.*8.*unit="image"'):
            make(8.0, unit="pixel")

    def test_unit(self, make):
        with pytest.raises(ValueError, match=r'unit must be "image" or "pixel".*\'radians\''):
            make(unit="radians")

    @pytest.mark.parametrize("p", [-0.1, 1.5])
    def test_p(self, make, p):
        with pytest.raises(ValueError, match=rf"p must be a probability in \[0, 1\], got {p}"):
            make(p=p)

    @pytest.mark.parametrize("wrong", ["8", None, (8,), True])
    def test_what_is_no_number(self, make, wrong):
        with pytest.raises(ValueError, match="radius must be a number"):
            make(wrong)
        with pytest.raises(ValueError, match="p must be a number"):
            make(p=wrong)

    @pytest.mark.parametrize("name", ["same_on_batch", "keepdim"])
    def test_what_is_no_flag(self, make, name):
        with pytest.raises(ValueError, match=f"^{name} must be True or False"):
            make(**{name: "yes"})

    def test_numpys_numbers_are_numbers(self, make):
        assert repr(make(np.float64(8), p=torch.tensor(1))) == repr(make())

    @pytest.mark.parametrize("wrong", [np.zeros((2, 3, 8, 8)), [[0.0]], None])
    def test_what_is_no_tensor(self, make, wrong):
        with pytest.raises(ValueError, match="images must be a floating point tensor, got"):
            make()(wrong)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
    def test_integer_images(self, make, dtype):
        images = torch.ones(2, 3, 8, 8).to(dtype)
        for view in (make(), AugmentationSequential(make(), data_keys=["input"])):
            with pytest.raises(
                ValueError, match=rf"floating point tensor, got {dtype} .*images / 255"
            ):
                view(images)
