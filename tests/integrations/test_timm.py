"""Backbones by name: features out, the papers' stem on demand, helpful errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from flops import flops
from torch import nn

from advssl import AdversarialViewGenerator
from advssl.integrations.cifar import ENCODERS
from advssl.integrations.timm import backbone

timm = pytest.importorskip("timm")


def test_timm():
    model = backbone("timm:resnet10t", in_channels=1)
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 512)


def test_the_papers_resnet18():
    """11.17 million parameters with ten classes; 0.556 GMAC at 32 x 32, AdvCL's head included."""
    model = backbone("cifar:resnet18").eval()
    assert model.num_features == 512
    assert sum(p.numel() for p in model.parameters()) + 513 * 10 == 11_173_962
    x = torch.rand(1, 3, 32, 32)
    assert model.forward_features(x).shape == (1, 512, 4, 4)
    head = 512 * 512 + 512 * 128
    assert flops(lambda: model(x)) / 2 + head == pytest.approx(0.556e9, abs=0.0005e9)


def test_the_papers_own_encoders():
    with torch.device("meta"):
        for name, make in ENCODERS.items():
            model = backbone(f"cifar:{name}", in_channels=1)
            assert model.num_features == make(1).num_features
            assert model(torch.empty(2, 1, 32, 32)).shape == (2, model.num_features)


def test_a_width_narrows_the_stem_too():
    model = backbone("cifar:resnet18:16")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (1, 1)]
    assert {c.out_channels for c in convolutions} == {16, 32, 64, 128}
    assert model.conv1.out_channels == 16
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, model.num_features) == (2, 128)


def test_the_whole_width_is_the_plain_one():
    def shapes(spec):
        return {k: v.shape for k, v in backbone(spec).state_dict().items()}

    assert shapes("cifar:resnet18:64") == shapes("cifar:resnet18")


def test_cost_falls_with_the_square_of_the_width():
    x = torch.rand(1, 3, 32, 32)
    of = {width: flops(lambda w=width: backbone(f"cifar:resnet18:{w}")(x)) for width in (8, 16)}
    assert of[16] / of[8] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", 'a backbone is "timm:NAME", "cifar:NAME" or .*, got \'resnet18\''),
        ("timm:", "a backbone is .*, got 'timm:'"),
        (":resnet18", "a backbone is"),
        ("timm:resnet18:", "a backbone is"),
        (" timm:resnet18", "a backbone is"),
        (None, "a backbone is .*, got None"),
        (3, "a backbone is .*, got 3"),
        (["timm", "resnet18"], "a backbone is"),
        ("cifar:resnet18:", "a width is a number of channels, got ''"),
        ("cifar:resnet18:8:8", "a width is a number of channels, got '8:8'"),
        ("timm:resnet18:16", "a backbone is .*, got 'timm:resnet18:16'"),
        ("timm:resnet18x", "timm has no model 'resnet18x'; close to it: .*resnet18"),
        ("timm:resnet18.a1_in2k", "no model 'resnet18.a1_in2k'; close to it: resnet18.a1_in1k"),
        ("cifar:vit_tiny_patch16_224", "plain ResNet"),
        ("cifar:resnet18:wide", "a width is a number of channels, got 'wide'"),
        ("cifar:resnet18:0", "a width is a number of channels, got '0'"),
        ("cifar:resnet50:16", "only a ResNet of basic blocks has a width"),
        ("cifar:vit_tiny_patch16_224:16", "has no width to choose"),
        ("cifar:resnet20:8", "resnet20 has no width to choose, got 'cifar:resnet20:8'"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        backbone(spec)


@pytest.mark.parametrize("channels", [0, -1, 1.5, "3", None, True, torch.ones(2)])
def test_numbers_of_channels(channels):
    with pytest.raises(ValueError, match="in_channels must be"):
        backbone("cifar:resnet20", in_channels=channels)


@pytest.mark.parametrize("channels", [np.int64(1), torch.tensor(1)])
def test_numbers_of_channels_as_numpy_and_torch_have_them(channels):
    model = backbone("cifar:resnet20", in_channels=channels)
    assert next(model.parameters()).shape[1] == 1


# One of each kind: positions that timm interpolates, windows, mixing over places, tables.
FIXED = [
    *("beit_base_patch16_224", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny", "gmixer_12_224"),
    *("levit_128", "pit_xs_224", "tnt_s_legacy_patch16_224", "vitamin_small_224", "hiera_tiny_224"),
    *("efficientformer_l1", "efficientformerv2_s0", "gcvit_tiny", "nest_tiny", "visformer_tiny"),
    *("coatnet_pico_rw_224", "swinv2_cr_tiny_224", "volo_d1_224", "botnet26t_256"),
]
DYNAMIC = ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224"]
OTHERS = ["crossvit_tiny_240", "mvitv2_tiny", "xcit_nano_12_p8_224", "twins_pcpvt_small"]


def without_memory(name):
    """Built with memory first: timm before 1.0.21 reads numbers off tensors as it builds."""
    return backbone(f"timm:{name}").to("meta")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DYNAMIC, *FIXED, *OTHERS])
def test_images_of_any_size_are_answered_or_refused_with_the_size(name):
    if not timm.is_model(name):
        pytest.skip("another timm")
    model = without_memory(name).eval()
    with torch.device("meta"), torch.no_grad():
        own = model.pretrained_cfg["input_size"][1]
        assert model(torch.empty(2, 3, own, own)).shape == (2, model.num_features)
        answered = {}
        for size in (32, 96, 224, 75) if name in OTHERS else (8, 28, 32, 96, 224, 75):
            images = torch.empty(2, 3, size, size)
            try:
                answered[size] = model(images).shape
            except ValueError:
                with pytest.raises(
                    ValueError, match=rf"{own}, {own}\).* got \(2, 3, {size}, {size}"
                ):
                    model(images)
    assert set(answered.values()) <= {(2, model.num_features)}
    if name in DYNAMIC:
        assert {28 if "14" in name else 32, 224} <= set(answered)


@pytest.mark.slow
@pytest.mark.parametrize("name", [DYNAMIC[0], "cait_xxs24_224"])
@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 224, 224), torch.zeros(2, 3, 224, 224, dtype=torch.uint8), [1], None],
    ids=["one image", "uint8", "list", "none"],
)
def test_other_things_than_images(images, name):
    model = without_memory(name)
    with pytest.raises(ValueError, match=r"reads images \(B, C, 224, 224\).*in floating point"):
        model(images)


def test_a_transformer_that_takes_any_size_is_the_same_transformer():
    torch.manual_seed(0)
    ours = backbone(f"timm:{DYNAMIC[0]}").eval()
    torch.manual_seed(0)
    theirs = timm.create_model(DYNAMIC[0], num_classes=0).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(twin(images[..., :32, :48]), ours(images[..., :32, :48]))
            with pytest.raises(ValueError, match="multiples of 16"):
                twin(images[..., :40])


def test_a_transformer_is_attacked_and_given_back():
    model, images = backbone(f"timm:{DYNAMIC[0]}"), torch.rand(1, 3, 32, 32)
    adversary = AdversarialViewGenerator(steps=1, start="zero")
    hard = adversary(images, lambda v: (model(v) - 1).square().sum(1), freeze=model)
    assert not torch.equal(hard, images)
    assert all(p.requires_grad for p in model.parameters())
