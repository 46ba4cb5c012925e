"""What does not fill the encoder is refused with the reason, and the encoder untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from advssl.evaluation.checkpoints import (
    load_encoder,
)
from evaluation.layouts import (
    HEAD,
    HEADS,
    dino,
    gsa,
    lightly,
    moco,
    network,
    prefixed,
    refuse,
    same,
    saved,
    small,
    timm_resnet,
    tiny,
)


@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_one_missing_tensor_is_refused_by_name(data, path):
    own = small().state_dict()
    names = [name for name in own if "num_batches" not in name]
    gone = data.draw(st.sampled_from(names))
    del own[gone]
    message = refuse(small(seed=1), saved(own, path), "does not fill the encoder")
    assert f"1 missing in the file: {gone}\n" in message
    refuse(small(seed=1), path, gone, allow_partial=True)


def test_another_shape_is_refused_by_name(path):
    own = small().state_dict()
    own["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    message = refuse(small(seed=1), saved(own, path), "1 unlike")
    assert "conv1.weight (64, 3, 3, 3) in the file, (64, 3, 7, 7) in the encoder" in message
    refuse(small(seed=1), path, "1 unlike", allow_partial=True)


@pytest.mark.parametrize("change", [lambda v: v.long(), lambda v: v.to(torch.complex64)])
def test_another_kind_of_number_is_refused(change, path):
    own = small().state_dict()
    own["conv1.weight"] = change(own["conv1.weight"])
    refuse(small(seed=1), saved(own, path), r"1 unlike: conv1.weight torch\.")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight", torch.nan, "NaN in 0.weight; its training diverged"),
        ("0.weight", torch.inf, "inf in 0.weight; its training diverged"),
        ("0.bias", -torch.inf, "inf in 0.bias"),
        ("1.running_mean", torch.inf, "inf in 1.running_mean"),
        ("1.running_var", -1e-3, "values below 0 in 1.running_var, which is not possible"),
        ("1.num_batches_tracked", -1, "values below 0 in 1.num_batches_tracked"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_damaged_numbers_are_refused_by_name(name, value, message, dtype, path):
    own = tiny().to(dtype).state_dict()
    own[name].view(-1)[-1:] = value
    refuse(tiny(), saved(own, path), message)
    heads = {f"fc.{name}": value for name, value in own.items()}  # of what is not used
    load_encoder(tiny(), saved({**tiny().state_dict(), **heads}, path))


@pytest.mark.parametrize(
    "name", ["running_var", "running_std", "moving_variance", "ema_var", "var_ema"]
)
def test_a_variance_below_zero_under_any_name_is_refused(name, path):
    net = nn.Conv2d(3, 4, 3)
    net.register_buffer(name, torch.full((4,), -1e-3))
    refuse(copy.deepcopy(net), saved(net.state_dict(), path), f"values below 0 in {name}, which")


@pytest.mark.parametrize(
    ("theirs", "ours", "value"),
    [
        (torch.float32, torch.float16, 1e5),
        (torch.bfloat16, torch.float16, 1e5),
        (torch.float64, torch.float32, 1e40),
        (torch.float64, torch.bfloat16, -1e40),
    ],
)
def test_numbers_too_large_for_the_encoders_type(theirs, ours, value, path):
    own = tiny().to(theirs).state_dict()
    own["1.running_var" if value > 0 else "0.weight"][1] = value
    name = "1.running_var" if value > 0 else "0.weight"
    refuse(tiny().to(ours), saved(own, path), f"{name} that are too large for the encoder's torch")
    load_encoder(tiny().to(theirs), path)


def test_integers_too_large_for_the_encoders_type(path):
    encoder = tiny()
    encoder.register_buffer("index", torch.zeros(2, dtype=torch.uint8))
    own = {**encoder.state_dict(), "index": torch.tensor([3, 255])}
    load_encoder(encoder, saved(own, path))
    assert encoder.index.tolist() == [3, 255]
    own["index"][0] = 256
    refuse(encoder, saved(own, path), "values in index that are too large for .*uint8")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_std_that_is_not_positive_is_refused_in_the_encoder_too(value, path):
    encoder = tiny()
    encoder.register_buffer("mean", torch.zeros(3, 1, 1))
    encoder.register_buffer("std", torch.ones(3, 1, 1))
    own = {**encoder.state_dict(), "std": torch.tensor([1, value, 1]).view(3, 1, 1)}
    refuse(encoder, saved(own, path), "std of 0 or less in std")


@pytest.mark.parametrize("tensor", [torch.ones(4, 3, 3, 3).to_sparse(), "meta"])
def test_tensors_without_plain_values_are_refused(tensor, path):
    tensor = torch.empty(4, 3, 3, 3, device="meta") if tensor == "meta" else tensor
    own = {**tiny().state_dict(), "0.weight": tensor}
    refuse(tiny(), saved(own, path), "0.weight has no plain values in the file")


@pytest.mark.parametrize("container", [lambda v: v.numpy(), lambda v: v.to(torch.float8_e5m2)])
def test_tensors_of_other_kinds_are_read(container, path):
    own = tiny().state_dict()
    own["0.bias"] = torch.tensor([0.5, 1, -2, 0])
    encoder = tiny()
    load_encoder(encoder, saved({**own, "0.bias": container(own["0.bias"])}, path))
    assert same(encoder, own)


def test_a_wrong_prefix_is_refused_where_the_papers_loaders_load_nothing(path):
    """What AdvCL's loader does: strict=False with DataParallel's prefix."""
    own = prefixed(small().state_dict(), "module.")
    encoder = small(seed=1)
    quiet = copy.deepcopy(encoder)
    quiet.load_state_dict(own, strict=False)
    assert same(quiet, encoder.state_dict())  # the trap

    message = refuse(encoder, saved(own, path), "none of the encoder's", prefix="backbone.")
    assert "behind the prefix 'backbone.'" in message
    assert "module.conv1.weight" in message
    assert '"module."; try that as prefix=' in message


@pytest.mark.parametrize("prefix", ["net.backbone.", "net.backbone"])
def test_an_unknown_prefix_is_found_and_can_be_given(prefix, path):
    theirs, encoder = small(), small(seed=1)
    content = {"state_dict": prefixed(theirs.state_dict(), "net.backbone.")}
    content["state_dict"]["net.anything.weight"] = HEAD
    message = refuse(encoder, saved(content, path), "none of the encoder's")
    assert 'the encoder\'s names stand behind "net.backbone."; try that as prefix=' in message
    report = load_encoder(encoder, path, prefix=prefix)
    assert same(encoder, theirs.state_dict())
    assert report.prefix == "net.backbone."
    assert report.ignored == ("net.anything.weight",)


def test_the_wrong_format_is_refused(path):
    theirs = small()
    for make in (moco, dino, lightly):
        content, _, _ = make(theirs, theirs.state_dict())
        refuse(small(seed=1), saved(content, path), "none of the encoder's", format="gsa")


def test_an_unknown_format_is_refused(path):
    refuse(
        small(), path, 'format must be "auto", "plain", .*"gsa", got \'simclr\'', format="simclr"
    )


def test_a_deeper_network_is_refused(path):
    """All the encoder needs is there, and more, which is no head: another network."""
    deeper = timm_resnet.ResNet(
        timm_resnet.BasicBlock,
        layers=(2, 1, 1, 1),
        channels=(4, 8, 8, 8),
        stem_width=4,
        num_classes=0,
    )
    message = refuse(small(seed=1), saved(deeper.state_dict(), path), "does not fill")
    assert "10 unexpected in the file: layer1.1.conv1.weight" in message
    assert "... and 4 more" in message
    assert "allow_partial=True" in message
    report = load_encoder(small(seed=1), path, allow_partial=True)
    assert len([name for name in report.ignored if name.startswith("layer1.1.")]) == 12


def test_an_encoder_with_a_classifier_is_told_so(path):
    message = refuse(small(seed=1, num_classes=5), saved(small().state_dict(), path), "2 missing")
    assert "build the encoder without its classifier" in message
    other = small(num_classes=7).state_dict()
    message = refuse(small(seed=1, num_classes=5), saved(other, path), "2 unlike")
    assert "build the encoder without its classifier" in message


def test_a_classifier_that_fits_is_filled(path):
    theirs, encoder = small(num_classes=5), small(seed=1, num_classes=5)
    load_encoder(encoder, saved(theirs.state_dict(), path))
    assert same(encoder, theirs.state_dict())


@pytest.mark.parametrize("head", HEADS)
def test_known_heads_are_ignored_and_listed(head, path):
    own = {**small().state_dict(), f"{head}.0.weight": HEAD}
    report = load_encoder(small(seed=1), saved(own, path))
    assert report.ignored == (f"{head}.0.weight",)


@pytest.mark.parametrize("stranger", ["layer5.0.conv1", "headless", "backfc", "stem", "norm"])
def test_strangers_are_not_heads(stranger, path):
    own = {**small().state_dict(), f"{stranger}.weight": HEAD}
    refuse(small(seed=1), saved(own, path), f"1 unexpected in the file: {stranger}.weight")
    assert load_encoder(small(), path, allow_partial=True).ignored == (f"{stranger}.weight",)


def test_two_encoders_that_both_fit_are_a_question(path):
    one, two = small().state_dict(), small(seed=2).state_dict()
    path = saved({"model": one, "state_dict": two}, path)
    refuse(small(seed=1), path, "several ways: \"plain\" in 'state_dict'; \"plain\" in 'model'")
    both = {"state_dict": {**prefixed(one, "backbone."), **prefixed(two, "encoder_q.")}}
    refuse(small(seed=1), saved(both, path), 'several ways: "lightly".* "moco"')
    encoder = small(seed=1)
    assert load_encoder(encoder, path, format="moco").prefix == "encoder_q."
    assert same(encoder, two)


def test_the_same_tensors_twice_are_no_question(path):
    own = small().state_dict()
    content = {"state_dict": prefixed(own, "backbone.")}  # lightly's and solo-learn's
    encoder = small(seed=1)
    assert load_encoder(encoder, saved(content, path)).format == "lightly"
    assert load_encoder(encoder, path, format="solo").format == "solo"


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.Linear(2, 3, device="meta")])
def test_an_encoder_without_memory_is_refused(lazy, path):
    saved({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no memory yet"):
        load_encoder(lazy, path)


def test_an_encoder_without_tensors_is_refused(path):
    with pytest.raises(ValueError, match="no tensor to fill"):
        load_encoder(nn.ReLU(), saved({}, path))


def test_whose_network_adds_no_identity_is_said(path):
    theirs = network(gsa)
    content, _, _ = gsa(theirs, theirs.state_dict())
    said = "the {}'s network adds no identity .* as GSA-RSL's release, the {}'s does"
    refuse(small(), saved(content, path), said.format("file", "encoder"))
    refuse(theirs, saved(small().state_dict(), path), said.format("encoder", "file"))
