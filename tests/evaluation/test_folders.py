"""Folders: listed as people keep them, parts that agree, at the size that the images have."""

from __future__ import annotations

import pytest
import torch
from pictures import grey, write_images
from PIL import Image

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
