"""Every format and naming loads to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from advssl.evaluation.checkpoints import (
    FORMATS,
    NAMINGS,
    among,
    load_encoder,
)
from advssl.evaluation.classifiers import load_classifier
from advssl.integrations.cifar import WideResNet
from evaluation.layouts import (
    LAYOUTS,
    acl,
    dino,
    dynacl,
    network,
    of_set,
    prefixed,
    refuse,
    renamed,
    same,
    saved,
    small,
    timm_resnet,
    tiny,
)


def test_every_format_has_a_layout_here():
    assert {f.name for f in FORMATS} == {make.__name__.removesuffix("_v3") for make in LAYOUTS}


@pytest.mark.parametrize("how", ["named", "auto"])
@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
@pytest.mark.parametrize("make", LAYOUTS, ids=lambda f: f.__name__)
def test_every_layout_loads_to_the_last_bit(make, block, how, path):
    theirs, encoder = network(make, block), network(make, block, seed=1)
    content, options, told = make(theirs, theirs.state_dict())
    name = make.__name__.removesuffix("_v3")
    format = "auto" if how == "auto" else name
    report = load_encoder(encoder, saved(content, path), format=format, **options)
    # The last of two sets is loaded with the options above, the middle one of three.
    assert same(encoder, of_set(theirs, 1) if options else theirs.state_dict())
    assert report.format == name
    assert report.loaded == len(theirs.state_dict())
    assert report.missing == ()
    for field, value in told.items():
        assert getattr(report, field) == value, field


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda f: f.__name__)
def test_what_stays_in_the_file_is_listed(make, path):
    theirs = network(make)
    content, options, _ = make(theirs, theirs.state_dict())
    report = load_encoder(network(make, seed=1), saved(content, path), **options)
    held = content[report.place] if report.place else content
    others = {key for key in content if report.place and key != report.place}
    taken = len(theirs.state_dict())
    assert len(set(report.ignored)) == len(report.ignored) == len(held) - taken + len(others)
    assert set(report.ignored) <= set(held) | others


def test_a_loaded_encoder_computes_what_theirs_did(path, images):
    theirs, encoder = small().eval(), small(seed=1).eval()
    load_encoder(encoder, saved({"model": theirs.state_dict()}, path))
    assert torch.equal(encoder(images), theirs(images))


def test_the_ema_encoder_alone_is_dynacls_other_file(path):
    """model_encoder_k.pt is laid out as ACL's: the same tensors, whatever the format is called."""
    theirs = small()
    content, options, _ = acl(theirs, theirs.state_dict())
    for format in ("auto", "acl", "dynacl"):
        encoder = small(seed=1)
        report = load_encoder(encoder, saved(content, path), format=format, **options)
        assert same(encoder, of_set(theirs, 1))
        assert report.format == ("acl" if format == "auto" else format)


def test_dynacls_query_encoder_by_prefix(path):
    theirs = small()
    content, options, _ = dynacl(theirs, theirs.state_dict())
    encoder = small(seed=1)
    load_encoder(encoder, saved(content, path), prefix="encoder_q.", **options)
    assert torch.equal(encoder.conv1.weight, theirs.conv1.weight + 9)


def test_dinos_student_by_its_lack_of_a_teacher(path):
    theirs = small()
    content, _, _ = dino(theirs, theirs.state_dict())
    del content["teacher"]
    encoder = small(seed=1)
    report = load_encoder(encoder, saved(content, path))
    assert report.place == "student"
    assert torch.equal(encoder.conv1.weight, theirs.conv1.weight + 9)


@pytest.mark.parametrize("place", ["", "state_dict", "model", "encoder", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_state_dict_may_lie_anywhere_and_be_wrapped(place, prefix, path):
    theirs, encoder = small(), small(seed=1)
    own = prefixed(theirs.state_dict(), prefix)
    report = load_encoder(encoder, saved({place: own} if place else own, path))
    assert same(encoder, theirs.state_dict())
    assert (report.format, report.place, report.prefix) == ("plain", place, prefix)


@pytest.mark.parametrize("place", ["", "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["model.", "net.", "network.", "1."])
def test_a_module_around_the_encoder_may_lie_anywhere(place, prefix, path):
    theirs, encoder = tiny(), tiny()
    own = prefixed(theirs.state_dict(), prefix)
    report = load_encoder(encoder, saved({place: own} if place else own, path))
    assert same(encoder, theirs.state_dict())
    assert (report.format, report.place, report.prefix) == ("wrapped", place, prefix)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model."])
@pytest.mark.parametrize(
    "place", ["weights", "model_ema", "teacher", "state.model", "model.state_dict", "a.b.c.trunk"]
)
def test_a_state_dict_may_lie_under_any_key(place, prefix, path):
    theirs, encoder = tiny(), tiny()
    own = prefixed(theirs.state_dict(), prefix)
    outer, *inner = place.split(".")
    for key in reversed(inner):
        own = {key: own, "epoch": 3}
    content = {outer: own, "epoch": 3, "temperature": torch.ones(())}
    report = load_encoder(encoder, saved(content, path))
    assert same(encoder, theirs.state_dict())
    assert (report.place, report.prefix) == (place, prefix)
    assert set(report.ignored) == {"epoch", "temperature"}


def test_a_usual_key_comes_first_and_two_others_are_a_question(path):
    one, other = tiny().state_dict(), {k: v + 1 for k, v in tiny().state_dict().items()}
    assert load_encoder(tiny(), saved({"ema": other, "model": one}, path)).place == "model"
    refuse(tiny(), saved({"online": one, "target": other}, path), "in several ways")
    both = {"online": one, "target": {k: v.clone() for k, v in one.items()}}
    refuse(tiny(), saved(both, path), "in several ways")


def test_a_branch_has_one_meaning_in_both_ways_to_call_it():
    for labels in (("clean", "adversarial"), ("normal", "pgd"), ("clean", "pgd")):
        assert [among(labels, word) for word in ("clean", "normal")] == [labels[0]] * 2
        assert [among(labels, word) for word in ("adversarial", "pgd")] == [labels[1]] * 2
        assert among(labels, "ema") is None


WRAPPERS = [
    *("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"),
    *("_forward_module", "_original_module", "_fpw_module", "_module"),
]


@pytest.mark.parametrize("prefix", ["", "student.net."])
@pytest.mark.parametrize("where", ["", "layer1.", "layer1.0.", "layer1.0.conv1.", "bn1."])
@pytest.mark.parametrize("wrapper", [*WRAPPERS, "module._orig_mod"])
def test_what_wrappers_put_into_names_is_left_out(wrapper, where, prefix, path):
    theirs, encoder = small(), small(seed=1)
    own = {
        prefix + name.replace(where, f"{where}{wrapper}.", 1) if name.startswith(where) else
        prefix + name: value
        for name, value in theirs.state_dict().items()
    }  # fmt: skip
    load_encoder(encoder, saved({"state_dict": own}, path), prefix=prefix)
    assert same(encoder, theirs.state_dict())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_inside_a_prefix(wrapper, path):
    theirs, encoder = small(), small(seed=1)
    own = prefixed(theirs.state_dict(), f"{wrapper}.student.{wrapper}.net.{wrapper}.")
    report = load_encoder(encoder, saved(own, path), prefix="student.net.")
    assert report.prefix == f"{wrapper}.student.{wrapper}.net.{wrapper}."
    assert same(encoder, theirs.state_dict())


def checkpointed(net: nn.Module) -> nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net.layer1[0] = checkpoint_wrapper(net.layer1[0])
    return net


def averaged(net: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(net)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, checkpointed])
def test_the_encoder_may_be_wrapped(wrap, path):
    theirs, encoder = small(), small(seed=1)
    load_encoder(wrap(encoder), saved(theirs.state_dict(), path))
    found = {
        k.replace("_checkpoint_wrapped_module.", ""): v for k, v in encoder.state_dict().items()
    }
    assert all(torch.equal(value, found[name]) for name, value in theirs.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, checkpointed, averaged])
def test_the_saved_model_may_be_wrapped(wrap, path):
    theirs, encoder = small(), small(seed=1)
    expected = copy.deepcopy(theirs.state_dict())
    load_encoder(encoder, saved(wrap(theirs).state_dict(), path))
    assert same(encoder, expected)


def test_names_that_only_a_wrapper_tells_apart(path):
    """An encoder whose own parts are called as wrappers are."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.module = nn.Module()
            self.module.conv = nn.Conv2d(3, 2, 1)

    theirs, encoder = Twice(), Twice()
    load_encoder(encoder, saved(theirs.state_dict(), path))
    assert same(encoder, theirs.state_dict())


def normed(how, **options) -> nn.Module:
    net = tiny(**options)
    net[0] = how(net[0])
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_both_spellings_of_weight_norm(path):
    old, new = torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm
    for theirs, ours in ((old, new), (new, old), (new, new)):
        net, encoder = normed(theirs), normed(ours)
        nn.init.normal_(dict(net[0].named_parameters())["bias"])
        load_encoder(encoder, saved(net.state_dict(), path))
        image = torch.rand(1, 3, 5, 5)
        torch.testing.assert_close(encoder[0](image), net[0](image))
    message = refuse(tiny(), path, "1 missing in the file: 0.weight")
    assert "remove_parametrizations" in message


@pytest.mark.parametrize(
    "computed", [lambda m: prune.l1_unstructured(m, "weight", 3), nn.utils.spectral_norm]
)
def test_a_weight_that_hooks_compute_says_what_to_do(computed, path):
    net = tiny()
    computed(net[0])
    refuse(tiny(), saved(net.state_dict(), path), "computed from others .*prune.remove")


# --- names of ResNets -----------------------------------------------------------------------------


def children(net: nn.Module) -> dict[str, torch.Tensor]:
    return nn.Sequential(*net.children()).state_dict()


def test_shortcut_names(path):
    theirs, encoder = small(), small(seed=1)
    theirs_named = renamed(
        theirs.state_dict(), ("downsample.0", "shortcut.0"), ("downsample.1", "shortcut.1")
    )
    assert any("shortcut" in name for name in theirs_named)
    load_encoder(encoder, saved({"model": prefixed(theirs_named, "module.")}, path))
    assert same(encoder, theirs.state_dict())


def test_children_of_a_resnet_in_a_sequential(path):
    """lightly's examples: nn.Sequential(*list(resnet18().children())[:-1])."""
    theirs, encoder = small(), small(seed=1)
    state = prefixed(children(theirs), "backbone.")
    assert "backbone.4.0.conv1.weight" in state
    report = load_encoder(encoder, saved({"state_dict": state}, path))
    assert report.format == "lightly"
    assert same(encoder, theirs.state_dict())
    other_way = nn.Sequential(*small(seed=2).children())
    load_encoder(other_way, saved(theirs.state_dict(), path))
    assert same(other_way, children(theirs))


def test_children_of_lightlys_generator(path):
    """As above, of ResNetGenerator("resnet-18"): no max-pool, so the stages stand at 2 to 5."""
    theirs, encoder = small(), small(seed=1)
    pairs = [("downsample.0", "shortcut.0"), ("downsample.1", "shortcut.1")]
    pairs += [("conv1", "0"), ("bn1", "1")]
    state = {}
    for name, value in theirs.state_dict().items():
        stage, _, rest = name.partition(".")
        if stage.startswith("layer"):
            rest = next(iter(renamed({rest: 0}, *pairs[:2])))
            state[f"backbone.{int(stage[-1]) + 1}.{rest}"] = value
        else:
            state[f"backbone.{dict(pairs)[stage]}.{rest}"] = value
    load_encoder(encoder, saved({"state_dict": state}, path))
    assert same(encoder, theirs.state_dict())


def test_generator_names_are_what_lightly_has():
    generator = pytest.importorskip("lightly.models").ResNetGenerator("resnet-9", width=0.125)
    names = nn.Sequential(*list(generator.children())[:-1]).state_dict()
    assert {"0.weight", "1.weight", "2.0.conv1.weight", "3.0.shortcut.0.weight"} <= set(names)


def test_torchvision_and_timm_agree(path):
    resnet = pytest.importorskip("torchvision").models.resnet
    theirs = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    theirs.fc = nn.Identity()
    encoder = timm_resnet.ResNet(timm_resnet.BasicBlock, layers=(1, 1, 1, 1), num_classes=0)
    load_encoder(encoder, saved(theirs.state_dict(), path))
    assert same(encoder, theirs.state_dict())


def test_renamings_end_at_a_dot():
    """A pattern that stopped inside a word would rename half of it."""
    for naming in NAMINGS.values():
        for pattern, _ in naming:
            assert pattern.endswith((r"\.", r"\.(?=\d)"))


def test_other_networks_need_no_names(path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    theirs = copy.deepcopy(net)
    nn.init.normal_(theirs[3].weight)
    load_encoder(net, saved(theirs.state_dict(), path))
    assert same(net, theirs.state_dict())


# --- names of EfficientNets -----------------------------------------------------------------------


def test_an_efficientnet_of_efficientnet_pytorch(path):
    """In its words: blocks counted through, and convolutions by what they do."""
    encoder = pytest.importorskip("timm").create_model("efficientnet_b0", num_classes=0)
    theirs = {"_fc.weight": torch.zeros(7, 1280), "_fc.bias": torch.zeros(7)}
    stages = [(stage, block) for stage, blocks in enumerate(encoder.blocks) for block in blocks]
    around = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    modules = {old: getattr(encoder, new) for old, new in around.items()}
    for place, (stage, block) in enumerate(stages):
        names = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        parts = ["conv_dw", "bn1", "conv_pw", "bn2"]
        if stage:
            names = ["_expand_conv", "_bn0", *names]
            parts = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        names, parts = [*names, "_se_reduce", "_se_expand"], [*parts, "se.conv_reduce"]
        for old, part in zip(names, [*parts, "se.conv_expand"], strict=True):
            modules[f"_blocks.{place}.{old}"] = block.get_submodule(part)
    for old, module in modules.items():
        for key, value in module.state_dict().items():
            drawn = torch.rand_like(value) if value.is_floating_point() else value + 3
            theirs[f"{old}.{key}"] = drawn
    report = load_encoder(encoder, saved(theirs, path))
    assert set(report.ignored) == {"_fc.weight", "_fc.bias"}
    for old, module in modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, theirs[f"{old}.{key}"]), old


# --- names of WideResNets -------------------------------------------------------------------------


class Block(nn.Module):
    """Of TRADES' code, in its words."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.equal = inputs == width
        if not self.equal:
            self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x):
        out = self.bn1(x).relu()
        if not self.equal:
            x = out
        out = self.conv2(self.bn2(self.conv1(out)).relu())
        return out + (x if self.equal else self.convShortcut(x))


class Stage(nn.Module):
    def __init__(self, blocks, inputs, width, stride):
        super().__init__()
        pairs = [(inputs, stride)] + [(width, 1)] * (blocks - 1)
        self.layer = nn.Sequential(*(Block(i, width, s) for i, s in pairs))

    def forward(self, x):
        return self.layer(x)


class Wide(nn.Module):
    def __init__(self, blocks, widen):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, 16, 16 * widen, 1)
        self.sub_block1 = Stage(blocks, 16, 16 * widen, 1)  # never runs
        self.block2 = Stage(blocks, 16 * widen, 32 * widen, 2)
        self.block3 = Stage(blocks, 32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, 3)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.bn1(x).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("blocks", [4, 5])
def test_a_wideresnet_of_trades(blocks, path):
    torch.manual_seed(0)
    theirs, ours = Wide(blocks, 2).eval(), WideResNet(6 * blocks + 4, 2).eval()
    images = torch.rand(2, 3, 8, 8)
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    state = prefixed(theirs.state_dict(), "module.")
    found = load_classifier(ours, saved({"state_dict": state}, path), classes=["a", "b", "c"])
    with torch.no_grad():
        torch.testing.assert_close(found.classifier(images), theirs(images), rtol=1e-4, atol=1e-4)
