"""Folders: listed as people keep them, parts that agree, at the size that the images have."""

from __future__ import annotations

import os

import pytest
import torch
from pictures import grey, write_images
from PIL import Image

from advssl.evaluation import folders
from advssl.evaluation.data import batches, open_data, targets


def rows(subset) -> set[int]:
    return set(subset.indices)


def test_folders_can_be_named_apart(folder, tmp_path):
    write_images(tmp_path / "mine", ("cat", "dog"), count=2)
    data = open_data(f"folder:{folder}", validation=str(tmp_path / "mine"), image_size=8)
    assert len(data.validation) == 4
    assert len(data.train) == 8


def test_val_stands_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(open_data(f"folder:{folder}", image_size=8).test) == 8


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (90, 1)])
def test_small_and_narrow_images_are_images(size, folder):
    Image.new("RGB", size, (255, 0, 128)).save(folder / "test" / "cat" / "a.png")
    pixels, _ = open_data(f"folder:{folder}", image_size=8).test[0]
    wanted = torch.tensor([1.0, 0.0, 128 / 255]).view(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(pixels, wanted)


LEFT = ["__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "__pycache__"]
LEFT += ["$Recycle.Bin", "recycler", "Network Trash Folder", "Temporary Items"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".thumbnails", *LEFT])
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


@pytest.mark.parametrize("place", ["fox", "cat/more"])
def test_a_link_that_leads_nowhere_is_refused_by_its_name(place, folder):
    for part in ("train", "test"):
        (folder / part / place).symlink_to(folder / "unmounted")
    with pytest.raises(ValueError, match=f"train/{place} is a link to .*unmounted, where there is"):
        open_data(f"folder:{folder}")


def test_a_folder_that_cannot_be_read_is_refused_by_its_name(folder, monkeypatch):
    scan = os.scandir

    def closed(place):
        if os.fspath(place).endswith("cat/deeper"):
            raise PermissionError(13, "Permission denied", os.fspath(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match="cat/deeper cannot be read: Permission denied"):
        open_data(f"folder:{folder}")


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert len(open_data(f"folder:~/{folder.name}").test) == 8


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


@pytest.mark.parametrize("to", ["test", "test/cat", "test/cat/deeper", "."])
def test_a_link_upwards_is_not_followed_round_and_round(to, folder):
    (folder / "test" / "cat" / "deeper" / "round").symlink_to(folder / to)
    assert len(open_data(f"folder:{folder}", image_size=8).test) == 8


# --- the size that images have --------------------------------------------------------------------


def sized(folder, *sizes) -> None:
    """One file of each size (width, height), in train and test by turns."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for old in (folder / part / name / "deeper").iterdir():
                old.unlink()
    for i, size in enumerate(sizes):
        place = folder / ("train", "test")[i % 2] / ("cat", "dog")[i // 2 % 2] / f"{i}.png"
        Image.new("L", size).save(place)


SIZES = {
    "32 pixels": ([(32, 32)] * 8, 32, "8 of 8 images looked at have 32 x 32 pixels"),
    "96 pixels": ([(96, 96)] * 8, 96, "8 of 8 images looked at have 96 x 96 pixels"),
    "wide": ([(48, 20)] * 8, 20, "8 of 8 images looked at have 48 x 20 pixels"),
    "turned": ([(48, 20), (20, 48)] * 4, 20, "8 of 8 images looked at have 48 x 20 pixels"),
    "nine in ten": ([(32, 32)] * 18 + [(40, 50)] * 2, 32, "18 of 20 images looked at have 32 x"),
    "fewer": ([(32, 32)] * 17 + [(40, 50)] * 3, 224, "images are of different sizes, and 224 is"),
    "photographs": ([(500, 375), (375, 600), (640, 480), (300, 200)] * 2, 224, "different sizes"),
    "the largest": ([(512, 600)] * 4, 512, "4 of 4 images looked at have 600 x 512 pixels"),
    "larger": ([(600, 513)] * 4, 224, "have 600 x 513 pixels, which are reduced to the 224 usual"),
}


@pytest.mark.parametrize("what", SIZES)
def test_images_have_the_size_of_their_files(what, folder):
    sizes, wanted, because = SIZES[what]
    sized(folder, *sizes)
    data = open_data(f"folder:{folder}")
    assert data.image_size == wanted
    assert because in data.size_because
    for part in (data.train, data.test):
        assert part[0][0].shape == (3, wanted, wanted)


def test_a_size_that_was_asked_for_comes_first(folder):
    data = open_data(f"folder:{folder}", image_size=9)
    assert (data.image_size, data.size_because) == (9, "that size was asked for")


def test_a_size_is_known_by_few_headers_and_no_pixel(folder, monkeypatch):
    monkeypatch.setattr(folders, "read_image", None)
    monkeypatch.setattr(folders, "_LOOKED_AT", 5)
    seen: list[str] = []
    monkeypatch.setattr(folders, "size_of", lambda path: seen.append(path) or (20, 30))
    data = open_data(f"folder:{folder}")
    assert data.size_because == "5 of 5 images looked at have 30 x 20 pixels"
    first = list(seen)
    open_data(f"folder:{folder}")
    assert seen == first * 2  # a seed chooses


def test_broken_files_have_no_size(folder):
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    assert (
        open_data(f"folder:{folder}").size_because == "8 of 8 images looked at have 30 x 20 pixels"
    )
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"")
    data = open_data(f"folder:{folder}")
    assert data.image_size == 224
    assert data.size_because == "no header of an image could be read; 224 is usual"
