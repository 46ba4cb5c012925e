"""Images in every form in which people keep them: as they were stored, or refused by name."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
import torch
from pictures import BYTES, RAMP, SHORTS, as_float, cut, grey, lab, saved, tiff, with_alpha
from PIL import Image

from advssl.evaluation.data import batches, open_data
from advssl.evaluation.datasets import unit_range
from advssl.evaluation.images import read_image, size_of

BIG_ENDIAN = Image.frombytes("I;16B", (32, 32), SHORTS.astype(">u2").tobytes())
RAMPS = {
    **{f"16-bit.{end}": (Image.fromarray(SHORTS), {}) for end in ("png", "tif", "pgm", "jp2")},
    "big-endian.tif": (BIG_ENDIAN, {}),
    "big-endian.png": (BIG_ENDIAN, {}),
    "float.TIFF": (as_float(), {}),
    **{f"grey.{end}": (grey("L"), {}) for end in ("png", "bmp", "tif", "gif", "pgm", "jp2")},
    **{f"colour.{end}": (grey("RGB"), {}) for end in ("PNG", "bmp", "tiff", "ppm", "jp2")},
    **{f"lossy.{end}": (grey("RGB"), {"quality": 98}) for end in ("jpg", "JPEG", "jfif", "webp")},
    **{f"alpha-{mode}.png": (with_alpha(mode), {}) for mode in ("LA", "RGBA")},
    "premultiplied.tif": (with_alpha("RGBA"), {}),
    "palette.png": (grey("L").convert("P"), {}),
    "a-clear-colour.png": (grey("L").convert("P"), {"transparency": 5}),
    "clear-colours.png": (grey("L").convert("P"), {"transparency": bytes(range(256))}),
    "a-clear-grey.png": (grey("L"), {"transparency": 5}),
    "a-clear-rgb.png": (grey("RGB"), {"transparency": (5, 5, 5)}),
    "printed.tif": (grey("CMYK"), {}),
    "printed.jpg": (grey("CMYK"), {"quality": 98}),
    "luma.tif": (grey("YCbCr"), {}),
    "lab.tif": (lab(), {}),
    "moving.gif": (grey("L"), {"save_all": True, "append_images": [Image.new("L", (32, 32))]}),
    "pages.tif": (grey("L"), {"save_all": True, "append_images": [Image.new("L", (32, 32))]}),
    "mit Leerzeichen, größer 图.png": (grey("L"), {}),
}


@pytest.mark.parametrize("name", RAMPS)
def test_what_is_read_is_what_was_stored(name, folder):
    """A ramp from black to white, in every form in which people keep images."""
    image, settings = RAMPS[name]
    if name == "luma.tif" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("pillow before 13 says of such a file that it is cut off")
    image.save(folder / "test" / "cat" / name, **settings)
    test = open_data(f"folder:{folder}", image_size=32).test
    (place,) = [i for i, (path, _) in enumerate(test.samples) if path.endswith(name)]
    pixels, label = test[place]
    assert (pixels.dtype, label) == (torch.float32, 0)
    wanted = torch.from_numpy(RAMP).float().expand(3, -1, -1)
    torch.testing.assert_close(pixels, wanted, atol=3 / 255, rtol=0)


FLOATS = RAMP.astype(np.float32)
SAMPLES = {
    "4": (BYTES >> 4, 4, {}),
    "8": (BYTES, 8, {}),
    "12": (SHORTS >> 4, 12, {}),
    "16": (SHORTS, 16, {}),
    "float": (FLOATS, 32, {"kind": 3}),
    "8, zero is white": (255 - BYTES, 8, {"meaning": 0}),
    "16, zero is white": (65535 - SHORTS, 16, {"meaning": 0}),
    "float, zero is white": (1 - FLOATS, 32, {"meaning": 0, "kind": 3}),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_a_tiff_are_on_their_own_scale(name, tmp_path):
    values, bits, settings = SAMPLES[name]
    tiff(tmp_path / "a.tif", values, bits, **settings)
    pixels = unit_range(read_image(tmp_path / "a.tif"))[0].double()
    torch.testing.assert_close(pixels, torch.from_numpy(RAMP), atol=2**-bits + 2e-3, rtol=0)


@pytest.mark.parametrize("end", ["tga", "pnm", "dib", "apng"])
def test_images_of_rarer_kinds_are_not_passed_over(end, folder):
    grey("L").save(folder / "test" / "cat" / f"a.{end}", "PNG" if end == "apng" else None)
    assert len(open_data(f"folder:{folder}", image_size=32).test) == 9


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.pgm"])
def test_a_header_says_short_and_long_side(name, tmp_path):
    grey("L").resize((40, 9)).save(tmp_path / name)
    assert size_of(tmp_path / name) == (9, 40)
    (tmp_path / name).write_bytes(b"\0")
    assert size_of(tmp_path / name) is None
    assert size_of(tmp_path / "nowhere") is None


def test_two_greys_are_read_as_black_and_white(tmp_path):
    grey("1").save(tmp_path / "fax.png")
    pixels = read_image(tmp_path / "fax.png")
    assert torch.equal(pixels[0], torch.from_numpy(255 * np.array(grey("1"), dtype=np.uint8)))


@pytest.mark.parametrize(("mode", "end"), [("RGB", "jpg"), ("L", "png"), ("L", "tif")])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_stands_upright(orientation, mode, end, tmp_path):
    exif = Image.Exif()
    exif[274] = orientation
    grey(mode).save(tmp_path / f"phone.{end}", exif=exif)
    turned = [
        *(RAMP, RAMP[:, ::-1], RAMP[::-1, ::-1], RAMP[::-1]),
        *(RAMP.T, np.rot90(RAMP, -1), RAMP[::-1, ::-1].T, np.rot90(RAMP)),
    ]
    wanted = torch.from_numpy(255 * turned[orientation - 1])
    pixels = read_image(tmp_path / f"phone.{end}")[0].double()
    torch.testing.assert_close(pixels, wanted, atol=3, rtol=0)


NOT_A_NUMBER = as_float(0.0, float("nan"))
REFUSED = {
    "levels.tif": (lambda p: saved(as_float(0, 255), p), r"lie in \[0, 1\], got \[0, 255\]"),
    "normalised.tif": (lambda p: saved(as_float(-1, 1), p), r"lie in \[0, 1\], got \[-1, 1\]"),
    "holes.tif": (lambda p: saved(NOT_A_NUMBER, p), "got .nan, nan"),
    "int.tif": (
        lambda p: saved(Image.fromarray(SHORTS.astype(np.int32)), p),
        "32-bit integers from 0 to 65535",
    ),
    "signed.tif": (lambda p: tiff(p, BYTES >> 1, 8, kind=2), "numbers with a sign"),
    "signed-short.tif": (lambda p: tiff(p, SHORTS >> 1, 16, kind=2), "integers from 0 to 32767"),
    "icon.png": (
        lambda p: saved(Image.merge("LA", [Image.new("L", (32, 32)), grey("L")]), p),
        "its picture is in its transparency alone",
    ),
    "strip.png": (lambda p: saved(Image.new("L", (1000, 2)), p), "1000 x 2 pixels"),
    "page.jpg": (lambda p: p.write_text("<html>404</html>"), "is no image"),
    "empty.png": (lambda p: p.write_bytes(b""), "is no image"),
    "pointer.png": (lambda p: p.write_text("version https://git-lfs"), "is no image"),
    "gone.png": (lambda p: p.symlink_to(p.parent / "nowhere"), "cannot be read"),
    "new.heic": (lambda p: p.write_bytes(b"\0\0\0\x18ftypheic"), "is no image"),
    **{f"cut.{end}": (lambda p: cut(grey("RGB"), p), "cannot be read") for end in ("png", "bmp")},
    "cut-deep.png": (lambda p: cut(Image.fromarray(SHORTS), p), "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_name(name, folder):
    write, message = REFUSED[name]
    write(folder / "test" / "dog" / name)
    test = open_data(f"folder:{folder}", image_size=32).test
    with pytest.raises(ValueError, match=message) as refused:
        batches(test, 4)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
