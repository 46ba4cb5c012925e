"""Folders of the hub answer as their own library says, with their normalisation and their names."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from advssl.evaluation.classifiers import load_classifier
from advssl.evaluation.hub import is_folder, open_folder

CLASSES = ["dog", "cat"]
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NORMAL = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}


def write(place, **content):
    for name, value in content.items():
        (place / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


def vit(place, safe=True):
    """A tiny ViT of transformers, saved there."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        id2label={0: "cat", 1: "cow", 2: "dog"},
        label2id={"cat": 0, "cow": 1, "dog": 2},
    )
    net = transformers.ViTForImageClassification(config).eval()
    nn.init.normal_(net.classifier.weight)
    net.save_pretrained(place)
    if not safe:
        (place / "model.safetensors").unlink()
        torch.save(net.state_dict(), place / "pytorch_model.bin")
    return net


def resnet(place):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 4, 4, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        num_labels=2,
    )
    net = transformers.ResNetForImageClassification(config).eval()
    net.save_pretrained(place)
    return net


def normalised(images, mean, std):
    return torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_vit_of_transformers(safe, tmp_path):
    net = vit(tmp_path, safe)
    write(tmp_path, preprocessor_config={**NORMAL, "size": {"height": 32, "width": 32}})
    found = load_classifier(None, tmp_path, classes=CLASSES, images=IMAGES)
    with torch.no_grad():
        logits = found.classifier(IMAGES)
        whole = net(normalised(IMAGES, NORMAL["image_mean"], NORMAL["image_std"])).logits
    torch.testing.assert_close(logits, whole[:, [2, 0]])
    assert (found.backbone, found.image_size) == ("ViTForImageClassification", 32)
    assert found.mean == pytest.approx(NORMAL["image_mean"])
    assert found.report.format == "transformers"
    assert "dog is output 2" in found.order
    with pytest.raises(ValueError, match="no output for 1 of the data's 2 classes: bird"):
        load_classifier(None, tmp_path, classes=["cat", "bird"])


def test_a_resnet_of_transformers_without_names(tmp_path):
    net = resnet(tmp_path)
    found = load_classifier(None, tmp_path, classes=CLASSES, images=IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(found.classifier(IMAGES), net(IMAGES).logits)
    assert "2 outputs have no names" in found.order  # LABEL_0, LABEL_1
    assert found.mean is None


def test_a_transformers_module_is_taken_as_it_is(tmp_path):
    net = vit(tmp_path)
    found = load_classifier(net, classes=CLASSES, images=IMAGES)
    with torch.no_grad():
        assert torch.equal(found.classifier(IMAGES), net(IMAGES).logits[:, [2, 0]])


@pytest.mark.parametrize(
    ("how", "mean", "std"),
    [
        (NORMAL, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
        ({**NORMAL, "do_normalize": False}, None, None),
        ({}, None, None),
        ({**NORMAL, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, [1.0] * 3, [1.0] * 3),
        # transformers' own: image · 255 · factor, minus 1 with an offset, then mean and std
        ({**NORMAL, "rescale_factor": 1 / 127.5}, [0.25, 0.2, 0.15], [0.1, 0.15, 0.2]),
        (
            {"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True},
            [0.5] * 3,
            [0.5] * 3,
        ),
    ],
)
def test_what_a_preprocessor_does_is_of_images_in_0_1(how, mean, std, tmp_path):
    resnet(tmp_path)
    write(tmp_path, preprocessor_config=how)
    folder = open_folder(tmp_path)
    assert folder.mean == (mean and pytest.approx(mean))
    assert folder.std == (std and pytest.approx(std))


@pytest.mark.parametrize(
    ("how", "side"),
    [
        ({}, None),
        ({"size": 40}, 40),
        ({"size": {"height": 48, "width": 48}}, 48),
        ({"size": {"shortest_edge": 40}, "crop_size": 24, "do_center_crop": True}, 24),
        ({"size": {"shortest_edge": 40}, "crop_size": 24, "do_center_crop": False}, 40),
    ],
)
def test_the_size_is_that_of_a_preprocessor(how, side, tmp_path):
    resnet(tmp_path)
    write(tmp_path, preprocessor_config=how)
    assert open_folder(tmp_path).image_size == side


@pytest.mark.parametrize(
    "how",
    [
        {"image_mean": [0.5] * 3},
        {**NORMAL, "image_std": [0, 1, 1]},
        {**NORMAL, "image_mean": "x"},
        {**NORMAL, "rescale_factor": 0},
        {**NORMAL, "image_mean": [123.0] * 3},
    ],
)
def test_a_preprocessor_that_is_not_clear(how, tmp_path):
    resnet(tmp_path)
    write(tmp_path, preprocessor_config=how)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        open_folder(tmp_path)


def test_timms_own_folder(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8]}
    net = timm.create_model("resnet18", num_classes=3, **sizes).eval()
    nn.init.normal_(net.fc.weight)
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    how = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, 32, 32]}
    config = {"architecture": "resnet18", "num_classes": 3, "model_args": sizes}
    write(tmp_path, config={**config, "pretrained_cfg": how, "label_names": ["cat", "cow", "dog"]})
    found = load_classifier(None, tmp_path, classes=CLASSES, images=IMAGES)
    with torch.no_grad():
        whole = net(normalised(IMAGES, how["mean"], how["std"]))
        torch.testing.assert_close(found.classifier(IMAGES), whole[:, [2, 0]])
    assert (found.backbone, found.image_size, found.head) == ("timm:resnet18", 32, "fc")
    write(tmp_path, config={"architecture": "no_such_net"})
    with pytest.raises(ValueError, match="not of this timm"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({}, "no architecture that it names"),
        ({"architectures": ["BertModel"]}, "holds BertModel, not an image classifier"),
        ([1], "must hold settings, got list"),
        ({"architectures": ["ViTForImageClassification"]}, "has none of model.safetensors"),
    ],
)
def test_folders_that_hold_no_classifier(config, match, tmp_path):
    write(tmp_path, config=config)
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=match):
        open_folder(tmp_path)


def test_damaged_folders(tmp_path):
    vit(tmp_path, safe=False)
    weights = tmp_path / "pytorch_model.bin"
    state = torch.load(weights)
    torch.save({**state, "classifier.bias": torch.full((3,), torch.nan)}, weights)
    with pytest.raises(ValueError, match=r"NaN or inf in classifier\.bias"):
        open_folder(tmp_path)
    torch.save({k: v for k, v in state.items() if "classifier" not in k}, weights)
    with pytest.raises(ValueError, match=r"missing or unlike classifier\.(bias|weight)"):
        open_folder(tmp_path)
    torch.save({**state, "module": nn.Linear(2, 2)}, weights)
    with pytest.raises(ValueError, match="a pickle with code"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        open_folder(tmp_path)


def test_a_network_beside_a_folder_that_says_it(tmp_path):
    write(tmp_path, config={})
    assert is_folder(tmp_path)
    assert not is_folder(tmp_path / "config.json")
    assert not is_folder(None)
    with pytest.raises(ValueError, match="says itself which network it holds; leave the backbone"):
        load_classifier("cifar:resnet18", tmp_path, classes=CLASSES)


@pytest.mark.parametrize(
    ("library", "config"),
    [
        ("transformers", {"architectures": ["ViTForImageClassification"]}),
        ("timm", {"architecture": "resnet18"}),
    ],
)
def test_a_library_that_is_not_installed(library, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    write(tmp_path, config=config)
    with pytest.raises(ImportError, match="pip install"):
        open_folder(tmp_path)
