"""A checkpoint's own head answers over the data's classes, in their order, or is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl.evaluation import classifiers
from advssl.evaluation.classifiers import Loaded, OwnHead, load_classifier
from advssl.evaluation.hub import Folder
from evaluation.layouts import prefixed, saved, small

CLASSES = ("cat", "dog", "polar bear")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def theirs() -> nn.Module:
    """A whole classifier of three classes whose answers differ."""
    net = small(seed=1, num_classes=3).eval()
    nn.init.normal_(net.fc.weight)
    return net


def answer(net: nn.Module, images=IMAGES, mean=(0.0,) * 3, std=(1.0,) * 3):
    """Of a network to normalised images, written anew."""
    channels = [(images[:, c] - mean[c]) / std[c] for c in range(3)]
    with torch.no_grad():
        return net(torch.stack(channels, dim=1))


def loaded(path, network=None, **options) -> Loaded:
    options = {"classes": CLASSES, "images": IMAGES, **options}
    return load_classifier(small() if network is None else network, path, **options)


def logits(found: Loaded, images=IMAGES):
    with torch.no_grad():
        return found.classifier(images)


# --- of a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [small, lambda: small(num_classes=3)], ids=["encoder", "whole"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "1."])
@pytest.mark.parametrize(
    "names", [("mu", "sigma"), ("normalize.mean", "normalize.std"), ("mean", "std"), None]
)
def test_it_answers_what_theirs_did(names, prefix, network, theirs, path):
    state = prefixed(theirs.state_dict(), prefix)
    how = {}
    if names:
        state |= {names[0]: torch.tensor(MEAN).view(1, 3, 1, 1)}
        state |= {names[1]: torch.tensor(STD).view(1, 3, 1, 1)}
        how = {"mean": MEAN, "std": STD}
    found = loaded(saved({"model_state_dict": state, "epoch": 3}, path), network())
    torch.testing.assert_close(logits(found), answer(theirs, **how))
    assert not found.classifier.training
    assert found.mean == (pytest.approx(MEAN) if names else None)
    assert found.std == (pytest.approx(STD) if names else None)
    assert found.report.loaded == len(theirs.state_dict())
    assert not [name for name in found.report.ignored if "fc" in name]


def test_outputs_in_another_order_by_the_names_in_the_file(theirs, path):
    content = {"state_dict": theirs.state_dict(), "class_to_idx": {"dog": 2, "cat": 1, "cow": 0}}
    found = loaded(saved(content, path), classes=["cat", "dog"])
    assert torch.equal(logits(found), answer(theirs)[:, [1, 2]])
    assert "by name" in found.order
    found = loaded(path, labels=["c", "b", "a"], classes=["a", "b", "c"])
    assert torch.equal(logits(found), answer(theirs)[:, [2, 1, 0]])


def test_statistics_that_are_given_replace_the_files(theirs, path):
    state = {**theirs.state_dict(), "mean": torch.zeros(3) + 0.1, "std": torch.ones(3)}
    found = loaded(saved(state, path), mean=MEAN, std=STD)
    torch.testing.assert_close(logits(found), answer(theirs, mean=MEAN, std=STD))
    assert (found.mean, found.std) == (MEAN, STD)


def test_a_branch_of_batchnorm(path):
    net = small(seed=1, num_classes=3).eval()
    state = {}
    for name, value in net.state_dict().items():
        norm, _, own = name.rpartition(".")
        if "bn" in norm or norm.endswith("downsample.1"):
            state |= {f"{norm}.bn_list.{i}.{own}": value + i for i in range(2)}
        else:
            state[name] = value
    saved(state, path)
    for i, branch in enumerate(("clean", "adversarial")):
        found = loaded(path, bn_branch=branch)
        assert torch.equal(found.classifier.model.bn1.weight, net.bn1.weight + i)
    with pytest.raises(ValueError, match=r"BatchNorm branches .*bn_branch="):
        loaded(path)


def test_what_is_said(theirs, path):
    state = prefixed(theirs.state_dict(), "backbone.")
    found = loaded(saved({"state_dict": state}, path))
    lines = str(found).splitlines()
    assert lines[0].endswith("tensors loaded as \"lightly\" in 'state_dict' behind 'backbone.'")
    assert "neither file nor encoder normalises its input" in lines[1]
    assert lines[2:] == ["the classifier's own head: fc", found.order]
    assert loaded(path, mean=MEAN, std=STD).report.unnormalised is None


def test_a_classifier_of_imagenet_without_normalisation_is_doubted(path):
    net = small(num_classes=1000)
    found = loaded(saved(net.state_dict(), path), classes=["tench", "goldfish"])
    assert "--mean 0.485,0.456,0.406" in found.report.unnormalised
    assert logits(found).shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"classes": ["a", "b"]}, "3 outputs, which have no names, and the data 2 classes"),
        ({"classes": ["a"]}, "two classes at least, got a"),
        ({"classes": []}, "two classes at least, got none"),
        ({"mean": MEAN}, "mean and std go together"),
        ({"mean": (123.0,) * 3, "std": (58.0,) * 3}, "mean"),
        ({"labels": "abc"}, "labels must be names of the outputs"),
        ({"labels": ["a", "b"]}, "labels must name each of the classifier's 3 outputs"),
        ({"head": "linear"}, "no linear layer 'linear'"),
        ({"format": "simclr"}, "format must be"),
        ({"bn_branch": "pgd"}, "no BatchNorm branches"),
        ({"prefix": "x."}, "none of the encoder's"),
        ({"images": torch.rand(2, 1, 16, 16)}, r"does not read the data's images \(2, 1, 16, 16\)"),
        ({"network": 3}, "encoder must be a module"),
        ({"network": "cifar:none"}, "timm has no model"),
    ],
)
def test_what_does_not_fit_is_refused(options, match, theirs, path):
    with pytest.raises(ValueError, match=match):
        loaded(saved(theirs.state_dict(), path), **options)


def test_a_transformer_of_another_size():
    timm = pytest.importorskip("timm")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    with pytest.raises(ValueError, match=r"read the data's images \(2, 3, 16, 16\): Input"):
        load_classifier(vit, classes=CLASSES, images=torch.rand(2, 3, 16, 16))


def test_files_that_hold_no_classifier(theirs, path):
    with pytest.raises(ValueError, match=r"no classifier's head .*--protocol slf"):
        loaded(saved(small().state_dict(), path))
    network = small()
    features = network(IMAGES).shape
    with pytest.raises(ValueError, match=r"no classifier's head"):
        load_classifier(network, path, classes=CLASSES)
    assert network(IMAGES).shape == features == (4, network.num_features)  # which a probe takes
    with pytest.raises(ValueError, match="there is no file"):
        loaded(path.with_name("none.pt"))
    with pytest.raises(ValueError, match="is a directory"):
        loaded(path.parent)
    saved(theirs.state_dict(), path)
    with pytest.raises(ValueError, match="not how they are connected; give the network"):
        load_classifier(None, path, classes=CLASSES)


def test_logits_that_are_not_finite(theirs, path):
    theirs.fc.bias.data.fill_(1e38)
    theirs.fc.weight.data.fill_(1e38)
    with pytest.raises(ValueError, match="not finite"):
        loaded(saved(theirs.state_dict(), path))


# --- of a module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [None, IMAGES])
def test_a_module_is_taken_as_it_is(images, theirs):
    before = copy.deepcopy(theirs.state_dict())
    theirs.train()
    found = load_classifier(theirs, classes=CLASSES, images=images)
    assert found.classifier is theirs
    assert theirs.training
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    assert (found.backbone, found.report, found.head) == ("ResNet", None, "")


def test_a_module_with_normalisation_and_names(theirs):
    found = load_classifier(
        theirs, classes=["b", "a"], labels=["a", "b", "c"], mean=MEAN, std=STD, images=IMAGES
    )
    expected = answer(theirs, mean=MEAN, std=STD)[:, [1, 0]]
    torch.testing.assert_close(logits(found), expected)


def test_a_module_of_other_classes_is_refused(theirs):
    with pytest.raises(ValueError, match="3 outputs, which have no names, and the data 2 classes"):
        load_classifier(theirs, classes=["a", "b"], images=IMAGES)
    found = load_classifier(theirs, classes=["a", "b"], mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="must answer 2 logits, got 3"):
        logits(found)


def test_a_folder_is_what_it_says_itself(theirs, tmp_path, monkeypatch):
    said = {"mean": MEAN, "std": STD, "labels": ["dog", "polar bear", "cat"], "image_size": 16}
    folder = Folder("a net", theirs, width=3, **said)
    monkeypatch.setattr(classifiers, "is_folder", lambda place: place == tmp_path)
    monkeypatch.setattr(classifiers, "open_folder", lambda _: folder)
    found = load_classifier(None, tmp_path, classes=CLASSES, images=IMAGES)
    torch.testing.assert_close(logits(found), answer(theirs, mean=MEAN, std=STD)[:, [2, 0, 1]])
    assert (found.backbone, found.image_size, found.mean) == ("a net", 16, MEAN)


@pytest.mark.parametrize("network", [None, "cifar:resnet18", 3])
def test_a_network_without_checkpoint_is_no_classifier(network):
    with pytest.raises(ValueError, match=r"a classifier is a module, or .* without a checkpoint"):
        load_classifier(network, classes=CLASSES)


def test_the_gradient_goes_through():
    """Of a linear classifier it is the row of the class over the std."""
    linear = nn.Linear(3, 3)
    net = OwnHead(nn.Sequential(nn.Flatten(), linear), (MEAN, STD), 3, (2, 0))
    image = torch.rand(1, 3, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image)[0, 1], image)
    torch.testing.assert_close(gradient.flatten(), linear.weight[0] / torch.tensor(STD))


# --- a classifier made by others ------------------------------------------------------------------


def forward(state, images):
    """A ResNet-18 with CIFAR's stem, from its tensors alone."""

    def convolved(x, name, norm, stride=1):
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (
            state[f"{norm}.{own}"].view(1, -1, 1, 1)
            for own in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = convolved(images, "conv1", "bn1").relu()
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            out = convolved(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            out = convolved(out, f"{at}.conv2", f"{at}.bn2")
            short = f"{at}.shortcut"
            if f"{short}.0.weight" in state:
                x = convolved(x, f"{short}.0", f"{short}.1", stride)
            x = (out + x).relu()
    return x.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def test_the_classifier_that_autoattack_ships():
    package = pytest.importorskip("pyautoattack")
    file = Path(package.__file__).parent / "examples" / "model_test.pt"
    if not file.exists():
        pytest.skip("this pyautoattack comes without its example")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classes = [str(i) for i in range(10)]
    found = load_classifier("cifar:resnet18", file, classes=classes, images=images)
    assert (found.report.loaded, found.report.ignored, found.head) == (122, (), "linear")
    state = torch.load(file, weights_only=True, map_location="cpu")
    with torch.no_grad():
        expected = forward(state, images)
        torch.testing.assert_close(found.classifier(images), expected, rtol=1e-3, atol=1e-3)
