"""Data by name: one split, whatever torch's defaults are, or a helpful error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import write_images

from advssl.evaluation import data as module
from advssl.evaluation.data import batches, open_data, targets


def rows(subset) -> set[int]:
    return set(subset.indices)


def test_a_seed_decides_the_split():
    first, again, other = (open_data("digits", seed=s) for s in (3, 3, 4))
    assert rows(first.validation) == rows(again.validation)
    assert targets(first.test) == targets(again.test)
    assert rows(first.validation) != rows(other.validation)


def test_data_say_what_they_were_opened_by_and_at_which_size(folder):
    digits = open_data("digits")
    assert (digits.spec, digits.image_size, digits.folders) == ("digits", 32, {})
    assert "8 x 8" in digits.size_because
    data = open_data(f"folder:{folder}", test=str(folder / "test"))
    assert (data.spec, data.image_size) == (f"folder:{folder}", 20)
    assert data.folders == {"test": str(folder / "test")}


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_memory_is_that_of_all_batches(folder, part):
    for data in (open_data("digits", image_size=8), open_data(f"folder:{folder}")):
        held = batches(getattr(data, part), 64)
        assert data.memory(part) == sum(x.numel() * x.element_size() for x, _ in held)


def test_no_image_takes_no_memory(tmp_path):
    for part in ("train", "test"):
        write_images(tmp_path / part, ("cat", "dog"), count=1)
    assert open_data(f"folder:{tmp_path}").memory("validation") == 0


def test_what_was_here_before_the_split_still_is():
    names = "InMemory Data Sample batches open_data read_image split_spec stratified targets"
    for name in (*names.split(), "IMAGE_ENDINGS", "VALIDATION_SHARE", "VALIDATION_MOST"):
        assert hasattr(module, name)


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


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (np.arange(3), ("0", "1", "2")),
        (["crane", "dog", "crane"], ("crane (0)", "dog", "crane (2)")),
    ],
)
def test_classes_are_words_that_can_be_told_apart(classes, told):
    known = replace(open_data("digits", image_size=8), classes=classes)
    assert known.classes == replace(known).classes == told
