"""Each damage is its definition, written slowly, on the same random numbers."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest

from advssl.evaluation import damages
from advssl.evaluation.corruptions import CORRUPTIONS, FROST, SEVERITIES

SIZE = 12


def draw(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(size: int = SIZE) -> np.ndarray:
    """Smooth, with edges, a black and a white pixel."""
    rows, columns = np.mgrid[:size, :size] / size
    waves = [np.sin(6 * rows + 4 * columns * k) / 2 + 0.5 for k in (1, 2, 3)]
    image = (200 * np.stack(waves, axis=-1) + draw(0).uniform(0, 50, (size, size, 3))).astype("u1")
    image[1, 1], image[2, 2], image[3, 3] = 0, 255, 77
    return image


# --- borders --------------------------------------------------------------------------------------


def nearest(i: int, size: int) -> int:
    return min(max(i, 0), size - 1)


def mirror(i: int, size: int) -> int:
    """d c b | a b c d | c b a"""
    i = abs(i) % (2 * size - 2)
    return min(i, 2 * size - 2 - i)


def reflect(i: int, size: int) -> int:
    """b a | a b c d | d c"""
    i %= 2 * size
    return min(i, 2 * size - 1 - i)


def weighed(image: np.ndarray, kernel: np.ndarray, border) -> np.ndarray:
    """Each pixel the sum of those around it."""
    size, reach = len(image), len(kernel) // 2
    found = np.zeros(image.shape)
    for y, x in np.ndindex(size, size):
        for j, i in np.ndindex(kernel.shape):
            at = border(y + j - reach, size), border(x + i - reach, size)
            found[y, x] += kernel[j, i] * image[at]
    return found


def gaussian(image: np.ndarray, sigma: float, border=nearest, truncate: float = 4) -> np.ndarray:
    reach = int(truncate * sigma + 0.5)
    line = (
        np.array([math.exp(-(k**2) / 2 / sigma**2) for k in range(-reach, reach + 1)])
        if sigma
        else np.ones(1)
    )
    return weighed(image, np.outer(line, line) / line.sum() ** 2, border)


def between(image: np.ndarray, y: float, x: float, border) -> np.ndarray:
    """Bilinear."""
    size, top, left = len(image), math.floor(y), math.floor(x)
    down, right = y - top, x - left
    return sum(
        weight * image[border(top + j, size), border(left + i, size)].astype(float)
        for j, i, weight in (
            (0, 0, (1 - down) * (1 - right)),
            (0, 1, (1 - down) * right),
            (1, 0, down * (1 - right)),
            (1, 1, down * right),
        )
    )


# --- the definitions ------------------------------------------------------------------------------


def gaussian_noise(image, scale, rng):
    return 255 * (image / 255 + rng.normal(0, scale, image.shape)).clip(0, 1)


def shot_noise(image, photons, rng):
    return 255 * (rng.poisson(image / 255.0 * photons) / photons).clip(0, 1)


def impulse_noise(image, share, rng):
    found = image.astype(float)
    flipped, salted = rng.random(image.shape) < share, rng.random(image.shape) < 0.5
    found[flipped & salted], found[flipped & ~salted] = 255, 0
    return found


def speckle_noise(image, scale, rng):
    clear = image / 255
    return 255 * (clear + clear * rng.normal(0, scale, image.shape)).clip(0, 1)


def gaussian_blur(image, sigma, rng):
    del rng
    return gaussian(image.astype(float), sigma)


def glass_blur(image, level, rng):
    """One pixel after the other, from the last, as the authors go."""
    sigma, times = level
    size, x = len(image), np.floor(gaussian(image.astype(float), sigma))
    for _ in range(times):
        moves = rng.integers(-1, 1, (2, size - 2, size - 2))
        for h in range(size - 1, 1, -1):
            for w in range(size - 1, 1, -1):
                dy, dx = moves[:, h - 2, w - 2]
                x[h, w] = x[h + dy, w + dx]
    return gaussian(x, sigma)


def defocus_blur(image, level, rng):
    del rng
    radius, edge = level
    disk = np.array(
        [[y * y + x * x <= radius * radius for x in range(-8, 9)] for y in range(-8, 9)]
    )
    line = np.array([math.exp(-0.5 / edge**2), 1, math.exp(-0.5 / edge**2)])
    soft = np.outer(line, line) / line.sum() ** 2
    smooth = np.zeros((17, 17))
    for y, x in np.argwhere(disk):
        smooth[y - 1 : y + 2, x - 1 : x + 2] += soft / disk.sum()
    return weighed(image.astype(float), smooth, mirror)


def moved(image, radius, sigma, angle):
    size, found, total = len(image), np.zeros(image.shape), 0.0
    for step in range(2 * radius + 1):
        weight, turn = math.exp(-(step**2) / 2 / sigma**2), math.pi * angle / 180
        down, right = (math.ceil(step * f(turn) - 0.5) for f in (math.sin, math.cos))
        total += weight
        for y, x in np.ndindex(size, size):
            found[y, x] += weight * image[nearest(y + down, size), nearest(x + right, size)]
    return np.round(found / total)


def motion_blur(image, level, rng):
    return moved(image, *level, rng.uniform(-45, 45))


def zoomed(image, factor):
    size = len(image)
    inner = math.ceil(size / factor)
    start, large = (size - inner) // 2, round(inner * factor)
    part, found = image[start : start + inner, start : start + inner], []
    trim = (large - size) // 2
    for y, x in np.ndindex(size, size):
        at = ((v + trim) * (inner - 1) / max(1, large - 1) for v in (y, x))
        found.append(between(part, *at, nearest))
    return np.array(found).reshape(image.shape)


def zoom_blur(image, end, rng):
    del rng
    factors = np.arange(1, end, 0.01).tolist()  # as the authors write it
    return sum([zoomed(image.astype(float), f) for f in factors], image.astype(float)) / (
        len(factors) + 1
    )


def snow(image, level, rng):
    flakes = zoomed(rng.normal(level[0], level[1], image.shape[:2]), level[2])
    flakes[flakes < level[3]] = 0
    layer = np.uint8(flakes.clip(0, 1) * 255)
    layer = moved(layer, level[4], level[5], rng.uniform(-135, -45))[..., None] / 255
    x = image / 255
    grey = (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]
    x = level[6] * x + (1 - level[6]) * np.maximum(x, grey * 1.5 + 0.5)
    return 255 * (x + layer + layer[::-1, ::-1]).clip(0, 1)


def fog(image, level, rng):
    """Diamonds and squares point by point, on a torus."""
    size = 2 ** math.ceil(math.log2(len(image)))
    height, step, rough = np.zeros((size, size)), size, 100.0
    while step > 1:
        half, cells = (
            step // 2,
            [(y, x) for y in range(0, size, step) for x in range(0, size, step)],
        )

        def set_to_mean(shift, around):
            noise = iter((rough * rng.uniform(-rough, rough, len(cells))).tolist())
            for y, x in cells:
                y, x = y + shift[0], x + shift[1]
                near = [height[(y + a) % size, (x + b) % size] for a, b in around]
                height[y, x] = sum(near) / 4 + next(noise)

        set_to_mean((half, half), [(-half, -half), (-half, half), (half, -half), (half, half)])
        cross = [(-half, 0), (half, 0), (0, -half), (0, half)]
        old = height.copy()
        set_to_mean((0, half), cross)
        set_to_mean((half, 0), cross)
        assert np.array_equal(height[half::step, half::step], old[half::step, half::step])
        step, rough = half, rough / level[1]
    height = (height - height.min()) / (height.max() - height.min())
    x, most = image / 255, image.max() / 255
    x = x + level[0] * height[: len(image), : len(image), None]
    return 255 * (x * most / (most + level[0])).clip(0, 1)


def in_hsv(image, change):
    found = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in (image / 255).reshape(-1, 3)
    ]
    return 255 * np.array(found).reshape(image.shape)


def brightness(image, more, rng):
    del rng
    return in_hsv(image, lambda h, s, v: (h, s, min(1, v + more)))


def saturate(image, level, rng):
    del rng
    return in_hsv(image, lambda h, s, v: (h, min(1, s * level[0] + level[1]), v))


def contrast(image, share, rng):
    del rng
    mean = sum(image.reshape(-1, 3).astype(float)) / image[..., 0].size
    return (image - mean) * share + mean


def elastic_transform(image, level, rng):
    size = len(image)
    c = [size * share for share in level]
    middle, side = size // 2, size // 3
    first = np.array([[middle + side] * 2, [middle + side, middle - side], [middle - side] * 2])
    second = first + rng.uniform(-c[2], c[2], (3, 2))
    forth = np.linalg.solve(np.c_[first, np.ones(3)], second).T  # (2, 3), of the points
    back = np.linalg.inv(np.vstack([forth, [0, 0, 1]]))
    turned = np.zeros(image.shape)
    for y, x in np.ndindex(size, size):
        at_x, at_y, _ = back @ [x, y, 1]
        turned[y, x] = between(image, at_y, at_x, mirror)
    right, down = (
        c[0] * gaussian(rng.uniform(-1, 1, (size, size)), c[1], reflect, 3) for _ in range(2)
    )
    found = np.zeros(image.shape)
    for y, x in np.ndindex(size, size):
        found[y, x] = between(turned, y + down[y, x], x + right[y, x], reflect)
    return found


def boxed(line: np.ndarray, count: int) -> np.ndarray:
    """A row of pixels to so many: each the mean of those whose middle it covers, one at least."""
    scale, found = len(line) / count, []
    for k in range(count):
        middle, reach = (k + 0.5) * scale, max(scale, 1) / 2
        inside = [line[i] for i in range(len(line)) if -reach < i + 0.5 - middle <= reach]
        found.append(np.mean(inside, axis=0))
    return np.array(found)


def pixelate(image, share, rng):
    del rng
    for count in (int(len(image) * share), len(image)):
        for _ in range(2):
            image = boxed(image.swapaxes(0, 1), count)
        image = np.round(image)
    return image


LUMINANCE = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62  18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""  # of the standard, Annex K


def jpeg_compression(image, quality, rng):
    """Of one grey block: its cosines, rounded to multiples of the standard's table."""
    del rng
    scale = 200 - 2 * quality if quality >= 50 else 5000 // quality
    steps = (np.array(LUMINANCE.split(), float).reshape(8, 8) * scale + 50) // 100
    waves = np.array(
        [[math.cos((2 * x + 1) * u * math.pi / 16) for x in range(8)] for u in range(8)]
    )
    waves *= np.where(np.arange(8) == 0, math.sqrt(1 / 8), 0.5)[:, None]
    cosines = waves @ (image[..., 0] - 128.0) @ waves.T
    block = waves.T @ (np.round(cosines / steps) * steps) @ waves + 128
    return np.repeat(block.clip(0, 255)[..., None], 3, axis=2)


def canny(image: np.ndarray) -> np.ndarray:
    """Along each slope's direction the highest, if it is joined to one above 150."""
    size, padded = len(image), np.pad(image.astype(int), 2, "edge")
    cross = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slopes = np.zeros((size + 2, size + 2, 2), int)
    for y, x in np.ndindex(size, size):
        window = padded[y + 1 : y + 4, x + 1 : x + 4]
        slopes[y + 1, x + 1] = (window * cross).sum(), (window * cross.T).sum()
    high = np.abs(slopes).sum(axis=-1)
    kept = set()
    for y, x in np.ndindex(size, size):
        y, x = y + 1, x + 1
        dx, dy = slopes[y, x].tolist()
        angle = math.degrees(math.atan2(abs(dy), abs(dx)))
        if angle < 22.5:
            top = high[y, x] > high[y, x - 1] and high[y, x] >= high[y, x + 1]
        elif angle > 67.5:
            top = high[y, x] > high[y - 1, x] and high[y, x] >= high[y + 1, x]
        else:
            s = 1 if (dx < 0) == (dy < 0) else -1
            top = high[y, x] > high[y - 1, x - s] and high[y, x] > high[y + 1, x + s]
        if top and high[y, x] > 50:
            kept.add((y, x))
    edges, new = set(), {p for p in kept if high[p] > 150}
    while new:
        edges |= new
        near = {(y + j, x + i) for y, x in new for j in (-1, 0, 1) for i in (-1, 0, 1)}
        new = (near & kept) - edges
    found = np.zeros((size, size), bool)
    for y, x in edges:
        found[y - 1, x - 1] = True
    return found


def spatter(image, level, rng):
    mean, spread, sigma, least, amount, mud = level
    size = len(image)
    drops = gaussian(rng.normal(mean, spread, image.shape[:2]), sigma)
    drops[drops < least] = 0
    x = image / 255
    if mud:
        cover = gaussian((drops > least).astype(float), amount)
        cover[cover < 0.8] = 0
        brown = np.array([63, 42, 20]) / 255
        return 255 * (x * (1 - cover[..., None]) + brown * cover[..., None]).clip(0, 1)
    drops = np.uint8(drops * 255)
    edges = np.argwhere(canny(drops))
    far = np.full((size, size), 20.0)
    for at in np.ndindex(size, size):
        if len(edges):
            far[at] = min(20, min(math.dist(at, edge) for edge in edges))
    dist = np.uint8(weighed(far, np.ones((3, 3)) / 9, mirror) + 1e-9)
    if dist.min() < dist.max():
        above = {v: (dist <= v).sum() - (dist == dist.min()).sum() for v in np.unique(dist)}
        dist = np.vectorize(lambda v: round(255 * above[v] / above[dist.max()]))(dist)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = weighed(dist.astype(int), light, mirror).clip(0, 255)
    shine = drops * np.round(weighed(lit, np.ones((3, 3)) / 9, mirror))
    shine = shine / (shine.max() or 1)
    return 255 * (x + amount * shine[..., None] * np.array([175, 238, 238]) / 255).clip(0, 1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_damage_is_its_definition(name, severity):
    of = CORRUPTIONS[name]
    level, image = of.levels[severity - 1], picture()
    if name == "jpeg_compression":
        image = np.repeat(picture(8)[..., :1], 3, axis=2)
    kept = image.copy()
    found = of.damage(image, level, draw(severity)).astype(float)
    slow = globals()[name](image, level, draw(severity)).astype(float)
    assert np.array_equal(image, kept)
    assert found.shape == image.shape
    worst = {"pixelate": 1.0, "jpeg_compression": 3.0}.get(name, 1e-6)  # they round in between
    np.testing.assert_allclose(found, slow, atol=worst)


def test_spatter_meets_edges_and_their_absence():
    """What the slow one is compared on has both."""
    seen = {
        bool(damages._edges(np.uint8(255 * draw(k).random((SIZE, SIZE)) * k), 50, 150).any())
        for k in (0, 1)
    }
    assert seen == {False, True}


@pytest.mark.parametrize("seed", range(5))
def test_edges_are_cannys(seed):
    image = np.uint8(255 * (gaussian(draw(seed).normal(0.6, 0.3, (20, 20)), 0.8)).clip(0, 1))
    assert np.array_equal(damages._edges(image, 50, 150), canny(image))


@pytest.mark.parametrize("severity", SEVERITIES)
class TestNoiseInClosedForm:
    """Mean and deviation on an even grey, whatever the random numbers are."""

    grey = np.full((150, 150, 3), 102, np.uint8)  # 0.4

    def found(self, name, severity):
        of = CORRUPTIONS[name]
        return of.levels[severity - 1], of.damage(self.grey, of.levels[severity - 1], draw()) / 255

    def test_gaussian(self, severity):
        scale, noisy = self.found("gaussian_noise", severity)
        assert noisy.mean() == pytest.approx(0.4, abs=2e-3)
        assert noisy.std() == pytest.approx(scale, rel=0.02)

    def test_shot(self, severity):
        photons, noisy = self.found("shot_noise", severity)
        assert noisy.mean() == pytest.approx(0.4, abs=2e-3)
        assert noisy.std() == pytest.approx(math.sqrt(0.4 / photons), rel=0.02)

    def test_speckle(self, severity):
        scale, noisy = self.found("speckle_noise", severity)
        assert noisy.mean() == pytest.approx(0.4, abs=2e-3)
        assert noisy.std() == pytest.approx(0.4 * scale, rel=0.02)

    def test_impulse(self, severity):
        share, noisy = self.found("impulse_noise", severity)
        assert (noisy == 1).mean() == pytest.approx(share / 2, rel=0.1)
        assert (noisy == 0).mean() == pytest.approx(share / 2, rel=0.1)


def test_glass_moves_pixels_by_one_at_most():
    """Without its blur, once."""
    image = picture()
    found = damages.glass_blur(image, (1e-9, 1), draw())
    for y, x in np.ndindex(SIZE, SIZE):
        near = image[max(0, y - 1) : y + 1, max(0, x - 1) : x + 1].reshape(-1, 3).tolist()
        assert found[y, x].tolist() in near
    assert not np.array_equal(found, image)


def test_motion_blurs_along_its_angle_alone():
    line = np.zeros((9, 9, 3), np.uint8)
    line[4] = 255
    assert np.array_equal(damages._moved(line, 3, 2, 0), line)
    across = damages._moved(line, 3, 2, 90)
    assert (across[4] > 0).all()
    assert across[4].max() < 255


def test_blurs_keep_an_even_grey():
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8)
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"):
        for level in CORRUPTIONS[name].levels:
            np.testing.assert_allclose(
                CORRUPTIONS[name].damage(grey, level, draw()), 100, atol=1e-6
            )


def test_frost_lays_a_part_of_a_photograph_on_the_image():
    photograph = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)
    image = picture()
    for level in FROST:
        found = damages.frost([photograph])(image, level, draw())
        laid = (found - level[0] * image) / level[1]
        parts = [photograph[y : y + SIZE, x : x + SIZE] for y, x in np.ndindex(9, 9)]
        assert any(np.allclose(laid, part) for part in parts)


def test_frost_takes_all_photographs():
    dark, light = np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)
    frost, black = damages.frost([dark, light]), np.zeros((SIZE, SIZE, 3), np.uint8)
    assert {float(frost(black, (1, 1), draw(k)).max()) for k in range(20)} == {0.0, 255.0}
