"""Corrupted images depend on type, severity, seed and index alone; files are read as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys import Told

from advssl.evaluation import corruptions
from advssl.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    Files,
    Made,
    corrupted,
    photographs,
    source_of,
    under_corruptions,
)
from advssl.evaluation.report.corruption import GROUPS

# More damage at each severity by definition; the others change several settings that trade off.
GROWS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "fog",
    "brightness",
    "contrast",
    "jpeg_compression",
)


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    """Smooth, in bytes."""
    draw = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 8, 8, generator=draw)
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth * 255).round() / 255


def frost(size: int = 40) -> list[np.ndarray]:
    return [np.full((size, size, 3), 200, np.uint8)]


def made(name: str, severity: int = 3, x: torch.Tensor | None = None, **more) -> torch.Tensor:
    given = {"frost": frost()} if name == "frost" else {}
    return corrupted(images() if x is None else x, name, severity, **given, **more)


EVERY = [*CORRUPTIONS, "frost"]


def test_the_types_are_the_nineteen_of_cifar_10_c():
    assert len(CORRUPTIONS) == 18
    assert sorted(EVERY) == sorted(name for group in GROUPS.values() for name in group)
    assert all(len(of.levels) == len(SEVERITIES) == 5 for of in CORRUPTIONS.values())


@pytest.mark.parametrize("name", EVERY)
class TestAllTypes:
    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_an_image_of_bytes_stays_one(self, name, severity):
        x = images(2)
        kept = x.clone()
        found = made(name, severity, x)
        assert torch.equal(x, kept)
        assert found.shape == x.shape
        assert found.dtype == torch.float32
        assert found.min() >= 0
        assert found.max() <= 1
        assert torch.equal((255 * found).round() / 255, found)
        assert not torch.equal(found, x)

    def test_an_image_is_the_same_in_any_company(self, name):
        whole = made(name)
        for i in range(4):
            alone = made(name, x=images()[i : i + 1], indices=[i])
            assert torch.equal(alone[0], whole[i])
        turned = made(name, x=images().flip(0), indices=[3, 2, 1, 0])
        assert torch.equal(turned.flip(0), whole)

    def test_the_callers_random_state_neither_counts_nor_changes(self, name):
        before, known = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        first = made(name)
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], known)  # noqa: NPY002
        torch.manual_seed(17)
        assert torch.equal(made(name), first)

    @pytest.mark.parametrize("size", [8, 20, 40])
    def test_images_of_other_sizes_are_corrupted_too(self, name, size):
        x = images(1, size)
        assert made(name, 5, x).shape == x.shape
        for even in (0.0, 1.0):
            assert made(name, 5, torch.full_like(x, even)).isfinite().all()


DRAWN = [n for n in EVERY if n not in (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
    "gaussian_blur", "saturate", "frost",
)]  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_another_seed_and_another_index_draw_anew(name):
    x = images(1).expand(2, -1, -1, -1)
    found = made(name, 5, x)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(made(name, 5, x, seed=1)[0], found[0])


@pytest.mark.parametrize("name", GROWS)
def test_a_higher_severity_moves_an_image_further(name):
    x = images(8)
    moved = [float((made(name, s, x) - x).square().mean()) for s in SEVERITIES]
    assert moved == sorted(moved)
    assert moved[0] > 0


def test_numbers_are_cut_off_as_in_the_files():
    """0.75 of the way from a mean of 100.5 is no whole number."""
    x = torch.zeros(1, 3, 2, 2)
    x[:, :, 0] = 201 / 255
    found = made("contrast", 1, x)
    assert (255 * found).round().unique().tolist() == [25.0, 175.0]  # 25.125 and 175.875


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.rand(2, 1, 8, 8), "fog", 1), r"images \(B, 3, S, S\)"),
        ((torch.rand(2, 3, 8, 9), "fog", 1), r"images \(B, 3, S, S\)"),
        ((torch.rand(2, 3, 8, 8), "mist", 1), "got 'mist'"),
        ((torch.rand(2, 3, 8, 8), "frost", 1), "got 'frost'"),
        ((torch.rand(2, 3, 8, 8), "fog", 6), "severity must be from 1 to 5, got 6"),
        ((torch.rand(2, 3, 8, 8), "fog", 0), "severity"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        corrupted(*given)


# --- sources --------------------------------------------------------------------------------------


def files(folder, count: int = 6, size: int = 8, names=("fog", "frost")) -> list[int]:
    """Whose image i at severity s is 10 s + i everywhere."""
    labels = [i % 3 for i in range(count)]
    np.save(folder / "labels.npy", np.tile(np.uint8(labels), 5))
    told = np.uint8([[10 * s + i for i in range(count)] for s in SEVERITIES]).reshape(-1, 1, 1, 1)
    for name in names:
        np.save(folder / f"{name}.npy", np.broadcast_to(told, (5 * count, size, size, 3)))
    return labels


class TestSources:
    def test_files_are_read_severity_by_severity(self, tmp_path):
        source = source_of(tmp_path, files(tmp_path), 8)
        assert isinstance(source, Files)
        assert source.names == ["fog", "frost"]
        assert source.title == tmp_path.name
        assert isinstance(source.files["fog"], np.memmap)
        for severity in SEVERITIES:
            found = source(torch.rand(3, 3, 8, 8), [4, 0, 5], "frost", severity)
            assert found.shape == (3, 3, 8, 8)
            expected = [10 * severity + i for i in (4, 0, 5)]
            assert (255 * found).round().amax((1, 2, 3)).tolist() == expected

    def test_files_of_other_images_are_refused(self, tmp_path):
        labels = files(tmp_path)
        with pytest.raises(ValueError, match="labels five times"):
            source_of(tmp_path, labels[::-1], 8)
        with pytest.raises(ValueError, match="labels five times"):
            source_of(tmp_path, labels[:5], 8)
        with pytest.raises(ValueError, match=r"must be bytes of shape \(30, 16, 16, 3\)"):
            source_of(tmp_path, labels, 16)
        np.save(tmp_path / "fog.npy", np.zeros((30, 8, 8, 3)))
        with pytest.raises(ValueError, match="got float64"):
            source_of(tmp_path, labels, 8)

    def test_labels_alone_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="and none of gaussian_noise"):
            source_of(tmp_path, files(tmp_path, names=()), 8)

    def test_photographs_are_frost(self, tmp_path):
        Image.new("RGB", (200, 160), (200, 100, 50)).save(tmp_path / "a.png")
        (tmp_path / "notes.txt").write_text("no photograph")
        source = source_of(tmp_path, [0, 1], 32)
        assert source.names == EVERY
        black = torch.zeros(1, 3, 32, 32)
        found = (255 * source(black, [0], "frost", 1)).round()[0, :, 0, 0]
        assert found.tolist() == [40, 20, 10]  # a fifth
        with pytest.raises(ValueError, match="must cover an image of 40 pixels"):
            source_of(tmp_path, [0, 1], 40)

    def test_a_photograph_is_read_at_a_fifth_of_its_size(self, tmp_path):
        pixels = np.zeros((50, 100, 3), np.uint8)
        pixels[:25] = 250
        Image.fromarray(pixels).save(tmp_path / "a.png")
        (found,) = photographs(tmp_path)
        assert found.shape == (10, 20, 3)
        assert set(np.unique(found)) == {0, 250}

    def test_a_folder_of_nothing_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="holds neither"):
            source_of(tmp_path, [0], 32)
        with pytest.raises(ValueError, match="is no folder"):
            source_of(tmp_path / "not there", [0], 32)

    def test_without_a_folder_there_is_no_frost(self):
        assert source_of("", [0], 32).names == [*CORRUPTIONS]
        assert source_of(None, [0], 32).title == "advssl corruptions"

    def test_parts_are_told_apart_by_all_that_they_depend_on(self, tmp_path):
        labels = files(tmp_path)
        told = [
            Made(8).identity([0], "fog"),
            Made(8).identity([0], "snow"),
            Made(8).identity([1], "fog"),
            Made(8, seed=1).identity([0], "fog"),
            Made(8, frost=frost()).identity([0], "fog"),
            Files(tmp_path, labels, 8).identity([0], "fog"),
            Files(tmp_path, labels, 8).identity([1], "fog"),
        ]
        assert len(set(told)) == len(told)
        assert Files(tmp_path, labels, 8).identity([1], "fog") == told[-1]


# --- accuracy -------------------------------------------------------------------------------------


class Dark(nn.Module):
    """Class 1 of images whose mean is below a half."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], dim=1)


class Grown:
    """A source whose images are darker by 0.1 per severity."""

    title, names = "darkness", ["fog", "snow"]

    def __call__(self, images, rows, name, severity):
        assert len(images) == len(rows)
        return images - 0.1 * severity * (name == "fog")

    def identity(self, rows, name):
        return f"{name} {rows}"


def bright() -> list:
    """Class 0, lighter than a half by 0.05, 0.15, 0.25, ..."""
    x = torch.stack([torch.full((3, 4, 4), 0.55 + 0.1 * i) for i in range(5)])
    return [(x[:2], torch.zeros(2).long()), (x[2:], torch.zeros(3).long())]


def test_accuracy_is_that_under_each_severity():
    found = under_corruptions(Dark(), bright(), Grown())
    assert (found.source, found.clean, found.images) == ("darkness", 1.0, 5)
    assert found.accuracy == {"fog": (0.8, 0.6, 0.4, 0.2, 0.0), "snow": (1.0,) * 5}
    assert found.mean == pytest.approx(0.7)
    assert found.worst == "fog"


def test_each_part_is_asked_for_once():
    asked = []

    def once(part, work):
        asked.append(part)
        return work() if "fog" in part else {"accuracy": [0.5] * 5}

    found = under_corruptions(Dark(), bright(), Grown(), indices=[9, 8, 7, 6, 5], once=once)
    assert asked == ["fog [9, 8, 7, 6, 5]", "snow [9, 8, 7, 6, 5]"]
    assert found.accuracy["snow"] == (0.5,) * 5


def test_one_type_alone_and_the_classifier_is_left_as_it_was():
    classifier = Told(Dark()).train()
    found = under_corruptions(classifier, bright(), Grown(), names=["snow"])
    assert list(found.accuracy) == ["snow"]
    assert classifier.training
    assert classifier.images == 6 * 5


@pytest.mark.parametrize(
    ("batches", "more", "message"),
    [([], {}, "0 images need"), (None, {"indices": [1]}, "5 images need as many indices")],
)
def test_images_without_their_indices_are_refused(batches, more, message):
    with pytest.raises(ValueError, match=message):
        under_corruptions(Dark(), bright() if batches is None else batches, Grown(), **more)


def test_the_module_says_what_its_images_are_not():
    assert "no number on them is one on CIFAR-10-C" in " ".join(corruptions.__doc__.split())


# As make_cifar_c.py of https://github.com/hendrycks/robustness has them.
OF_CIFAR = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    # σ and how often; a pixel's neighbour is one away at every severity.
    "glass_blur": ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)),
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),  # ends of aranges from 1 in steps of 0.01
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    # Shares of the image's 32 pixels: shift, σ, and how far the three points move.
    "elastic_transform": (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
}
FROST_OF_CIFAR = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))


def test_severities_are_those_of_cifar():
    assert {name: of.levels for name, of in CORRUPTIONS.items()} == OF_CIFAR
    assert corruptions.FROST == FROST_OF_CIFAR
