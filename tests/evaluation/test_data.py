"""Images in [0, 1], parts that do not overlap, folders that agree, or a helpful error."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from advssl.evaluation.data import InMemory, batches, open_data, read_image, stratified, targets


def write_images(place, classes, count=4, size=(20, 30)):
    draw = np.random.default_rng(0)
    for name in classes:
        inside = place / name / "deeper"  # nested: ImageFolder looks below
        inside.mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(inside / f"{i}.png")


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, ("cat", "dog"))
    return tmp_path


def rows(subset) -> set[int]:
    return set(subset.indices)


def test_digits_are_real_whole_and_apart():
    data = open_data("digits", image_size=16)
    assert (len(data.train), len(data.validation), len(data.test)) == (1167, 130, 500)
    assert not rows(data.train) & rows(data.validation)
    image, label = data.test[0]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert data.classes[label] == str(label)
    assert not data.natural
    pixels = {image.numpy().tobytes() for image, _ in data.test}
    assert not any(image.numpy().tobytes() in pixels for image, _ in data.train)


def test_a_seed_decides_the_split():
    first, again, other = (open_data("digits", seed=s) for s in (3, 3, 4))
    assert rows(first.validation) == rows(again.validation)
    assert targets(first.test) == targets(again.test)
    assert rows(first.validation) != rows(other.validation)


@pytest.mark.parametrize("sizes", [(100, 100, 100), (20, 200, 80), (2, 2)])
def test_the_validation_part_is_stratified(sizes):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    kept, held_out = stratified(labels, seed=0)
    assert sorted(kept + held_out) == list(range(len(labels)))
    for c, n in enumerate(sizes):
        count = int((labels[held_out] == c).sum())
        assert count == min(max(1, round(n / 10)), n - 1)


def test_the_validation_part_is_never_more_than_5000():
    _, held_out = stratified(torch.arange(200_000) % 10, seed=0)
    assert len(held_out) == 5000


def test_a_folder_is_resized_and_cropped(folder):
    data = open_data(f"folder:{folder}", image_size=24)
    image, label = data.test[5]
    assert image.shape == (3, 24, 24)
    assert type(image) is torch.Tensor
    assert 0 <= image.min() <= image.max() <= 1
    assert (data.classes, label) == (("cat", "dog"), 1)
    assert data.natural
    assert targets(data.train) == [
        c for i, c in enumerate([0] * 4 + [1] * 4) if i in rows(data.train)
    ]
    assert open_data(f"folder:{folder}").test[0][0].shape == (3, 20, 20)


def test_folders_can_be_named_apart(folder, tmp_path):
    write_images(tmp_path / "mine", ("cat", "dog"), count=2)
    data = open_data(f"folder:{folder}", validation=str(tmp_path / "mine"), image_size=8)
    assert len(data.validation) == 4
    assert len(data.train) == 8


def test_val_stands_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(open_data(f"folder:{folder}", image_size=8).test) == 8


# --- images as people have them -------------------------------------------------------------------

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)
BYTES = (255 * RAMP).round().astype(np.uint8)
SHORTS = (65535 * RAMP).round().astype(np.uint16)
HALF_CLEAR = Image.fromarray(np.full((32, 32), 128, np.uint8))


def grey(mode: str) -> Image.Image:
    return Image.fromarray(BYTES).convert("RGB").convert(mode)


def with_alpha(mode: str) -> Image.Image:
    image = grey(mode)
    image.putalpha(HALF_CLEAR)
    return image


def lab() -> Image.Image:
    from PIL import ImageCms

    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    return ImageCms.profileToProfile(grey("RGB"), *profiles, outputMode="LAB")


def as_float(low: float = 0.0, high: float = 1.0) -> Image.Image:
    return Image.fromarray((low + (high - low) * RAMP).astype(np.float32))


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
    image.save(folder / "test" / "cat" / name, **settings)
    test = open_data(f"folder:{folder}", image_size=32).test
    (place,) = [i for i, (path, _) in enumerate(test.samples) if path.endswith(name)]
    pixels, label = test[place]
    assert (pixels.dtype, label) == (torch.float32, 0)
    wanted = torch.from_numpy(RAMP).float().expand(3, -1, -1)
    torch.testing.assert_close(pixels, wanted, atol=3 / 255, rtol=0)


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


def saved(image: Image.Image, path, **settings) -> None:
    image.save(path, **settings)


def cut(image: Image.Image, path) -> None:
    image.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


NOT_A_NUMBER = as_float(0.0, float("nan"))
REFUSED = {
    "levels.tif": (lambda p: saved(as_float(0, 255), p), r"lie in \[0, 1\], got \[0, 255\]"),
    "normalised.tif": (lambda p: saved(as_float(-1, 1), p), r"lie in \[0, 1\], got \[-1, 1\]"),
    "holes.tif": (lambda p: saved(NOT_A_NUMBER, p), "got .nan, nan"),
    "int.tif": (
        lambda p: saved(Image.fromarray(SHORTS.astype(np.int32)), p),
        "32-bit integers from 0 to 65535",
    ),
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


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (90, 1)])
def test_small_and_narrow_images_are_images(size, folder):
    Image.new("RGB", size, (255, 0, 128)).save(folder / "test" / "cat" / "a.png")
    pixels, _ = open_data(f"folder:{folder}", image_size=8).test[0]
    wanted = torch.tensor([1.0, 0.0, 128 / 255]).view(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(pixels, wanted)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir"])
@pytest.mark.parametrize("below", [".", "cat", "cat/deeper"])
@pytest.mark.parametrize("empty", [True, False])
def test_hidden_folders_are_no_classes_and_hold_no_images(name, below, empty, folder):
    for part in ("train", "test"):
        (folder / part / below / name).mkdir()
        if not empty:
            grey("L").save(folder / part / below / name / "0.png")
    data = open_data(f"folder:{folder}", image_size=8)
    assert (data.classes, len(data.test)) == (("cat", "dog"), 8)


@pytest.mark.parametrize(
    "name", [".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "notes.txt", ".0.png.swp"]
)
@pytest.mark.parametrize("place", [".", "cat", "cat/deeper"])
def test_other_files_are_no_images(name, place, folder):
    (folder / "test" / place / name).write_bytes(b"\0\5\x16\7")
    data = open_data(f"folder:{folder}", image_size=8)
    assert (data.classes, len(data.test)) == (("cat", "dog"), 8)
    batches(data.test, 4)


def test_a_class_without_images_is_refused_by_its_name(folder):
    for part in ("train", "test"):
        (folder / part / "fox").mkdir()
        (folder / part / "fox" / "._0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"class 'fox' has no image in .*train"):
        open_data(f"folder:{folder}")


def test_images_without_a_class_are_refused(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        grey("L").save(tmp_path / part / "0.png")
    with pytest.raises(ValueError, match="train has no folder of a class"):
        open_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("part", ["test", "validation"])
@pytest.mark.parametrize("linked", [False, True])
def test_training_images_are_never_measured_on(part, linked, folder, tmp_path):
    place = folder / "train"
    if linked:
        place = tmp_path / "links"
        place.mkdir()
        (place / "cat").symlink_to(folder / "train" / "cat")
        write_images(place, ["dog"])
    with pytest.raises(ValueError, match=f"train and {part} must be other images.*train/cat"):
        open_data(f"folder:{folder}", **{part: str(place)})


def test_with_one_image_per_class_nothing_is_validated_on(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, ("cat", "dog"), count=1)
    data = open_data(f"folder:{tmp_path}", image_size=8)
    assert [len(p) for p in (data.train, data.validation, data.test)] == [2, 0, 2]
    assert (targets(data.validation), batches(data.validation, 4)) == ([], [])


def test_classes_that_differ_are_refused_with_the_difference(folder):
    (folder / "test" / "dog").rename(folder / "test" / "fox")
    with pytest.raises(ValueError, match=r"only in train: \['dog'\], only in test: \['fox'\]"):
        open_data(f"folder:{folder}")


@pytest.mark.parametrize(
    ("classes", "key", "names"),
    [(10, "labels", "label_names"), (100, "fine_labels", "fine_label_names")],
)
def test_cifar_is_read_as_torchvision_stores_it(tmp_path, monkeypatch, classes, key, names):
    from torchvision import datasets

    kind = getattr(datasets, f"CIFAR{classes}")
    monkeypatch.setattr(kind, "_check_integrity", lambda _: True)
    place = tmp_path / kind.base_folder
    place.mkdir()
    files = [name for name, _ in kind.train_list + kind.test_list]
    for i, file in enumerate(files):
        labels = [c % classes for c in range(2 * classes)]
        content = {"data": np.full((2 * classes, 3072), i, np.uint8), key: labels}
        (place / file).write_bytes(pickle.dumps(content))
    meta = {names: [f"class {c}" for c in range(classes)]}
    (place / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_data(f"cifar{classes}:{tmp_path}")
    count = 2 * classes * (len(files) - 1)
    assert len(data.train) + len(data.validation) == count
    assert len(data.test) == 2 * classes
    assert data.unlabelled is None
    image, label = data.test[3]
    assert image.shape == (3, 32, 32)
    assert torch.equal(image, torch.full((3, 32, 32), (len(files) - 1) / 255))
    assert data.classes[label] == "class 3"


@pytest.fixture
def stl10(tmp_path):
    """Image i of a part has its row number in red, its column number in green and i in blue."""
    place = tmp_path / "stl10_binary"
    place.mkdir()
    for part, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        pixels = np.zeros((count, 3, 96, 96), np.uint8)
        pixels[:, 0] = np.arange(96)[:, None]
        pixels[:, 1] = np.arange(96)
        pixels[:, 2] = np.arange(count)[:, None, None]
        pixels.swapaxes(2, 3).tofile(place / f"{part}_X.bin")  # column by column
        if part != "unlabeled":
            (np.arange(count) % 10 + 1).astype(np.uint8).tofile(place / f"{part}_y.bin")
    (place / "class_names.txt").write_text("\n".join(f"class {c}" for c in range(10)))
    return tmp_path


def test_stl10_has_unlabelled_images_too(stl10):
    data = open_data(f"stl10:{stl10}")
    assert [len(p) for p in (data.train, data.validation, data.test)] == [30, 10, 20]
    image, label = data.test[13]
    assert image.shape == (3, 96, 96)
    assert torch.equal((image[:, 5, 7] * 255).round(), torch.tensor([5.0, 7.0, 13.0]))
    assert data.classes[label] == "class 3"
    assert len(data.unlabelled) == 30
    assert set(targets(data.unlabelled)) == {-1}
    assert data.natural


def test_stl10_is_resized(stl10):
    data = open_data(f"stl10:{stl10}", image_size=32)
    for part in (data.train, data.test, data.unlabelled):
        image, _ = part[0]
        assert image.shape == (3, 32, 32)
        # A third of the size: pixel i has been the mean about 3 i + 1.
        torch.testing.assert_close(image[0, :, 9] * 255, torch.arange(32.0) * 3 + 1, atol=1, rtol=0)


def test_half_an_stl10_is_refused(stl10):
    labels = stl10 / "stl10_binary" / "train_y.bin"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"no STL-10 under .*; unpack stl10_binary.tar.gz"):
        open_data(f"stl10:{stl10}")


def test_batches_keep_the_order():
    dataset = InMemory(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5))
    parts = batches(dataset, 2)
    assert [len(y) for _, y in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]).flatten(), torch.arange(5) / 255)


# --- images and labels in memory ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.full((4, 3, 2, 2), 51, dtype=torch.uint8), torch.arange(4)),
        (np.full((4, 3, 2, 2), 51, np.uint8), [0, 1, 2, 3]),
        (np.full((4, 2, 2, 3), 51, np.uint8).transpose(0, 3, 1, 2), np.arange(4, dtype=np.uint8)),
        *(
            (torch.full((4, 3, 2, 2), 0.2, dtype=kind), torch.arange(4, dtype=torch.int32))
            for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        ),
        (np.full((4, 3, 2, 2), 0.2), np.arange(4)),
    ],
)
def test_pixels_and_labels_of_all_kinds_become_plain(images, labels):
    dataset = InMemory(images, labels)
    ((pixels, classes),) = batches(dataset, 4)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, torch.full((4, 3, 2, 2), 0.2), atol=1e-3, rtol=0)
    assert torch.equal(classes, torch.arange(4))
    assert targets(dataset) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            torch.rand(4, 3, 2, 2) * 255,
            [0] * 4,
            r"lie in \[0, 1\].*divide grey levels",
        ),
        (torch.randn(4, 3, 9, 9), [0] * 4, r"lie in \[0, 1\]"),
        (torch.full((4, 3, 2, 2), torch.nan), [0] * 4, "got .nan, nan"),
        (torch.zeros(4, 3, 2, 2, dtype=torch.int64), [0] * 4, "torch.int64.*to.torch.uint8"),
        (torch.zeros(4, 2, 2), [0] * 4, r"\(N, C, H, W\), got .*images\[:, None\]"),
        (torch.zeros(4, 8, 8, 3), [0] * 4, r"permute\(0, 3, 1, 2\)"),
        ([["a"]], [0], "images must be numbers|got torch"),
        (torch.zeros(4, 3, 2, 2), [0] * 3, "labels must be 4 integers"),
        (torch.zeros(4, 3, 2, 2), [0.0] * 4, "labels must be 4 integers.*float64"),
        (torch.zeros(4, 3, 2, 2), ["cat"] * 4, "labels must be"),
        (torch.zeros(4, 3, 2, 2), [0, -100, 1, -1], "-1 for none, got -100"),
    ],
)
def test_other_pixels_and_labels_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        InMemory(images, labels)


def test_a_label_of_none_is_no_class_to_split_by():
    with pytest.raises(ValueError, match="classes from 0 on, got a label of -1"):
        stratified(torch.tensor([0, 0, -1, 1, 1]), seed=0)
    with pytest.raises(ValueError, match="got none"):
        stratified([], seed=0)


def test_labels_are_found_through_parts_of_datasets():
    whole = InMemory(torch.zeros(6, 1, 2, 2), range(6))
    parts = torch.utils.data.ConcatDataset([torch.utils.data.Subset(whole, [4, 1]), whole])
    assert targets(parts) == [4, 1, 0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"labels as \.targets, got a TensorDataset"):
        targets(torch.utils.data.TensorDataset(torch.zeros(2)))


@pytest.mark.parametrize("spec", ["digits", "stl10", "folder"])
def test_torchs_defaults_have_no_say(spec, request):
    """Neither a default device nor a default type, nor is a random number drawn."""
    place = f":{request.getfixturevalue(spec)}" if spec != "digits" else ""
    random_state = torch.random.get_rng_state()

    def opened():
        data = open_data(f"{spec}{place}", image_size=8)
        return batches(data.test, 7) + batches(data.validation, 7), targets(data.train)

    wanted = opened()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = opened()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("digits:here", {}, "got 'digits:here'"),
        ("folder:", {}, "folder:PATH needs a path"),
        *(("digits", {"image_size": size}, "image-size must be") for size in (0, -1, 8.5, "8")),
        ("mnist", {}, "one of \"digits\", .* got 'mnist'"),
        ("digits", {"train": "x"}, "--train, --val and --test name folders beside folder:PATH"),
        ("cifar10:nowhere", {}, "no CIFAR-10 under nowhere; unpack cifar-10-python.tar.gz"),
        ("cifar100:nowhere", {}, "no CIFAR-100 under nowhere; unpack .* place as cifar100:ROOT"),
        ("stl10:nowhere", {}, "no STL-10 under nowhere; unpack stl10_binary.tar.gz"),
        ("cifar10", {"image_size": 64}, "CIFAR-10 is 32 x 32, got --image-size 64"),
        ("folder:nowhere", {}, "no folder of train images at nowhere"),
    ],
)
def test_errors_say_what_to_do(spec, settings, message):
    with pytest.raises(ValueError, match=message):
        open_data(spec, **settings)
