"""A census: every image is looked at once, and what would make a number wrong is an error."""

from __future__ import annotations

import os
import shutil
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import BYTES, SHORTS, as_float, cut, grey, saved, write_images
from PIL import Image
from torch.utils.data import Dataset, Subset

from advssl.evaluation import census as module
from advssl.evaluation.data import Data, checked, open_data
from advssl.evaluation.datasets import InMemory, targets
from advssl.evaluation.records import fingerprint
from advssl.evaluation.streams import batches

PARTS = ("train", "validation", "test")


@pytest.fixture
def folder(tmp_path):
    """Cats and dogs, no two of which are the same."""
    for seed, part in enumerate(("train", "test")):
        write_images(tmp_path / "data" / part, ("cat", "dog"), seed=seed)
    return tmp_path / "data"


def census_of(place, **settings):
    return checked(open_data(f"folder:{place}", image_size=8), **settings)


# --- what is counted ------------------------------------------------------------------------------


def reread(data: Data) -> tuple:
    """The same by the slow way: every image is held, and compared with all others."""
    held = {
        part: [(x.mul(255).round().to(torch.uint8), int(y)) for x, y in getattr(data, part)]
        for part in PARTS
    }
    counts = {
        part: tuple(sum(y == c for _, y in held[part]) for c in range(len(data.classes)))
        for part in PARTS
    }

    def again(part, other):
        for i, (x, y) in enumerate(held[part]):
            same = [j for j, (z, _) in enumerate(held[other]) if torch.equal(x, z)]
            if same and (part != other or same[0] < i):
                yield i, same[0], y != held[other][same[0]][1]

    found = {
        name: list(again(*(name.split(" in ") if " in " in name else (name, name))))
        for name in ("test in train", "validation in train", "validation in test", *PARTS)
    }
    ((images, labels),) = batches(data.test, len(data.test))
    return counts, found, fingerprint(images, labels)


def planted(seed: int) -> Data:
    """Few images, many of them twice or more, under labels by chance."""
    draw = torch.Generator().manual_seed(seed)
    some = torch.randint(0, 256, (12, 3, 2, 2), generator=draw, dtype=torch.uint8)

    def part(n):
        rows = torch.randint(0, 12, (n,), generator=draw)
        labels = torch.cat([torch.arange(3), torch.randint(0, 3, (n - 3,), generator=draw)])
        return InMemory(some[rows], labels)

    return Data("toys", ("a", "b", "c"), part(9), part(6), part(8), natural=False)


@pytest.mark.parametrize("seed", range(6))
def test_a_census_is_what_a_slow_rereading_finds(seed):
    data = planted(seed)
    found = checked(data)
    counts, again, content = reread(data)
    assert (found.counts, found.fingerprint, found.shape) == (counts, content, (3, 2, 2))
    assert set(found.repeats) == set(again)
    for name, pairs in again.items():
        repeats = found.repeats[name]
        part, _, other = name.partition(" in ")
        assert repeats.of == len(getattr(data, part))
        assert repeats.count == len(pairs)
        assert repeats.other_class == sum(differs for *_, differs in pairs)
        shown = [(f"{part}[{i}]", f"{other or part}[{j}]") for i, j, _ in pairs[:5]]
        assert list(repeats.examples) == shown


@pytest.mark.parametrize(("readers", "many"), [(0, 0), (3, 100), (2, 0)])  # none, threads, forks
def test_a_folders_census_is_too(folder, readers, many, monkeypatch):
    monkeypatch.setattr(module, "threads_for", lambda _: readers)
    monkeypatch.setattr(module, "_MANY", many)
    before = torch.get_rng_state()
    shutil.copy(folder / "train/cat/deeper/1.png", folder / "test/dog/seen.png")
    Image.open(folder / "test/cat/deeper/2.png").save(folder / "test/cat/again.bmp")
    data = open_data(f"folder:{folder}", image_size=8)
    found = checked(data)
    assert torch.equal(torch.get_rng_state(), before)
    counts, again, content = reread(data)
    assert (found.counts, found.fingerprint, found.shape) == (counts, content, (3, 8, 8))
    assert {k: r.count for k, r in found.repeats.items()} == {k: len(p) for k, p in again.items()}
    assert found.repeats["test"].examples == (("test/cat/deeper/2.png", "test/cat/again.bmp"),)
    leaks = found.repeats["test in train"], found.repeats["validation in test"]
    assert sum(r.count for r in leaks) == sum(r.other_class for r in leaks) == 1


def test_images_of_few_pixels_are_counted(folder):
    assert census_of(folder).enlarged == 0
    for name in ("a", "b"):
        grey("L").resize((7, 40)).save(folder / "train" / "cat" / f"{name}.png")
    assert census_of(folder).enlarged == 2


def test_only_what_is_used_is_read(folder):
    (folder / "train/cat/deeper/1.png").write_bytes(b"")
    data = open_data(f"folder:{folder}", image_size=8)
    found = checked(data, parts=("test",))
    assert set(found.counts) == set(found.repeats) == {"test"}
    (folder / "test/cat/deeper/1.png").write_bytes(b"")
    seen: list[int] = []
    rows = [5, 0, 7]
    found = checked(data, parts=("test",), measured=rows, progress=lambda *now: seen.append(now[2]))
    assert set(seen) == {3}
    ((images, labels),) = batches(Subset(data.test, rows), 3)
    assert found.fingerprint == fingerprint(images, labels)
    assert found.counts == {"test": (4, 4)}
    assert found.repeats["test"].of == 3


def test_progress_counts_every_image(folder):
    seen = []
    census_of(folder, progress=lambda *now: seen.append(now))
    assert seen[-1] == ("reading images", 16, 16)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


# --- kept -----------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    seen: Counter = Counter()
    look = module._look

    def counted(*args):
        seen["images"] += 1
        return look(*args)

    monkeypatch.setattr(module, "_look", counted)
    return seen


def test_a_kept_census_reads_no_image(folder, tmp_path, reads):
    first = census_of(folder, folder=tmp_path / "work")
    assert reads["images"] == 16
    assert census_of(folder, folder=tmp_path / "work") == first
    assert reads["images"] == 16


CHANGES = {
    "touched": lambda f: os.utime(f / "test/cat/deeper/0.png", (1, 1)),
    "written": lambda f: write_images(f / "test" / "cat", ["new"], count=1, seed=5),
    "gone": lambda f: (f / "test/cat/deeper/0.png").unlink(),
    "renamed": lambda f: (f / "test/cat/deeper").rename(f / "test/cat/shallow"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_files_is_a_new_census(change, folder, tmp_path, reads):
    census_of(folder, folder=tmp_path / "work")
    CHANGES[change](folder)
    again = census_of(folder, folder=tmp_path / "work")
    assert reads["images"] > 30
    assert again == census_of(folder)


def test_another_size_split_or_part_is_another_census(folder, tmp_path, reads):
    data = open_data(f"folder:{folder}", image_size=8)
    work = tmp_path / "work"
    for other in (
        data,
        open_data(f"folder:{folder}", image_size=9),
        replace(data, train=data.test),
    ):
        before = reads["images"]
        checked(other, folder=work)
        assert reads["images"] > before
    assert checked(data, folder=work, measured=[0]).fingerprint != checked(data).fingerprint
    assert set(checked(data, folder=work, parts=("test",)).counts) == {"test"}


def test_a_damaged_census_is_made_again(folder, tmp_path, reads):
    first = census_of(folder, folder=tmp_path / "work")
    (file,) = (tmp_path / "work").iterdir()
    for content in (b"", file.read_bytes()[:-9], b"\0" * 99):
        file.write_bytes(content)
        before = reads["images"]
        assert census_of(folder, folder=tmp_path / "work") == first
        assert reads["images"] == before + 16


@pytest.mark.parametrize("place", ["train", "train/report", "test/cat/report", "train/../test/new"])
def test_nothing_is_kept_where_it_would_be_read_as_images(place, folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r"lies in .*(train|test), whose folders are read as cl"):
        census_of(folder, folder=folder / place)
    assert sorted(folder.rglob("*")) == before
    census_of(folder, folder=folder / "report")  # beside the parts
    census_of(folder, folder=folder / "train" / ".report")  # which is no class


def test_images_in_memory_are_kept_by_content_and_others_not_at_all(tmp_path, reads):
    data = planted(0)
    first = checked(data, folder=tmp_path)
    count = reads["images"]
    assert checked(planted(0), folder=tmp_path) == first
    assert reads["images"] == count
    data.test.images[0, 0, 0, 0] ^= 1
    assert checked(data, folder=tmp_path).fingerprint != first.fingerprint
    count = reads["images"]
    for _ in range(2):
        checked(replace(data, test=Given([torch.zeros(3, 2, 2)] * 3)), folder=tmp_path)
    assert reads["images"] == count + 2 * (9 + 6 + 3)


# --- what is wrong --------------------------------------------------------------------------------


def linked(target, place) -> None:
    place.symlink_to(target)


def chunk_cut(path) -> None:
    """A PNG whose pixels end early, with all checksums right."""
    grey("RGB").save(path)
    content = path.read_bytes()
    start = content.index(b"IDAT")
    half = content[start + 4 : start + 20]
    chunk = b"IDAT" + half
    path.write_bytes(
        content[: start - 4]
        + len(half).to_bytes(4, "big")
        + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
        + content[-12:]
    )


BROKEN = {  # a file in test/dog, and what the message says of it
    "empty.png": (lambda p: p.write_bytes(b""), "is no image"),
    "zeros.jpg": (lambda p: p.write_bytes(bytes(4096)), "is no image"),
    "text.png": (lambda p: p.write_text("not yet"), "is no image"),
    "page.jpg": (lambda p: p.write_text("<html>404</html>"), "is no image"),
    "pointer.png": (lambda p: p.write_text("version https://git-lfs"), "is no image"),
    "new.heic": (lambda p: p.write_bytes(b"\0\0\0\x18ftypheic"), "is no image"),
    "header.png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), "is no image|cannot be read"),
    **{f"cut.{end}": (lambda p: cut(grey("RGB"), p), "cannot be read") for end in ("png", "jpg")},
    **{f"half.{end}": (lambda p: cut(grey("RGB"), p), "cannot be read") for end in ("bmp", "ppm")},
    "half.tif": (lambda p: cut(grey("RGB"), p), "is no image|cannot be read"),
    "half.gif": (lambda p: cut(grey("L"), p), "cannot be read"),
    "half.webp": (lambda p: cut(grey("RGB"), p), "is no image|cannot be read"),
    "deep-cut.png": (lambda p: cut(Image.fromarray(SHORTS), p), "cannot be read"),
    "chunk.png": (chunk_cut, "cannot be read"),
    "gone.png": (lambda p: linked(p.parent / "nowhere", p), "cannot be read"),
    "itself.png": (lambda p: linked(p, p), "cannot be read"),
    "levels.tif": (lambda p: saved(as_float(0, 255), p), r"in \[0, 1\], got \[0, 255\]"),
    "normalised.tif": (lambda p: saved(as_float(-1, 1), p), r"in \[0, 1\], got \[-1, 1\]"),
    "nan.tif": (lambda p: saved(as_float(0, float("nan")), p), "got .nan, nan"),
    "inf.tif": (lambda p: saved(Image.new("F", (9, 9), float("inf")), p), "got .inf, inf"),
    "int.tif": (lambda p: saved(Image.fromarray(SHORTS.astype(np.int32)), p), "32-bit integers"),
    "icon.png": (
        lambda p: saved(Image.merge("LA", [Image.new("L", (32, 32)), grey("L")]), p),
        "its picture is in its transparency alone",
    ),
    "strip.png": (lambda p: saved(Image.new("L", (1000, 2)), p), "1000 x 2 pixels; cut it"),
}


def listing(place) -> set:
    return {(os.fspath(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in place.rglob("*")}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_broken_image_is_an_error_with_its_path_before_any_work(name, part, folder, tmp_path):
    write, message = BROKEN[name]
    write(folder / part / "dog" / name)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=message) as told:
        census_of(folder, folder=tmp_path / "work")
    said = str(told.value)
    assert f"{part}/dog/{name}" in said
    assert said.startswith("1 of 17 images cannot be used; mend them, or take them away: ")
    assert said.count(name) == said.count("docs/troubleshooting.md") == 1
    assert "\n" not in said
    assert listing(tmp_path) == before


def test_all_broken_images_are_listed_up_to_a_few(folder):
    for part, count in (("train", 3), ("test", 4)):
        for i in range(count):
            (folder / part / "cat" / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"7 of 23 images cannot be used.*and 2 more") as told:
        census_of(folder)
    assert str(told.value).count("is no image") == 5


def without(folder, part, *classes) -> None:
    for name in classes:
        shutil.rmtree(folder / part / name)


def emptied(folder, part, name) -> None:
    without(folder, part, name)
    (folder / part / name).mkdir()


FLAWED = {  # a folder, and what opening or reading it says
    "no train": (lambda f: shutil.rmtree(f / "train"), r"no folder of train images at .*/train"),
    "no test": (lambda f: shutil.rmtree(f / "test"), r"no folder of test images at .*/test"),
    "train is a file": (
        lambda f: (shutil.rmtree(f / "train"), (f / "train").write_text("")),
        "no folder of train images",
    ),
    "nothing in test": (lambda f: without(f, "test", "cat", "dog"), "test has no folder of a cl"),
    "a class emptied": (lambda f: emptied(f, "train", "dog"), "class 'dog' has no image in .*dog"),
    "a test class emptied": (lambda f: emptied(f, "test", "cat"), "class 'cat' has no image in"),
    "a class of text": (
        lambda f: (emptied(f, "test", "cat"), (f / "test/cat/a.txt").write_text("")),
        "class 'cat' has no image in .*; add one, or move the folder away",
    ),
    "a class of test alone": (
        lambda f: write_images(f / "test", ["fox"], seed=5),
        r"only in train: none, only in test: \['fox'\]",
    ),
    "a class of train alone": (
        lambda f: write_images(f / "train", ["fox"], seed=5),
        r"only in train: \['fox'\], only in test: none",
    ),
    "another spelling": (
        lambda f: (f / "test/cat").rename(f / "test/Cat"),
        r"only in train: \['cat'\], only in test: \['Cat'\]",
    ),
    "one class": (
        lambda f: (without(f, "train", "dog"), without(f, "test", "dog")),
        "train has images of one class only, 'cat'.*add another class",
    ),
    "no classes": (
        lambda f: [p.rename(f / "train" / f"{p.parent.parent.name}{p.name}")
                   for p in [*(f / "train").rglob("*.png")]]
        and without(f, "train", "cat", "dog"),
        "train has no folder of a class; put images into PATH/CLASS/",
    ),
    "test is train": (
        lambda f: (shutil.rmtree(f / "test"), (f / "test").symlink_to(f / "train")),
        "train and test must be other images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWED)
def test_a_flawed_folder_is_an_error_that_says_what_to_do(flaw, folder, tmp_path):
    spoil, message = FLAWED[flaw]
    spoil(folder)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=message):
        census_of(folder, folder=tmp_path / "work")
    assert listing(tmp_path) == before


def copied(folder, source, target) -> None:
    (folder / target).parent.mkdir(exist_ok=True, parents=True)
    shutil.copy(folder / source, folder / target)


SEEN = "train/cat/deeper/0.png", "train/cat/deeper/1.png"
DOUBTFUL = {  # what is counted, how often, how often under another label, and by which name
    "copied to test": (
        lambda f: [copied(f, s, f"test/cat/{i}.png") for i, s in enumerate(SEEN)],
        2,
    ),
    "linked to test": (lambda f: linked(f / SEEN[0], f / "test/cat/0.png"), 1),
    "copied to another class": (lambda f: copied(f, SEEN[0], "test/dog/0.png"), 1),
    "stored in another form": (
        lambda f: Image.open(f / SEEN[0]).save(f / "test/cat/0.bmp"),
        1,
    ),
    "a whole class": (
        lambda f: shutil.copytree(f / "train/cat", f / "test/cat", dirs_exist_ok=True),
        4,
    ),
}


@pytest.mark.parametrize("doubt", DOUBTFUL)
def test_test_images_among_the_training_images_are_counted_by_name(doubt, folder):
    spoil, count = DOUBTFUL[doubt]
    spoil(folder)
    found = census_of(folder)
    pairs = found.repeats["test in train"].examples + tuple(
        (there, held_out) for held_out, there in found.repeats["validation in test"].examples
    )
    assert len(pairs) == count
    assert all(one.startswith("test/") and other in {*SEEN, other} for one, other in pairs)
    assert {other for _, other in pairs} <= {f"train/cat/deeper/{i}.png" for i in range(4)} | {
        f"validation/cat/deeper/{i}.png" for i in range(4)
    }
    other_class = sum(found.repeats[k].other_class for k in ("test in train", "validation in test"))
    assert other_class == (1 if doubt == "copied to another class" else 0)


@pytest.mark.parametrize("target", ["test/cat/twice.png", "test/dog/two-names.png"])
def test_images_that_stand_twice_in_a_part_are_counted_by_name(target, folder):
    copied(folder, "test/cat/deeper/3.png", target)
    found = census_of(folder).repeats["test"]
    assert (found.count, found.of, found.other_class) == (1, 9, int("dog" in target))
    assert sorted(found.examples[0]) == sorted((target, "test/cat/deeper/3.png"))


# --- datasets of other kinds ----------------------------------------------------------------------


class Given(Dataset):
    """The images it was given, with labels that go round."""

    def __init__(self, images, labels=None):
        self.images = images
        self.targets = [i % 3 for i in range(len(images))] if labels is None else labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if isinstance(self.images[index], Exception):
            raise self.images[index]
        return self.images[index], self.targets[index]


FINE = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
UNUSABLE = {
    "another size": (torch.zeros(3, 5, 4), r"shape \(3, 5, 4\), and those before .*\(3, 4, 4\)"),
    "another depth": (torch.zeros(1, 4, 4), r"shape \(1, 4, 4\), and those before it"),
    "a batch": (torch.zeros(1, 3, 4, 4), r"it must be \(C, H, W\)"),
    "an array": (BYTES, r"it must be \(C, H, W\), floating point, got a ndarray"),
    "bytes": (torch.zeros(3, 4, 4, dtype=torch.uint8), "floating point, got torch.uint8"),
    "nan": (torch.full((3, 4, 4), torch.nan), r"lie in \[0, 1\], got \[nan, nan\]"),
    "one nan": (FINE.clone().index_fill_(0, torch.tensor(1), torch.nan), "got .nan, nan"),
    "normalised": (FINE * 4 - 2, r"lie in \[0, 1\], got \[-1"),
    "levels": (FINE * 255, r"lie in \[0, 1\], got"),
    "none": (torch.zeros(3, 0, 4), "."),
    "an error": (KeyError("b"), "'b'"),
    "an error without words": (RuntimeError(), "RuntimeError"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_image_of_any_dataset_is_named_by_its_place(what):
    image, message = UNUSABLE[what]
    test = Given([FINE, FINE, FINE, image])
    data = Data("mine", ("a", "b", "c"), Given([FINE] * 3), Given([]), test, natural=False)
    with pytest.raises(ValueError, match=rf"1 of 7 images cannot be used.*test\[3\]: .*{message}"):
        checked(data)


LABELS = {
    "a label too many": ([0, 1, 2, 3], [0, 1, 2], "train has labels of 3 and the classes are 0 to"),
    "no label": ([0, 1, 2], [0, -1, 1, 2], "test has labels of -1 and the classes are 0 to 2"),
    "no image": ([0, 1, 2], [], "test holds no image; add some"),
    "nothing to train on": ([], [0, 1, 2], "train holds no image; add some"),
    "one class": ([1, 1, 1], [1, 1], "of one class only, 'b'.*; test has images of one class"),
    "never trained on": ([0, 1], [0, 1, 2], "test has images of 'c' and train has none; add"),
    "never tested": ([0, 1, 2], [0, 1], "train has images of 'c' and test has none; add some"),
}


@pytest.mark.parametrize("what", LABELS)
def test_classes_that_make_a_number_wrong_are_an_error_before_an_image_is_read(what, reads):
    train, test, message = LABELS[what]
    parts = [Given([FINE] * len(labels), labels) for labels in (train, [], test)]
    with pytest.raises(ValueError, match=message):
        checked(Data("mine", ("a", "b", "c"), *parts, natural=False))
    assert not reads


def test_labels_may_come_with_the_images_alone():
    class Bare(Given):
        def __init__(self, images):
            super().__init__(images)
            self.kept = self.__dict__.pop("targets")

        def __getitem__(self, index):
            return self.images[index], self.kept[index]

    part = Bare([FINE] * 4)
    with pytest.raises(ValueError, match="labels as"):
        targets(part)
    data = Data("mine", ("a", "b", "c"), part, Bare([]), part, natural=False)
    assert checked(data).counts["test"] == (2, 1, 1)


@pytest.mark.parametrize("listed", [lambda path: path, lambda path: (path, 0), lambda path: [path]])
def test_an_image_of_a_list_of_files_is_named_by_its_file(listed):
    dataset = Given([FINE])
    dataset.samples = [listed("there/a.png")]
    assert module.name_of("test", dataset, 0) == ("there/a.png", "test/a.png")
