"""Damages: an image of bytes to one under noise, blur, weather or digital damage.

Each is as Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261, define it for
CIFAR-10-C, by scipy and PIL where they took scikit-image, OpenCV and ImageMagick. Images are
(S, S, 3) in bytes; what comes out are numbers of 0 to 255 and beyond, to be cut off.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from advssl.extras import needed

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = np.random.Generator
Damage: TypeAlias = Callable[[Pixels, Any, Draw], NDArray[Any]]  # an image, a severity's settings

ndimage = needed("scipy.ndimage", "making corruptions")
_GREY = np.array([0.299, 0.587, 0.114])


# --- noise ----------------------------------------------------------------------------------------


def gaussian_noise(image: Pixels, scale: float, draw: Draw) -> Floats:
    return 255 * np.clip(image / 255 + draw.normal(scale=scale, size=image.shape), 0, 1)


def shot_noise(image: Pixels, photons: float, draw: Draw) -> Floats:
    return 255 * np.clip(draw.poisson(image / 255 * photons) / photons, 0, 1)


def impulse_noise(image: Pixels, share: float, draw: Draw) -> Floats:
    struck, white = draw.random(image.shape) < share, draw.random(image.shape) < 0.5
    return np.where(struck, 255.0 * white, image)


def speckle_noise(image: Pixels, scale: float, draw: Draw) -> Floats:
    return 255 * np.clip(image / 255 * (1 + draw.normal(scale=scale, size=image.shape)), 0, 1)


# --- blur -----------------------------------------------------------------------------------------


def gaussian_blur(image: Pixels, sigma: float, _: Draw) -> Floats:
    return _smoothed(image.astype(np.float64), sigma)


def _smoothed(image: Floats, sigma: float) -> Floats:
    """Over rows and columns."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim], mode="nearest")


def glass_blur(image: Pixels, level: tuple[float, int], draw: Draw) -> Floats:
    """Each pixel takes the value of a neighbour.

    The authors swap pixels from the last to the first, each with one before it; their swap of two
    views copies the second into the first, and the files are as that made them.
    """
    sigma, times = level
    pixels, size = np.floor(_smoothed(image.astype(np.float64), sigma)), len(image)
    rows, columns = np.meshgrid(np.arange(2, size), np.arange(2, size), indexing="ij")
    for _ in range(times):
        down, right = draw.integers(-1, 1, (2, *rows.shape))  # -1 or 0
        pixels[2:, 2:] = pixels[rows + down, columns + right]
    return _smoothed(pixels, sigma)


def defocus_blur(image: Pixels, level: tuple[float, float], _: Draw) -> Floats:
    """By a disk, whose edge is smoothed."""
    radius, edge = level
    reach = np.arange(-8, 9)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    soft = np.exp(-0.5 * (np.arange(-1, 2) / edge) ** 2)
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(soft, soft) / soft.sum() ** 2)
    return ndimage.correlate(image.astype(np.float64), kernel[..., None], mode="mirror")


def motion_blur(image: Pixels, level: tuple[int, float], draw: Draw) -> Floats:
    return _moved(image, *level, draw.uniform(-45, 45))


def _moved(image: Pixels, radius: int, sigma: float, angle: float) -> Floats:
    """ImageMagick's motion blur: half a Gaussian along a line of pixels, the edges repeated."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    turned = math.radians(angle)
    rows, columns = (np.ceil(steps * f(turned) - 0.5).astype(int) for f in (math.sin, math.cos))
    height, width = np.indices(image.shape[:2])
    found = np.zeros(image.shape)
    for weight, down, right in zip(weights / weights.sum(), rows, columns, strict=True):
        at = np.clip(height + down, 0, len(image) - 1), np.clip(width + right, 0, len(image) - 1)
        found += weight * image[at]
    return np.round(found)


def zoom_blur(image: Pixels, end: float, _: Draw) -> Floats:
    """The mean of the image and of the same zoomed in by 0, 1, 2, ... per cent."""
    factors = np.arange(1, end, 0.01).tolist()  # 1.25 is a bit more here, and its size is rounded
    zoomed = [_zoomed(image.astype(np.float64), factor) for factor in factors]
    return (image + np.sum(zoomed, axis=0)) / (len(zoomed) + 1)


def _zoomed(image: Floats, factor: float) -> Floats:
    """Its middle, in as many pixels."""
    size = len(image)
    inner = math.ceil(size / factor)
    start = (size - inner) // 2
    part = image[start : start + inner, start : start + inner]
    large = ndimage.zoom(part, (factor, factor, 1)[: image.ndim], order=1)
    start = (len(large) - size) // 2
    return large[start : start + size, start : start + size]


# --- weather --------------------------------------------------------------------------------------


def snow(image: Pixels, level: tuple[float, ...], draw: Draw) -> Floats:
    mean, spread, zoom, least, radius, sigma, keep = level
    flakes = _zoomed(draw.normal(mean, spread, image.shape[:2]), zoom)
    bytes_ = (255 * np.clip(np.where(flakes < least, 0, flakes), 0, 1)).astype(np.uint8)
    fallen = _moved(bytes_, int(radius), sigma, draw.uniform(-135, -45))[..., None] / 255
    clear = image / 255
    bleached = np.maximum(clear, 1.5 * (clear @ _GREY)[..., None] + 0.5)
    white = keep * clear + (1 - keep) * bleached
    return 255 * np.clip(white + fallen + np.rot90(fallen, 2), 0, 1)


def fog(image: Pixels, level: tuple[float, float], draw: Draw) -> Floats:
    thickness, decay = level
    size, clear = len(image), image / 255
    brightest = clear.max()
    haze = _plasma(1 << (size - 1).bit_length(), decay, draw)[:size, :size, None]
    return 255 * np.clip((clear + thickness * haze) * brightest / (brightest + thickness), 0, 1)


def _plasma(size: int, decay: float, draw: Draw) -> Floats:
    """Clouds on a torus from 0 to 1 by diamonds and squares; the size is a power of two."""
    heights, step, rough = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half, count = step // 2, size // step
        corners = heights[::step, ::step].copy()

        def mean(first: Floats, second: Floats, turned: int) -> Floats:
            four = first + np.roll(first, -1, 1 - turned) + second + np.roll(second, 1, turned)
            return four / 4 + rough * draw.uniform(-rough, rough, (count, count))

        below = np.roll(corners, -1, 0)
        square = corners + below + np.roll(corners + below, -1, 1)
        middles = square / 4 + rough * draw.uniform(-rough, rough, (count, count))
        heights[half::step, half::step] = middles
        heights[::step, half::step] = mean(corners, middles, 0)
        heights[half::step, ::step] = mean(corners, middles, 1)
        step, rough = half, rough / decay
    heights -= heights.min()
    return heights / heights.max()


def frost(photographs: Sequence[Pixels]) -> Damage:
    """The damage that such photographs do, each as high and as wide as an image at least."""

    def made(image: Pixels, level: tuple[float, float], draw: Draw) -> Floats:
        one, size = photographs[int(draw.integers(len(photographs)))], len(image)
        top, left = (draw.integers(side - size + 1) for side in one.shape[:2])
        return level[0] * image + level[1] * one[top : top + size, left : left + size]

    return made


# --- digital --------------------------------------------------------------------------------------


def brightness(image: Pixels, more: float, _: Draw) -> Floats:
    """More of HSV's value: at the same hue and saturation all channels grow with it."""
    clear = image / 255
    value = clear.max(axis=2, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return 255 * np.where(value > 0, clear * brighter / np.where(value > 0, value, 1), brighter)


def contrast(image: Pixels, share: float, _: Draw) -> Floats:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * share + mean


def elastic_transform(image: Pixels, level: tuple[float, float, float], draw: Draw) -> Floats:
    """Three points move, and the plane with them; then each pixel, smoothly."""
    size = len(image)
    shift, sigma, reach = (size * share for share in level)
    middle, side = size // 2, size // 3
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * side + middle  # in x and y
    moved = corners + draw.uniform(-reach, reach, corners.shape)
    # From where each pixel comes: the map that takes the moved corners back.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], corners)
    rows, columns = np.indices((size, size))
    x, y = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back, -1, 0)
    turned = _sampled(image, y, x, "mirror")
    right, down = (
        shift * ndimage.gaussian_filter(draw.uniform(-1, 1, (size, size)), sigma, truncate=3)
        for _ in range(2)
    )
    return _sampled(turned, rows + down, columns + right, "reflect")


def _sampled(image: NDArray[Any], rows: Floats, columns: Floats, mode: str) -> Floats:
    """Bilinear."""
    channels = [
        ndimage.map_coordinates(
            image[..., c].astype(np.float64), (rows, columns), order=1, mode=mode
        )
        for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def pixelate(image: Pixels, share: float, _: Draw) -> Pixels:
    from PIL import Image

    size = len(image)
    small = Image.fromarray(image).resize((max(1, int(size * share)),) * 2, Image.Resampling.BOX)
    return np.array(small.resize((size, size), Image.Resampling.BOX))


def jpeg_compression(image: Pixels, quality: int, _: Draw) -> Pixels:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


# --- extra ----------------------------------------------------------------------------------------


def saturate(image: Pixels, level: tuple[float, float], _: Draw) -> Floats:
    """HSV's saturation times the first number, plus the second: distances from the value grow."""
    times, more = level
    clear = image / 255
    value, low = clear.max(axis=2, keepdims=True), clear.min(axis=2, keepdims=True)
    coloured = value > low
    saturation = np.where(coloured, (value - low) / np.where(value > 0, value, 1), 0)
    wanted = np.clip(saturation * times + more, 0, 1)
    apart = (value - clear) / np.where(coloured, value - low, 1)  # 0 to 1: of the hue
    apart = np.where(coloured, apart, np.array([0.0, 1.0, 1.0]))  # grey has the hue of red
    return 255 * value * (1 - wanted * apart)


def spatter(image: Pixels, level: tuple[float, ...], draw: Draw) -> Floats:
    mean, spread, sigma, least, amount, mud = level
    drops = _smoothed(draw.normal(mean, spread, image.shape[:2]), sigma)
    drops[drops < least] = 0
    clear = image / 255
    if mud:
        cover = _smoothed((drops > least).astype(np.float64), amount)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return 255 * np.clip(clear * (1 - cover) + np.array([63, 42, 20]) / 255 * cover, 0, 1)
    wet = _shone((255 * drops).astype(np.uint8))
    water = np.array([175, 238, 238]) / 255
    return 255 * np.clip(clear + amount * wet[..., None] * water, 0, 1)


def _shone(drops: NDArray[np.uint8]) -> Floats:
    """Drops with light on one side of them, 0 to 1."""
    edges = _edges(drops, 50, 150)
    far = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(drops.shape, 20.0)
    near = ndimage.uniform_filter(np.minimum(far, 20), 3, mode="mirror")
    dist = _equalised(np.floor(near + 1e-6).astype(np.uint8))  # a whole number is no bit less
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = np.clip(ndimage.correlate(dist.astype(np.int64), light, mode="mirror"), 0, 255)
    shine = drops * np.round(ndimage.uniform_filter(lit.astype(np.float64), 3, mode="mirror"))
    return shine / shine.max() if shine.any() else shine


def _edges(image: NDArray[np.uint8], low: float, high: float) -> NDArray[np.bool_]:
    """Canny's, as OpenCV has them: Sobel without smoothing, the sum of both slopes."""
    across, down = (ndimage.sobel(image.astype(np.int64), axis, mode="nearest") for axis in (1, 0))
    height = np.pad(abs(across) + abs(down), 1)
    slope = np.abs(down) * 1.0, np.abs(across) * math.tan(math.pi / 8)
    flat = slope[0] < slope[1]
    steep = slope[0] > np.abs(across) * math.tan(3 * math.pi / 8)
    falling = np.sign(across) * np.sign(down) < 0

    def beside(rows: int, columns: int) -> NDArray[np.int64]:
        end = height.shape
        return height[1 + rows : end[0] - 1 + rows, 1 + columns : end[1] - 1 + columns]

    own = beside(0, 0)
    crest = np.where(
        flat,
        (own > beside(0, -1)) & (own >= beside(0, 1)),
        np.where(
            steep,
            (own > beside(-1, 0)) & (own >= beside(1, 0)),
            np.where(
                falling,
                (own > beside(-1, 1)) & (own > beside(1, -1)),
                (own > beside(-1, -1)) & (own > beside(1, 1)),
            ),
        ),
    )
    lines, _ = ndimage.label(crest & (own > low), np.ones((3, 3)))
    strong = np.unique(lines[crest & (own > high)])
    return np.isin(lines, strong[strong > 0])


def _equalised(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each value to its rank, the least to 0 and the largest to 255."""
    counts = np.bincount(image.ravel(), minlength=256)
    ranks = counts.cumsum() - counts[image.min()]
    return (
        image
        if not ranks[-1]
        else np.round(255 * np.maximum(ranks, 0) / ranks[-1])[image].astype(np.uint8)
    )
