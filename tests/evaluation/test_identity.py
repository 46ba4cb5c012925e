"""Whatever a result depends on changes its identity, and nothing else does."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import pickle
import random
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
import torch.fx
import torch.nn.functional as F
from damage import DAMAGES
from PIL import Image
from ranks import PROCESSES
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor
from traced import extractor

from advssl import branch_batchnorm
from advssl.evaluation import identity
from advssl.evaluation.data import InMemory, open_data
from advssl.evaluation.identity import (
    classifier_fingerprint,
    dataset_fingerprint,
    fingerprint_of,
    identity_of,
    keep,
    kept,
)
from advssl.modes import frozen

SLOPE = 0.1


class Own(nn.Module):
    def __init__(self, act=F.relu, mean=0.5, weight=1.0):
        super().__init__()
        self.act, self.mean = act, mean
        self.layer = nn.Linear(3, 2)
        nn.init.constant_(self.layer.weight, weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.act(self.layer(x - self.mean))


class Tamer(Own):
    def forward(self, x):
        return 0.5 * self.act(self.layer(x - self.mean))


def sloped(x):
    return F.leaky_relu(x, SLOPE)


def steeper(x):
    return F.leaky_relu(x, 2 * SLOPE)


class Config:
    def __init__(self, scale):
        self.scale = scale


DIFFERENT = {
    "plain": lambda: Own(),
    "weight": lambda: Own(weight=1.5),
    "plain attribute": lambda: Own(mean=0.6),
    "tensor attribute": lambda: Own(mean=torch.tensor(0.6)),
    "other tensor attribute": lambda: Own(mean=torch.tensor(0.7)),
    "lambda": lambda: Own(lambda x: F.relu(x)),
    "another lambda": lambda: Own(lambda x: F.tanh(x)),
    "functional": lambda: Own(torch.tanh),
    "function": lambda: Own(sloped),
    "another function": lambda: Own(steeper),
    "partial": lambda: Own(functools.partial(F.leaky_relu, negative_slope=0.1)),
    "another partial": lambda: Own(functools.partial(F.leaky_relu, negative_slope=0.2)),
    "class": lambda: Tamer(),
    "within": lambda: nn.Sequential(Own()),
    "module": lambda: nn.Sequential(Own(), nn.ReLU()),
    "another module": lambda: nn.Sequential(Own(), nn.Tanh()),
    "setting of a module": lambda: nn.Sequential(Own(), nn.LeakyReLU(0.3)),
    "object": lambda: Own(mean=Config(0.1)),
    "another object": lambda: Own(mean=Config(0.2)),
    "traced": lambda: torch.fx.symbolic_trace(Own()),
    "traced in both modes": extractor,
    "traced, with another function": lambda: torch.fx.symbolic_trace(Own(torch.tanh)),
}


def test_whatever_changes_the_answer_changes_the_fingerprint():
    found = {name: fingerprint_of(make()) for name, make in DIFFERENT.items()}
    assert len(set(found.values())) == len(found)


def recursive(filled: bool):
    """A function that closes over itself, or over what never comes."""

    def act(x):
        return x if x.ndim else later(x)

    if filled:
        later = act
    return act


def test_a_function_may_close_over_what_is_not_there_yet():
    unfilled, filled = (fingerprint_of(Own(recursive(f))) for f in (False, True))
    assert unfilled == fingerprint_of(Own(recursive(False))) != filled


@pytest.mark.parametrize("name", DIFFERENT)
def test_made_again_it_is_the_same(name):
    one = DIFFERENT[name]()
    again = DIFFERENT[name]().train(False).requires_grad_(False)
    assert fingerprint_of(again) == fingerprint_of(one)


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_was_borrowed_is_the_same_thereafter(name):
    module = DIFFERENT[name]()
    before = fingerprint_of(module)
    with frozen(module):
        pass
    assert fingerprint_of(module) == before


@dataclass(frozen=True)
class Asked(Hashable):
    """What Python keeps notes on: a frozen dataclass's methods close over their class."""

    size: int = 3


NOTES = {
    "copied": lambda one: (copy.copy(one), copy.deepcopy(one)),
    "pickled": lambda one: pickle.loads(pickle.dumps(one)),
    "asked what it is": lambda one: (isinstance(one, Asked), issubclass(type(one), nn.Module)),
    "its hints read": lambda one: get_type_hints(type(one)),
    "inspected": lambda one: (inspect.signature(type(one)), dir(one), inspect.getdoc(type(one))),
    "hashed": lambda one: (hash(one), one == one),
    "inherited": lambda one: type("Heir", (type(one),), {}),
}


@pytest.mark.parametrize("kind", [Asked, Config, Own])
def test_what_python_notes_on_a_class_does_not_count(kind):
    one = Config(0.5) if kind is Config else kind()
    before = fingerprint_of(kind), fingerprint_of(one)
    for what, look in NOTES.items():
        look(one)
        assert (fingerprint_of(kind), fingerprint_of(one)) == before, what


@pytest.mark.parametrize(
    "wrapped",
    [lambda m: torch.compile(m, backend="eager"), nn.DataParallel],
    ids=["compiled", "dp"],
)
def test_what_wraps_it_does_not_count(wrapped):
    model = Own()
    assert classifier_fingerprint(wrapped(model)) == classifier_fingerprint(Own())
    assert classifier_fingerprint(model) == classifier_fingerprint(Own())


def scripted(*layers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.jit.script(nn.Sequential(*copy.deepcopy(layers)))


def test_of_torchscript():
    layer = nn.Linear(3, 2)
    one, again = scripted(layer, nn.ReLU()), scripted(layer, nn.ReLU()).eval()
    assert fingerprint_of(again) == fingerprint_of(one)
    assert one.training
    others = [scripted(layer, nn.Tanh()), scripted(nn.Linear(3, 2), nn.ReLU())]
    assert len({fingerprint_of(m) for m in (one, *others)}) == 3


def test_a_weight_that_is_computed_does_not_count_beside_what_it_is_computed_from():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        one, other = (nn.utils.weight_norm(nn.Linear(3, 3)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    assert fingerprint_of(one) == fingerprint_of(other)


def test_of_what_holds_itself_or_cannot_be_taken_apart():
    import threading

    def made(number):
        model = Own()
        model.parents = [model.layer, number]
        model.parents.append(model.parents)
        model.lock = threading.Lock()
        return model

    assert fingerprint_of(made(1)) == fingerprint_of(made(1))
    assert fingerprint_of(made(1)) != fingerprint_of(made(2))


def of_branches() -> str:
    torch.manual_seed(0)
    m = branch_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    return identity_of(m, {"a", "b", "c"}, len)


def written(path: Path) -> None:
    path.write_text(f"{of_branches()} {hash('a')}", encoding="utf-8")


@pytest.mark.slow
def test_it_is_the_same_in_another_process(tmp_path):
    process = PROCESSES.Process(target=written, args=(tmp_path / "there",))
    process.start()
    process.join()
    there, of_letter = (tmp_path / "there").read_text(encoding="utf-8").split()
    assert there == of_branches()
    assert int(of_letter) != hash("a") or "PYTHONHASHSEED" in os.environ  # sets have another order


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "2.99"),
        lambda patch: patch.setattr(identity, "_version", lambda _: "99"),
        lambda patch: patch.setattr(identity, "_source", lambda: "other code"),
    ],
)
def test_other_packages_are_another_identity(monkeypatch, change):
    one, plain = identity_of(Own()), fingerprint_of(Own())
    change(monkeypatch)
    assert identity_of(Own()) != one
    assert fingerprint_of(Own()) == plain


# --- datasets -------------------------------------------------------------------------------------


class Random(Dataset):
    """Draws as it is read, as an augmentation does."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.scale * torch.rand(3, 2, 2), index


def memory(changed=None, label=None, size=None):
    images = torch.linspace(0, 1, 5000 * 12).reshape(5000, 3, 2, 2).clone()
    labels = torch.arange(5000) % 2
    if changed is not None:
        images[changed] = 0.5
    if label is not None:
        labels[label] = 1 - labels[label]
    return InMemory(images, labels, size)


DATASETS = {
    "plain": lambda: memory(),
    "the first image": lambda: memory(0),
    "any image": lambda: memory(1234),
    "the last image": lambda: memory(4999),
    "a label": lambda: memory(label=4321),
    "another size": lambda: memory(size=4),
    "a subset": lambda: Subset(memory(), range(4000)),
    "in another order": lambda: Subset(memory(), range(3999, -1, -1)),
    "of a subset": lambda: Subset(Subset(memory(), range(4000)), [5, 7]),
    "two": lambda: ConcatDataset([memory(), memory(3)]),
    "two, the other way": lambda: ConcatDataset([memory(3), memory()]),
    "tensors": lambda: TensorDataset(torch.rand(5, 3, 2, 2, generator=torch.manual_seed(0))),
    "read": lambda: Random(),
    "read otherwise": lambda: Random(0.5),
}


def test_every_image_label_and_place_counts():
    found = {name: dataset_fingerprint(make()) for name, make in DATASETS.items()}
    assert len(set(found.values())) == len(found)
    assert found == {name: dataset_fingerprint(make()) for name, make in DATASETS.items()}
    pair = Subset(memory(), [5, 7])
    assert dataset_fingerprint(pair) == found["of a subset"]
    assert dataset_fingerprint(Subset(memory(1234), range(1000))) == dataset_fingerprint(
        Subset(memory(), range(1000))
    )  # what is not in a subset does not count


class Files(Dataset):
    """As people write it: paths, or paths and labels, from a root or whole."""

    def __init__(self, root, relative, labelled, targets=(0, 1)):
        self.root, self.targets = root, list(targets)
        paths = sorted(root.rglob("*.png"))[:2]
        names = [str(path.relative_to(root) if relative else path) for path in paths]
        self.samples = [(name, 0) for name in names] if labelled else names

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        name = self.samples[index]
        path = self.root / (name if isinstance(name, str) else name[0])
        return torch.tensor([*Image.open(path).tobytes()]), self.targets[index]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_of_a_list_of_files_in_every_form(tmp_path, relative, labelled):
    for name, colour in (("a", 10), ("b", 10), ("c", 11)):
        folder(tmp_path / name, colour)

    def made(name, **more):
        return dataset_fingerprint(
            Files(tmp_path / name / "train" / "dog", relative, labelled, **more)
        )

    assert made("a") == made("b") != made("c")
    assert made("a", targets=(1, 0)) != made("a")


def folder(place, colour=10):
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            (place / part / kind).mkdir(parents=True)
            for number in range(2):
                grey = (colour, 0, number) if (kind, number) == ("dog", 1) else (0, 0, number)
                Image.new("RGB", (8, 8), grey).save(place / part / kind / f"{number}.png")
    return f"folder:{place}"


class Shaded(ImageFolder):
    """An image beside which a file says how dark it is."""

    def __getitem__(self, index):
        path, label = self.samples[index]
        image, _ = super().__getitem__(index)
        return image * float(Path(path).with_suffix(".txt").read_text()), label


class Listed(Dataset):
    """Another's samples under its names."""

    def __init__(self, other):
        self.other, self.samples = other, other.samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.other[index]


@pytest.mark.parametrize("made", [lambda d: d, lambda d: Listed(d), lambda d: Subset(d, [3])])
def test_what_a_dataset_of_ones_own_reads_beside_the_image_counts(tmp_path, made):
    folder(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.with_suffix(".txt").write_text("0.5")
    dataset = made(Shaded(str(tmp_path / "test"), ToTensor()))
    before = dataset_fingerprint(dataset)
    assert dataset_fingerprint(dataset) == before
    (tmp_path / "test" / "dog" / "1.txt").write_text("0.25")
    assert dataset_fingerprint(dataset) != before


class Unchanged(ImageFolder):
    """One that adds what changes no sample."""

    def name(self, index):
        return self.samples[index]


class Refused:
    def __call__(self, path):
        raise AssertionError(f"{path} was decoded")


@pytest.mark.parametrize("kind", [ImageFolder, Unchanged])
def test_files_that_torchvision_reads_are_not_decoded(tmp_path, kind):
    folder(tmp_path)
    found = kind(str(tmp_path / "test"), ToTensor(), loader=Refused())
    same = dataset_fingerprint(found)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "test" / "dog" / "1.png")
    assert dataset_fingerprint(found) != same


class Drawn(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        noise = torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002
        return torch.full((3, 2, 2), noise), index


def test_what_a_dataset_draws_is_drawn_again():
    assert dataset_fingerprint(Drawn()) == dataset_fingerprint(Drawn())


def test_of_a_folder_by_the_files(tmp_path):
    one, same, other = (folder(tmp_path / n, c) for n, c in (("a", 10), ("b", 10), ("c", 11)))
    found = [dataset_fingerprint(open_data(s, image_size=8).test) for s in (one, same, other)]
    assert found[0] == found[1] != found[2]
    assert dataset_fingerprint(open_data(one, image_size=4).test) != found[0]


def test_reading_draws_no_random_number():
    before = torch.get_rng_state()
    dataset_fingerprint(Random())
    assert torch.equal(torch.get_rng_state(), before)


# --- what is kept ---------------------------------------------------------------------------------

STATES = {
    "a.pt": {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "history": [0.5, 0.25], "seed": 3},
    "a.json": {"correct": [True, False], "told": {"n": 3, "nan": float("nan")}, "none": None},
}


@pytest.mark.parametrize("name", STATES)
def test_what_was_kept_is_given_back_under_its_identity_alone(tmp_path, name):
    path = tmp_path / "below" / name
    assert kept(path, "one") is None
    keep(path, "one", STATES[name])
    assert fingerprint_of(kept(path, "one")) == fingerprint_of(STATES[name])
    assert kept(path, "other") is None
    assert len(list(path.parent.iterdir())) == 1


def test_json_comes_back_as_json(tmp_path):
    keep(tmp_path / "a.json", "one", {"pair": (1, 2), "by number": {3: "c"}})
    assert kept(tmp_path / "a.json", "one") == {"pair": [1, 2], "by number": {"3": "c"}}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_happens_to_a_file_it_is_none_and_is_kept_anew(tmp_path, name, damage):
    path = tmp_path / name
    keep(path, "one", STATES[name])
    keep(path.with_stem("b"), "other", STATES[name])
    DAMAGES[damage](path)
    there = kept(path, "one")
    if there is not None:  # an archive ends where it says, and torch 2.5 fills its middle up
        old = torch.__version__ < "2.6"
        assert damage == "longer" or (old and damage == "a bit flipped in its middle")
        assert fingerprint_of(there) == fingerprint_of(STATES[name])
    keep(path, "one", STATES[name])
    assert fingerprint_of(kept(path, "one")) == fingerprint_of(STATES[name])
    assert len(list(tmp_path.rglob("mine.txt"))) == (damage == "a folder")


@pytest.mark.parametrize("name", STATES)
def test_every_single_bit_counts(tmp_path, name):
    path = tmp_path / name
    keep(path, "one", STATES[name])
    whole = path.read_bytes()
    expected = fingerprint_of(STATES[name])
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        there = kept(path, "one")  # a bit of the archive's padding, or of a blank, says nothing
        assert there is None or fingerprint_of(there) == expected


def rewritten(change):
    """Whole files, in which a value is another: lists that were emptied, weights of another."""

    def damage(path):
        if path.suffix == ".json":
            state = json.loads(path.read_text())
            change(state)
            path.write_text(json.dumps(state))
        else:
            state = torch.load(path, weights_only=True)
            change(state)
            torch.save(state, path)

    return damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.pt", lambda path: torch.save([1, 2], path)),
        ("a.pt", lambda path: torch.save(nn.Linear(2, 2), path)),
        ("a.pt", rewritten(lambda state: state.pop("seal"))),
        ("a.pt", rewritten(lambda state: state.pop("history"))),
        ("a.pt", rewritten(lambda state: state["history"].clear())),
        ("a.pt", rewritten(lambda state: state["history"].append(0.9))),
        ("a.pt", rewritten(lambda state: state["weights"]["a"].add_(1))),
        ("a.pt", rewritten(lambda state: state["weights"].update(a=torch.zeros(3, 2)))),
        ("a.json", lambda path: path.write_text("[" * 100_000)),
        ("a.json", lambda path: path.write_text("[]")),
        ("a.json", rewritten(lambda state: state.pop("seal"))),
        ("a.json", rewritten(lambda state: state["correct"].clear())),
        ("a.json", rewritten(lambda state: state["correct"].__setitem__(1, True))),
        ("a.json", rewritten(lambda state: state["told"].update(n="3"))),
    ],
)
def test_a_file_that_was_edited_is_none(tmp_path, name, damage):
    path = tmp_path / name
    keep(path, "one", STATES[name])
    damage(path)
    assert kept(path, "one") is None


@pytest.mark.skipif(os.name != "posix", reason="limits on the size of a file are of POSIX")
@pytest.mark.parametrize("name", ["state.pt", "state.json"])
def test_a_full_disk_is_said_and_what_was_there_is_whole(tmp_path, name):
    """By a limit on the size of files, which is met where a full disk is: while writing."""
    import resource

    path = tmp_path / name
    keep(path, "one", {"step": 1})
    bulk = "x" * 100_000 if name.endswith("json") else torch.zeros(100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=f"{name} cannot be written: .*whole, make room"):
            keep(path, "one", {"bulk": bulk})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept(path, "one") == {"step": 1}
    assert os.listdir(tmp_path) == [name]
