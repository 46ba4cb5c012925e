"""Every ball obeys the same laws, in the norm beside it; a new ball joins by one line in BALLS.

One of the package's own, with a name in ``advssl.balls.BALLS``, also is a value and knows what a
report asks of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import BALLS as NAMED
from advssl.balls import L2, Ball, Linf, check_radius, grey_of, name_of, radius_of, resized, widest


@dataclasses.dataclass(frozen=True)
class Patch:
    """A user's own: the pixels of the upper left quarter alone, each within ``radius``."""

    radius: float

    @staticmethod
    def moved(delta):
        """The part of a perturbation that is in the quarter; the rest is zero."""
        rows, columns = (torch.arange(n) < (n + 1) // 2 for n in delta.shape[-2:])
        return torch.where((rows[:, None] & columns).to(delta.device), delta, 0)

    def sample(self, images, generator=None):
        noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        return self.moved(self.radius * noise)

    def steepest(self, gradient):
        return self.moved(gradient.sign())

    def project(self, delta):
        return self.moved(delta.clamp(-self.radius, self.radius))


@dataclasses.dataclass(frozen=True)
class Case:
    """What the laws need to know of a ball.

    Attributes:
        make: the ball, of its radius.
        length: of each image's perturbation in the ball's own norm, (B, ...) -> (B,).
        moved: the part of a perturbation that the ball lets differ from zero, if not all of it.
    """

    make: Callable
    length: Callable
    moved: Callable = lambda delta: delta

    def assert_inside(self, delta, radius):
        assert (self.length(delta) <= radius * (1 + 1e-5)).all()
        assert torch.equal(self.moved(delta), delta)


def largest(delta):
    return delta.flatten(1).abs().amax(dim=1)


BALLS = [
    Case(Linf, largest),
    Case(L2, lambda delta: delta.flatten(1).norm(dim=1)),
    Case(Patch, largest, Patch.moved),
]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.make.__name__)


EVERY_BALL = each(BALLS)
EVERY_BALL_OF_OURS = each([case for case in BALLS if case.make in NAMED.values()])

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]

law = settings(max_examples=25, deadline=None)
radii = st.floats(1e-3, 1e2)
shapes = st.tuples(*(st.integers(1, n) for n in (4, 3, 6, 6)))
seeds = st.integers(0, 2**32 - 1)
# Perturbations from far inside to far outside the ball, each image at a scale of its own.
deltas = st.builds(
    lambda shape, seed, scale: random_deltas(shape, seed) * 10.0**scale,
    shapes,
    seeds,
    st.floats(-3, 4),
)


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_deltas(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** torch.empty(shape[0], 1, 1, 1).uniform_(-1, 1, generator=generator)
    return torch.randn(shape, generator=generator) * spread


def inner(a, b):
    return (a.double() * b.double()).flatten(1).sum(dim=1)


@EVERY_BALL
class TestProject:
    @law
    @given(radius=radii, delta=deltas)
    def test_lands_inside(self, case, radius, delta):
        ball = case.make(radius)
        case.assert_inside(ball.project(delta), radius)

    @law
    @given(radius=radii, delta=deltas)
    def test_twice_is_once(self, case, radius, delta):
        ball = case.make(radius)
        once = ball.project(delta)
        torch.testing.assert_close(ball.project(once), once)

    @law
    @given(radius=radii, delta=deltas, share=st.floats(0, 0.999))
    def test_leaves_the_inside_alone(self, case, radius, delta, share):
        ball, delta = case.make(radius), case.moved(delta)
        direction = delta / case.length(delta).clamp_min(1e-20).view(-1, 1, 1, 1)
        inside = direction * radius * share
        assert torch.equal(ball.project(inside), inside)

    @law
    @given(radius=radii, delta=deltas, seed=seeds)
    def test_no_point_inside_is_nearer(self, case, radius, delta, seed):
        ball, delta = case.make(radius), delta.double()
        nearest = ball.project(delta)
        noise = case.moved(normal((32, *delta.shape), seed)).double()
        reach = case.length(nearest).view(-1, 1, 1, 1)
        for candidate in (nearest + noise * reach / 30).unbind() + (noise * reach).unbind():
            size = case.length(candidate).view(-1, 1, 1, 1)
            inside = candidate * (radius / size).clamp_max(1)
            distance, other = (delta - nearest).flatten(1), (delta - inside).flatten(1)
            assert (distance.norm(dim=1) <= other.norm(dim=1) * (1 + 1e-9)).all()

    @law
    @given(radius=radii, delta=deltas, seed=seeds)
    def test_shrinking_it_pixel_by_pixel_stays_inside(self, case, radius, delta, seed):
        ball = case.make(radius)
        inside = ball.project(delta)
        generator = torch.Generator().manual_seed(seed)
        shrunk = inside * torch.rand(inside.shape, generator=generator)
        torch.testing.assert_close(ball.project(shrunk), shrunk)
        case.assert_inside(shrunk, radius)

    @pytest.mark.parametrize("length_of_delta", [1e-24, 1e20])
    def test_squares_beyond_float32_are_projected_too(self, case, length_of_delta):
        ball = case.make(length_of_delta / 10)
        inside = ball.project(torch.full((1, 3, 4, 4), length_of_delta)).double()
        assert case.length(inside).item() == pytest.approx(ball.radius, rel=1e-5)

    def test_each_image_is_projected_alone(self, case):
        near, far = torch.full((1, 3, 4, 4), 1e-3), torch.full((1, 3, 4, 4), 1e3)
        ball = case.make(0.5)
        together = ball.project(torch.cat([near, far]))
        assert torch.equal(together[:1], case.moved(near))
        torch.testing.assert_close(case.length(together[1:]), torch.tensor([0.5]))

    def test_does_not_write_into_what_it_is_given(self, case):
        delta = torch.full((2, 3, 4, 4), 5.0)
        case.make(0.5).project(delta)
        case.make(0.5).steepest(delta)
        assert (delta == 5).all()


@EVERY_BALL
class TestSample:
    @law
    @given(radius=radii, shape=shapes, seed=seeds)
    def test_lands_inside(self, case, radius, shape, seed):
        ball = case.make(radius)
        delta = ball.sample(torch.zeros(shape), torch.Generator().manual_seed(seed))
        case.assert_inside(delta, radius)
        assert (case.length(delta) > 0).all()

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_looks_like_the_images(self, case, device, dtype, layout):
        images = torch.rand(2, 3, 5, 4, device=device, dtype=dtype).to(memory_format=layout)
        ball = case.make(0.5)
        delta = ball.sample(images)
        for made in (delta, ball.project(3 * delta), ball.steepest(delta)):
            assert made.shape == images.shape
            assert made.dtype == dtype
            assert made.device == images.device
            assert made.is_contiguous(memory_format=layout)
        case.assert_inside(delta, 0.5)

    @pytest.mark.parametrize("device", DEVICES)
    def test_a_generator_alone_decides_and_alone_advances(self, case, device):
        images = torch.zeros(4, 3, 8, 8, device=device)
        before = torch.get_rng_state()
        generator = torch.Generator(device).manual_seed(7)
        first, second = (case.make(0.5).sample(images, generator) for _ in range(2))
        again = case.make(0.5).sample(images, torch.Generator(device).manual_seed(7))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_a_generator_the_global_seed_decides(self, case):
        images = torch.zeros(4, 3, 8, 8)
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append(case.make(0.5).sample(images))
        assert torch.equal(*drawn)

    def test_images_of_a_batch_get_perturbations_of_their_own(self, case):
        one, other = case.make(0.5).sample(torch.zeros(2, 3, 8, 8))
        assert not torch.allclose(one, other)

    def test_an_empty_batch_stays_empty(self, case):
        ball, images = case.make(0.5), torch.zeros(0, 3, 8, 8)
        for made in (ball.sample(images), ball.steepest(images), ball.project(images)):
            assert made.shape == images.shape


@EVERY_BALL
class TestSteepest:
    @law
    @given(radius=radii, gradient=deltas)
    def test_has_length_one_whatever_the_radius(self, case, radius, gradient):
        ball = case.make(radius)
        size = case.length(ball.steepest(gradient))
        torch.testing.assert_close(size, torch.ones_like(size))

    @law
    @given(gradient=deltas, seed=seeds)
    def test_no_other_unit_step_gains_more(self, case, gradient, seed):
        ball = case.make(1.0)
        best = ball.steepest(gradient)
        noise = case.moved(normal((32, *gradient.shape), seed))
        for step in noise.unbind() + noise.sign().unbind() + (best + noise / 30).unbind():
            rival = step / case.length(step).clamp_min(1e-20).view(-1, 1, 1, 1)
            gain = inner(gradient, best)
            assert (inner(gradient, rival) <= gain + gain.abs() * 1e-5).all()

    @law
    @given(gradient=deltas, power=st.floats(-26, 26))
    def test_depends_on_the_direction_only(self, case, gradient, power):
        ball = case.make(1.0)
        torch.testing.assert_close(ball.steepest(gradient * 10**power), ball.steepest(gradient))

    @pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
    def test_float32_neither_under_nor_overflows(self, case, scale):
        ball, gradient = case.make(1.0), random_deltas((3, 3, 8, 8), 0)
        step = ball.steepest(gradient * scale)
        torch.testing.assert_close(step, ball.steepest(gradient))
        torch.testing.assert_close(case.length(step), torch.ones(3))

    def test_zero_gradient_gives_zero_beside_images_that_have_one(self, case):
        ball, gradient = case.make(1.0), normal((3, 3, 4, 4), 0)
        gradient[1] = 0
        step = ball.steepest(gradient)
        assert (step[1] == 0).all()
        torch.testing.assert_close(case.length(step), torch.tensor([1.0, 0.0, 1.0]))

    def test_one_pixel_gets_the_whole_step(self, case):
        gradient = torch.zeros(1, 3, 4, 4)
        last = case.moved(gradient + 1).nonzero()[-1]
        gradient[tuple(last)] = -1e-12
        torch.testing.assert_close(case.make(1.0).steepest(gradient), gradient * 1e12)


@EVERY_BALL
def test_is_a_ball(case):
    assert isinstance(case.make(0.5), Ball)


@EVERY_BALL_OF_OURS
class TestValue:
    def test_equal_radii_are_equal_and_hash_alike(self, case):
        assert case.make(0.5) == case.make(0.5)
        assert case.make(0.5) != case.make(0.25)
        assert len({case.make(0.5), case.make(0.5), case.make(0.25)}) == 2

    def test_repr_is_the_call_that_makes_it(self, case):
        assert repr(case.make(0.25)) == f"{case.make.__name__}(radius=0.25)"

    def test_is_frozen(self, case):
        ball = case.make(0.5)
        with pytest.raises(dataclasses.FrozenInstanceError):
            ball.radius = 1.0

    @pytest.mark.parametrize("radius", [0.0, -0.1, float("inf"), float("nan")])
    def test_radius_must_be_positive_and_finite(self, case, radius):
        with pytest.raises(ValueError, match=f"radius must be positive and finite, got {radius}"):
            case.make(radius)


def test_balls_of_different_norms_differ():
    assert Linf(0.5) != L2(0.5)


class Stripes:
    """A user's own: each column of pixels is shifted as a whole, by at most the radius."""

    radius = 0.1

    def sample(self, images, generator=None):
        shift = torch.empty_like(images[:, :, :1]).uniform_(-1, 1, generator=generator)
        return (self.radius * shift).expand_as(images)

    def steepest(self, gradient):
        return gradient.sum(dim=2, keepdim=True).sign().expand_as(gradient)

    def project(self, delta):
        return delta.mean(dim=2, keepdim=True).clamp(-0.1, 0.1).expand_as(delta)


def test_whatever_has_the_four_members_is_a_ball():
    assert isinstance(Stripes(), Ball)


@pytest.mark.parametrize("member", ["radius", "sample", "steepest", "project"])
def test_whatever_lacks_one_is_not(member):
    members = {name: value for name, value in vars(Stripes).items() if name != member}
    assert not isinstance(type("Partial", (), members)(), Ball)


class TestUniform:
    """Kolmogorov's distance to the uniform law stays below its 0.1 % critical value."""

    COUNT = 20_000

    def is_uniform(self, shares):
        steps = torch.arange(1, len(shares) + 1) / len(shares)
        return (shares.double().sort().values - steps).abs().max() < 1.95 / len(shares) ** 0.5

    @pytest.fixture
    def images(self):
        return torch.zeros(self.COUNT, 2, 1, 2)

    def test_l2_fills_the_ball_by_volume(self, images):
        delta = L2(3.0).sample(images, torch.Generator().manual_seed(0)).flatten(1)
        radii = delta.norm(dim=1) / 3
        assert self.is_uniform(radii**4)  # a ball of radius r holds r^d of the volume, d = 4
        assert not self.is_uniform(radii)  # the distance can tell

    def test_l2_prefers_no_direction(self, images):
        delta = L2(3.0).sample(images, torch.Generator().manual_seed(0)).flatten(1)
        # By Archimedes, two coordinates of a uniform direction in four dimensions hold a share
        # of its squared length that is uniform.
        for pair in ([0, 1], [0, 2], [1, 3]):
            assert self.is_uniform(delta[:, pair].square().sum(dim=1) / delta.square().sum(dim=1))
        for column in delta.T:
            assert abs((column > 0).double().mean() - 0.5) < 2 / self.COUNT**0.5

    def test_linf_fills_the_cube(self, images):
        delta = Linf(3.0).sample(images, torch.Generator().manual_seed(0)).flatten(1)
        for column in delta.T:
            assert self.is_uniform((column + 3) / 6)


@EVERY_BALL_OF_OURS
@pytest.mark.parametrize("bounds", [(0, 1), (0, 255), (-1, 1)])
def test_at_its_widest_a_ball_around_any_image_holds_every_other(case, bounds):
    shape = (3, 4, 5)
    apart = torch.full((1, *shape), float(bounds[1] - bounds[0]))
    found = widest(case.make(1), shape, bounds)
    assert found == pytest.approx(case.length(apart).item())
    torch.testing.assert_close(case.make(found).project(apart), apart)
    check_radius(case.make(found), shape, bounds)
    with pytest.raises(ValueError, match=r"wider than the whole range of images.*/ 255"):
        check_radius(case.make(1.01 * found), shape, bounds)


def test_every_name_makes_a_ball_that_has_it_and_obeys_the_laws():
    assert set(NAMED.values()) <= {case.make for case in BALLS}
    for name, make in NAMED.items():
        assert name_of(make(0.5)) == make(0.5).name == name


@EVERY_BALL_OF_OURS
class TestAsAReportAsks:
    def test_resized_is_the_same_ball_but_for_its_radius(self, case):
        ball = case.make(0.5)
        for found in (ball.resized(0.25), resized(ball, 0.25)):
            assert found == case.make(0.25)
        assert ball == case.make(0.5)
        with pytest.raises(ValueError, match="radius must be positive and finite, got 0"):
            resized(ball, 0)

    @pytest.mark.parametrize("shape", [(3, 4, 5), (1, 28, 28)])
    def test_at_its_grey_radius_and_no_sooner_every_image_becomes_one_grey(self, case, shape):
        """Black and white, the images farthest from any one grey, meet in the middle alone."""
        grey = grey_of(case.make(1), shape)
        assert grey == case.make(1).grey(shape)
        half = torch.full((1, *shape), 0.5)
        for towards in (half, -half):
            torch.testing.assert_close(case.make(grey).project(towards), towards)
            assert not torch.allclose(case.make(0.99 * grey).project(towards), towards)


@dataclasses.dataclass(frozen=True)
class Columns(Stripes):
    radius: float = 0.1


class TestABallOfOnesOwn:
    @pytest.mark.parametrize("of", [np.float32, lambda r: np.array([r]), torch.tensor, Fraction])
    def test_may_have_any_number_for_a_radius(self, of):
        adversary = AdversarialViewGenerator(Columns(of(0.25)), 2)
        assert radius_of(adversary.ball) == adversary.radius == 0.25
        assert type(adversary.radius) is type(adversary.step_size) is float

    def test_is_called_as_its_class_and_knows_no_grey(self):
        assert name_of(Stripes()) == "stripes"
        assert grey_of(Stripes(), (3, 4, 5)) is None

    def test_a_dataclass_is_resized_and_another_says_what_it_lacks(self):
        assert resized(Columns(), 0.2) == Columns(0.2)
        with pytest.raises(ValueError, match=r"Stripes.* cannot be made 0.2 wide; .*resized"):
            resized(Stripes(), 0.2)
