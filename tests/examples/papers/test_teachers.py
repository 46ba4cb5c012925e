"""Teachers from files: whatever network they are, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from advssl.integrations.timm import backbone
from harness import chain
from harness.pretraining import _identity
from reproduce import METHODS, main

from . import tiny

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def built(teacher, *more):
    plan = tiny.plan("deacl", "--teacher", str(teacher), *more)
    return chain.build(plan, METHODS["deacl"], chain.open_plan(plan))


@pytest.fixture
def file(tmp_path):
    """A checkpoint of the tests' network, with the normalisation of its input."""
    torch.manual_seed(7)
    weights = backbone("cifar:resnet18:2").state_dict()
    own = {"normalize.mean": torch.tensor(MEAN), "normalize.std": torch.tensor(STD)}
    torch.save({**weights, **own}, tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt", weights


def test_a_teacher_from_a_file_is_both_networks_start_and_says_how_images_are_read(file):
    path, weights = file
    method = built(path)
    assert method.after is None
    assert tiny.same(method.teacher.state_dict(), weights)
    assert tiny.same(method.encoder.state_dict(), weights)
    assert sum(method.pixels, ()) == pytest.approx(MEAN + STD)
    images = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    with torch.no_grad():
        expected = method.teacher.eval()((images - mean) / std)
    torch.testing.assert_close(method.train().target(images), expected)


def test_a_teacher_may_be_another_network_of_as_many_features(tmp_path):
    other = "cifar:resnet34:2"
    weights = backbone(other).state_dict()
    torch.save(weights, tmp_path / "other.pt")
    method = built(f"{other}={tmp_path / 'other.pt'}")
    assert tiny.same(method.teacher.state_dict(), weights)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    with pytest.raises(ValueError, match="cifar:resnet34:3 has 24 and the student 16; take a --ba"):
        built(f"cifar:resnet34:3={tmp_path / 'other.pt'}")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pt"):
        built(tmp_path / "nowhere.pt")


def test_a_run_belongs_to_the_content_of_its_teacher_s_file(file):
    path, weights = file
    plan = tiny.plan("deacl", "--teacher", str(path))
    data = chain.open_plan(plan)
    before = _identity(plan, built(path), data.train)
    torch.save({**weights, "conv1.weight": weights["conv1.weight"] + 1}, path)
    after = _identity(plan, built(path), data.train)
    assert {key for key in before if before[key] != after[key]} == {"start"}


@pytest.mark.heavy
def test_a_record_names_the_file_and_not_its_place(file, tmp_path):
    path, _ = file
    main(tiny.words("fare", "--teacher", str(path), "--epochs", "0", f"--out={tmp_path / 'out'}"))
    (found,) = (tmp_path / "out").glob("fare-*/record.json")
    text = found.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    record = json.loads(text)
    assert record["settings"]["teacher"] == record["plan"]["flags"]["teacher"] == "teacher.pt"
