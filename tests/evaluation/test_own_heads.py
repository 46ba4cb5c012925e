"""A checkpoint's one linear classifier is added to its encoder, to the last bit, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.files import read, tensors_at
from advssl.evaluation.own_heads import Headed, width_of, with_head
from evaluation.layouts import prefixed, saved, small

W, BIAS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3.0)


class Pooled(nn.Module):
    """An encoder that makes no head itself, as ours of the CIFAR papers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return self.conv(images).mean(dim=(2, 3))


def added(encoder: nn.Module, path, head=None, expected=3) -> Headed:
    report = load_encoder(encoder, path)
    tensors = tensors_at(read(path), report.place)
    return with_head(encoder, path, tensors, report, head, expected)


def answers(made: Headed, encoder: nn.Module, bias=BIAS) -> None:
    """Whether the head's answer is W z + b, written here."""
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        z = encoder.eval()(images)
        found = made.model.eval()(images)
    torch.testing.assert_close(found, z @ W.T + bias)


@pytest.mark.parametrize("make", [small, Pooled])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "backbone."])
@pytest.mark.parametrize(
    "name",
    ["fc", "linear", "head", "classifier", "logits", "head.fc", "classifier.1", "heads.head"],
)
def test_every_spelling_of_a_head(name, prefix, make, path):
    encoder = make(seed=1) if make is small else make()
    state = prefixed({**encoder.state_dict(), f"{name}.weight": W, f"{name}.bias": BIAS}, prefix)
    made = added(make(), saved({"state_dict": state}, path))
    assert (made.width, made.head) == (3, name)
    assert made.taken == (f"{prefix}{name}.weight", f"{prefix}{name}.bias")
    answers(made, encoder)


def test_a_head_beside_the_encoder(path):
    """Lightning modules: self.backbone, self.online_classifier."""
    encoder = small(seed=1)
    state = {**prefixed(encoder.state_dict(), "backbone."), "online_classifier.weight": W}
    state |= {"online_classifier.bias": BIAS, "projection_head.weight": W + 1}
    made = added(small(), saved({"state_dict": state}, path))
    assert made.head == "online_classifier"
    answers(made, encoder)


def test_a_convolution_of_one_pixel_and_no_bias(path):
    encoder = small(seed=1)
    state = {**encoder.state_dict(), "fc.weight": W[:, :, None, None]}
    answers(added(small(), saved(state, path)), encoder, bias=torch.zeros(3))


def test_the_networks_own_name_comes_first(path):
    encoder = small(seed=1)
    own = {"fc.weight": W, "fc.bias": BIAS}
    state = {**encoder.state_dict(), **own, "linear.weight": W + 1, "linear.bias": BIAS}
    answers(added(small(), saved(state, path)), encoder)
    made = added(small(), path, head="linear")
    assert made.head == "linear"
    assert torch.equal(made.model.state_dict()["fc.weight"], W + 1)


def test_of_several_the_one_with_the_expected_outputs(path):
    encoder = Pooled()
    state = {**encoder.state_dict(), "linear.weight": W, "linear.bias": BIAS}
    state["head.weight"] = torch.ones(7, 8)
    made = added(Pooled(), saved(state, path))
    assert made.head == "linear"
    answers(made, encoder)
    with pytest.raises(
        ValueError, match=r"several heads: linear \(3\), head \(7\); say which with"
    ):
        added(Pooled(), path, expected=5)
    assert added(Pooled(), path, head="head", expected=5).width == 7


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"fc_010.weight": W, "fc_010.bias": BIAS},  # AdvCL's: clusters, not classes
        {"projection_head.weight": W},
        {"predictor.weight": W},
        {"fc.fc1.weight": W, "fc.fc2.weight": W},  # ACL's projection
        {"head.0.weight": W, "head.1.running_mean": BIAS, "head.2.weight": W},
        {"fc.weight_g": torch.ones(3, 1), "fc.weight_v": W},
        {"momentum_head.weight": W},
    ],
)
def test_what_is_no_classifier_is_not_taken_for_one(others, path):
    state = {**small(seed=1).state_dict(), **others}
    beside = "nothing" if not others else next(iter(others)).partition(".")[0]
    with pytest.raises(
        ValueError, match=f"no classifier's head .*it has {beside}.*measured by a p"
    ):
        added(small(), saved(state, path))


@pytest.mark.parametrize(
    ("weight", "bias", "match"),
    [
        (torch.ones(3, 9), BIAS, r"fc.weight \(3, 9\), and the network's head \(3, 8\)"),
        (W, torch.ones(4), r"fc.bias \(4,\), and the network's head \(3,\)"),
        (W * torch.nan, BIAS, "NaN in fc.weight"),
        (W, BIAS + torch.inf, "inf in fc.bias"),
        (torch.empty(3, 8, device="meta"), BIAS, "no plain values|beside the encoder it has fc"),
    ],
)
def test_heads_that_do_not_fit(weight, bias, match, path):
    state = {**small(seed=1).state_dict(), "fc.weight": weight, "fc.bias": bias}
    with pytest.raises(ValueError, match=match):
        added(small(), saved(state, path))


def test_a_head_that_is_not_there(path):
    saved({**small().state_dict(), "fc.weight": W}, path)
    with pytest.raises(ValueError, match=r"no linear layer 'linear' beside .*it has fc \(3\)"):
        added(small(), path, head="linear")


def test_both_heads_of_a_distilled_transformer(path):
    deit = pytest.importorskip("timm.models.deit")

    def distilled(classes):
        return deit.VisionTransformerDistilled(
            img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=classes
        )

    theirs = distilled(3).eval()
    nn.init.normal_(theirs.head_dist.weight)
    made = added(distilled(0), saved(theirs.state_dict(), path))
    assert (made.width, made.head, len(made.taken)) == (3, "head, head_dist", 4)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(made.model.eval()(images), theirs(images))
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head_dist")}
    with pytest.raises(ValueError, match="the one head 'head', and the network's own has"):
        added(distilled(0), saved(state, path))


def test_how_many_outputs_a_module_has_itself():
    assert width_of(small()) is None
    assert width_of(Pooled()) is None
    assert width_of(small(num_classes=5)) == 5
    assert width_of(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))) is None  # by another name
