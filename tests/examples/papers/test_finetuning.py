"""Finetuning of an encoder that is given: to the same end after a kill, and what it belongs to."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from advssl.evaluation.data import Data, InMemory
from advssl.integrations.timm import backbone
from fare import FARE
from harness import finetuning
from harness.finetuning import Unlabelled, finetune

PHOTOS = Data("photos", tuple("ab"), None, None, None, natural=True)
FAST = replace(FARE.recipe.schedule, peak=1e-3)
RECIPE = replace(FARE.recipe, epochs=1, batch_size=10, schedule=FAST)
IMAGES = InMemory(torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1)), [-1] * 20)


def given(radius=8 / 255):
    torch.manual_seed(7)
    settings = FARE.settings_type(radius=radius, steps=2, relative_step=0.75)
    return FARE(backbone("cifar:resnet18:2").eval(), PHOTOS, 8, settings)


def train(method, folder, **more):
    how = {"recipe": RECIPE, "precision": "32-true", **more}
    return finetune(method, IMAGES, folder, **how)


@pytest.mark.slow
def test_killed_after_a_step_it_ends_with_the_same_weights_and_is_then_read(tmp_path, monkeypatch):
    whole, parts = given(), given()
    assert train(whole, tmp_path / "whole") > 0
    assert train(parts, tmp_path, deadline=time.monotonic()) is None  # its first step is made
    parts = given()
    assert train(parts, tmp_path) > 0
    weights = whole.encoder.state_dict()
    assert all(torch.equal(v, weights[n]) for n, v in parts.encoder.state_dict().items())
    assert any(not torch.equal(v, weights[n]) for n, v in given().encoder.state_dict().items())
    monkeypatch.setattr(finetuning, "pretrain", None)
    again = given()
    train(again, tmp_path)
    assert all(torch.equal(v, weights[n]) for n, v in again.encoder.state_dict().items())
    other = given(radius=4 / 255)
    with pytest.raises(TypeError):  # another run, which would be trained
        train(other, tmp_path)


@pytest.mark.slow
def test_it_lowers_the_distance_under_attack(tmp_path):
    method = given()
    batch = torch.stack([IMAGES[i][0] for i in range(20)]), torch.zeros(20), torch.arange(20)

    def distance():
        torch.manual_seed(0)
        return method.step(*batch)["distance"].item()

    before = distance()
    train(method, tmp_path, recipe=replace(RECIPE, epochs=5))
    assert distance() < 0.9 * before


def test_images_in_whatever_folders_are_found(tmp_path):
    for name in ("b/deep/one.PNG", "a.jpg", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "notes.txt":
            path.write_text("")
        else:
            Image.new("RGB", (12, 8), "red").save(path)
    found = Unlabelled(tmp_path, 8)
    assert found.targets == [-1, -1]
    image, label = found[1]
    assert (tuple(image.shape), label) == ((3, 8, 8), -1)
    with pytest.raises(ValueError, match=r"--images: no image below .*notes \(of .jpg"):
        Unlabelled(tmp_path / "notes", 8)
