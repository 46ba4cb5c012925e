"""The encoder may be wrapped, tied, of any type and have BatchNorm branches; the file too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from advssl import branch_batchnorm, keep_branch
from advssl.evaluation.checkpoints import (
    bn_branches,
    load_encoder,
)
from evaluation.layouts import (
    CONV_SHORTCUT,
    LAYOUTS,
    acl,
    advcl,
    branched,
    dynacl,
    gsa,
    network,
    of_set,
    prefixed,
    refuse,
    renamed,
    same,
    saved,
    small,
    tiny,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_encoders_type_is_kept(dtype, path):
    theirs, encoder = small(), small(seed=1).to(dtype)
    load_encoder(encoder, saved(theirs.state_dict(), path))
    assert same(
        encoder, {k: v.to(encoder.state_dict()[k].dtype) for k, v in theirs.state_dict().items()}
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_encoder(path):
    theirs, encoder = small(), torch.jit.script(small(seed=1))
    load_encoder(encoder, saved(branched(theirs, theirs.state_dict(), ".bn_list.{}", 2), path),
                 bn_branch="pgd")  # fmt: skip
    assert same(encoder, of_set(theirs, 1))


def test_an_encoder_made_in_inference_mode(path):
    with torch.inference_mode():
        encoder = tiny()
    theirs = tiny()
    load_encoder(encoder, saved(theirs.state_dict(), path))
    assert same(encoder, theirs.state_dict())


class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.b.weight = self.a.weight


def test_tied_tensors(path):
    theirs, encoder = Tied(), Tied()
    own = theirs.state_dict()
    load_encoder(encoder, saved(own, path))
    assert same(encoder, own)
    for gone in ("a.weight", "b.weight"):  # as safetensors saves a model
        encoder = Tied()
        load_encoder(encoder, saved({k: v for k, v in own.items() if k != gone}, path))
        assert same(encoder, own)
        assert encoder.a.weight is encoder.b.weight
    refuse(
        Tied(), saved(Tied(tied=False).state_dict(), path), "different values in a.weight and b."
    )
    refuse(Tied(tied=False), saved({k: v for k, v in own.items() if k != gone}, path), "1 missing")


def test_expanded_tensors_are_refused_before_the_first_changes(path):
    theirs, encoder = tiny(), tiny()
    encoder[1].running_var = torch.ones(1).expand(4)
    refuse(encoder, saved(theirs.state_dict(), path), "1.running_var is expanded")
    encoder[1].running_var = torch.ones(4, 2)[:, 0]  # strided alone is well
    load_encoder(encoder, path)
    assert same(encoder, theirs.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_converted(dtype, path):
    theirs, encoder = small(), small(seed=1)
    own = {k: v.to(dtype) if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    load_encoder(encoder, saved(own, path))
    assert same(encoder, {k: v.to(theirs.state_dict()[k].dtype) for k, v in own.items()})


def test_device_memory_format_and_gradients_are_the_encoders(path, device):
    theirs, encoder = small(), small(seed=1).to(device, memory_format=torch.channels_last)
    encoder.conv1.weight.requires_grad_(False)
    parameters = dict(encoder.named_parameters())
    load_encoder(encoder, saved(theirs.state_dict(), path))
    assert dict(encoder.named_parameters()) == parameters  # the same objects: optimizers stay valid
    assert encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert encoder.conv1.weight.device.type == device.type
    assert not encoder.conv1.weight.requires_grad
    assert encoder.layer1[0].conv1.weight.requires_grad
    assert torch.equal(encoder.conv1.weight.cpu(), theirs.conv1.weight)


def test_num_batches_tracked_may_lack(path):
    """Files from before PyTorch 0.4.1 have none."""
    theirs, encoder = small(), small(seed=1)
    own = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    report = load_encoder(encoder, saved(own, path))
    assert set(report.missing) == set(theirs.state_dict()) - set(own)
    assert same(encoder, theirs.state_dict())  # 7 in both
    assert f"{len(report.missing)} num_batches_tracked" in str(report)


def test_an_average_of_checkpoints_has_no_counter(path):
    several, encoder = [small(seed=seed).state_dict() for seed in (0, 2)], small(seed=1)
    own = {name: sum(one[name] for one in several) / 2 for name in several[0]}
    report = load_encoder(encoder, saved(own, path))
    counts = {name for name in own if "num_batches" in name}
    assert set(report.missing) == counts
    assert same(encoder, {**encoder.state_dict(), **{k: own[k] for k in own.keys() - counts}})


def test_a_counter_too_many_is_no_stranger(path):
    """torchvision's FrozenBatchNorm2d has weight, bias and statistics, and no count."""
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), frozen(4))
    report = load_encoder(encoder, saved(theirs.state_dict(), path))
    assert report.ignored == ("1.num_batches_tracked",)


# --- BatchNorm branches ---------------------------------------------------------------------------


def our_branches(names=("clean", "adversarial")) -> nn.Module:
    net = branch_batchnorm(small(), names)
    for i, name in enumerate(names):
        for key, value in net.state_dict().items():
            if f".{name}." in key:
                value.add_(i)
    return net


def test_our_own_branches_by_name(path):
    net = our_branches()
    assert "bn1.clean.weight" in net.state_dict()
    for name in ("clean", "adversarial"):
        encoder = small(seed=1)
        report = load_encoder(encoder, saved(net.state_dict(), path), bn_branch=name)
        assert same(encoder, keep_branch(net, name).state_dict())
        assert (report.format, report.bn_branch) == ("plain", name)
        assert f"BatchNorm branch: {name}" in str(report)
    encoder = branch_batchnorm(small(seed=1))
    assert load_encoder(encoder, path).bn_branch is None
    assert same(encoder, net.state_dict())


def test_our_own_branches_inside_a_lightning_module(path):
    net, encoder = our_branches(), small(seed=1)
    content = {"state_dict": prefixed(net.state_dict(), "backbone.")}
    load_encoder(encoder, saved(content, path), bn_branch="adversarial")
    assert same(encoder, keep_branch(net, "adversarial").state_dict())


def test_one_set_fills_every_branch(path):
    theirs, encoder = small(), branch_batchnorm(small(seed=1))
    load_encoder(encoder, saved(theirs.state_dict(), path))
    for name in ("clean", "adversarial"):
        assert same(keep_branch(encoder, name), theirs.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("make", [acl, dynacl, advcl, gsa], ids=lambda f: f.__name__)
def test_the_papers_branches_fill_ours(make, path):
    theirs, encoder = network(make), branch_batchnorm(network(make, seed=1))
    content, _, _ = make(theirs, theirs.state_dict())
    report = load_encoder(encoder, saved(content, path))
    assert same(keep_branch(encoder, "clean"), of_set(theirs, 0))
    assert same(keep_branch(encoder, "adversarial"), of_set(theirs, 1))
    assert report.loaded == len(encoder.state_dict())


def test_the_third_set_of_advcl(path):
    theirs, encoder = small(), small(seed=1)
    content, _, _ = advcl(theirs, theirs.state_dict())
    load_encoder(encoder, saved(content, path), bn_branch="pgd_ce")
    assert same(encoder, of_set(theirs, 2))


@pytest.mark.parametrize("make", [acl, dynacl, advcl, gsa], ids=lambda f: f.__name__)
def test_clean_and_adversarial_mean_the_same_everywhere(make, path):
    theirs = network(make)
    content, _, _ = make(theirs, theirs.state_dict())
    saved(content, path)
    for i, word in enumerate(("clean", "adversarial")):
        encoder = network(make, seed=1)
        load_encoder(encoder, path, bn_branch=word)
        assert same(encoder, of_set(theirs, i))


def test_a_single_numbered_set_is_no_choice(path):
    """ACL's plain SimCLR has bn_list.0 alone."""
    theirs, encoder = small(), small(seed=1)
    state = renamed(branched(theirs, theirs.state_dict(), ".bn_list.{}", 1), *CONV_SHORTCUT)
    report = load_encoder(encoder, saved({"state_dict": state}, path))
    assert report.bn_branch == "normal"
    assert same(encoder, theirs.state_dict())
    ours = branch_batchnorm(small(seed=1))
    load_encoder(ours, path)
    assert same(keep_branch(ours, "adversarial"), theirs.state_dict())


def test_a_network_without_identities_is_not_taken_for_a_resnet(path):
    """Nor a ResNet for it: names apart their tensors fit, and compute another function."""
    said = "adds no identity .* compute different functions; the first is backbone"
    theirs = network(gsa)
    branch = {"bn_branch": "clean"}
    content, _, _ = gsa(theirs, theirs.state_dict())
    for options in ({}, {"format": "gsa"}, {"allow_partial": True}, branch):
        refuse(small(), saved(content, path), f"the file's network {said}", **options)
    refuse(small("Bottleneck"), path, f"the file's network {said}")
    refuse(network(gsa), saved(small().state_dict(), path), f"the encoder's network {said}")
    theirs = {  # the release's Bottleneck
        name.replace("downsample.0", "conv4").replace("downsample.1", "bn4"): value
        for name, value in small("Bottleneck").state_dict().items()
    }
    refuse(small("Bottleneck"), saved(theirs, path), f"the file's network {said}")
    message = refuse(tiny(), saved(small().state_dict(), path), "none of the encoder's|not fill")
    assert "identity" not in message


@pytest.mark.parametrize("make", [acl, advcl, gsa], ids=lambda f: f.__name__)
def test_several_branches_must_be_chosen_from(make, path):
    theirs, ours = network(make), network(make, seed=1)
    content, _, _ = make(theirs, theirs.state_dict())
    path = saved(content, path)
    words = '"clean", "adversarial"' if make is gsa else '"normal", "pgd"'
    refuse(ours, path, f"has the BatchNorm branches {words}.*bn_branch=")
    refuse(ours, path, f"no BatchNorm branch 'pdg', it has {words}", bn_branch="pdg")


@pytest.mark.slow
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda f: f.__name__)
def test_the_branches_to_choose_from(make, path):
    theirs, ours = network(make), network(make, seed=1)
    before = copy.deepcopy(ours.state_dict())
    content, _, _ = make(theirs, theirs.state_dict())
    found = bn_branches(ours, saved(content, path))
    expected = {
        "acl": ("normal", "pgd"),
        "dynacl": ("normal", "pgd"),
        "advcl": ("normal", "pgd", "pgd_ce"),
        "gsa": ("clean", "adversarial"),
    }
    assert found == expected.get(make.__name__, ())
    assert same(ours, before)
    for branch in found:
        assert load_encoder(ours, path, bn_branch=branch).bn_branch == branch


def test_branches_are_only_told_of_a_file_that_fits(path):
    theirs = small()
    saved(acl(theirs, theirs.state_dict())[0], path)
    with pytest.raises(ValueError, match="does not fill the encoder"):
        bn_branches(small("Bottleneck"), path)
    with pytest.raises(ValueError, match="format must be"):
        bn_branches(small(), path, format="acl2")


def test_a_branch_that_cannot_be_chosen(path):
    path = saved(small().state_dict(), path)
    refuse(small(seed=1), path, "no BatchNorm branches; leave bn_branch='pgd' out", bn_branch="pgd")
    ours = branch_batchnorm(small(seed=1))
    refuse(ours, path, 'the branches "clean", "adversarial"', bn_branch="clean")


def test_branches_of_other_names(path):
    path = saved(our_branches(("a", "b")).state_dict(), path)
    message = refuse(branch_batchnorm(small(seed=1)), path, "missing in the file")
    assert 'BatchNorm branches are "a", "b" in the file, "clean", "adversarial" in the' in message
