"""Every layout loads to the last bit, or is refused with the reason and the encoder untouched."""

from __future__ import annotations

import argparse
import copy
import pathlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from advssl import branch_batchnorm, keep_branch
from advssl.evaluation.checkpoints import (
    FORMATS,
    NAMINGS,
    LoadReport,
    bn_branches,
    load_encoder,
)
from advssl.integrations.cifar import NoIdentityResNet

timm_resnet = pytest.importorskip("timm.models.resnet")


def small(block="BasicBlock", seed=0, **options) -> nn.Module:
    """timm's ResNet, 4 to 8 channels, with a shortcut; every tensor random."""
    torch.manual_seed(seed)
    net = timm_resnet.ResNet(
        getattr(timm_resnet, block),
        layers=(1, 1, 1, 1),
        channels=(4, 8, 8, 8),
        stem_width=4,
        **{"num_classes": 0, **options},
    )
    return randomised(net)


def randomised(net: nn.Module) -> nn.Module:
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
        else:
            value.fill_(7)
    return net


def network(make, block="BasicBlock", seed=0) -> nn.Module:
    """A small network of the kind that a layout is of."""
    if make is not gsa:
        return small(block, seed)
    torch.manual_seed(seed)
    return randomised(NoIdentityResNet(width=4, blocks=(1, 1, 1, 1)))


def tiny(**options) -> nn.Module:
    """A convolution of three channels and a BatchNorm."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.BatchNorm2d(4), nn.Flatten())


def norms(net: nn.Module) -> set[str]:
    return {name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def renamed(tensors, *pairs):
    """Names with the first of each pair replaced by the second; dots at both ends are kept."""
    out = {}
    for name, value in tensors.items():
        for old, new in pairs:
            name = f".{name}".replace(f".{old}.", f".{new}.").removeprefix(".")
        out[name] = value
    return out


def branched(net: nn.Module, tensors, spelled: str, sets: int):
    """Each BatchNorm as often as there are sets; set i holds the values plus i."""
    out = {}
    for name, value in tensors.items():
        norm, _, tensor = name.rpartition(".")
        if norm not in norms(net):
            out[name] = value
            continue
        for i in range(sets):
            out[f"{norm}{spelled.format(i)}.{tensor}"] = value + i
    return out


def of_set(net: nn.Module, i: int):
    """What the encoder holds once set i of :func:`branched` is loaded."""
    return {
        name: value + i if name.rpartition(".")[0] in norms(net) else value
        for name, value in net.state_dict().items()
    }


def saved(content, path: pathlib.Path) -> pathlib.Path:
    torch.save(content, path)
    return path


def same(encoder: nn.Module, expected) -> bool:
    found = encoder.state_dict()
    return set(found) == set(expected) and all(torch.equal(found[k], expected[k]) for k in found)


def refuse(encoder: nn.Module, path, match: str, **options) -> str:
    """The message of a refusal that left the encoder as it was."""
    before = copy.deepcopy(encoder.state_dict())
    versions = [p._version for p in encoder.parameters()]
    with pytest.raises(ValueError, match=match) as caught:
        load_encoder(encoder, path, **options)
    assert same(encoder, before)
    assert [p._version for p in encoder.parameters()] == versions
    return str(caught.value)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "checkpoint.pt"


# --- one synthetic checkpoint per format ----------------------------------------------------------

CONV_SHORTCUT = (("downsample.0", "downsample.conv"), ("downsample.1", "downsample.bn"))
INPUT = {
    "normalize.mean": torch.tensor([0.1, 0.2, 0.3]),
    "normalize.std": torch.tensor([0.4, 0.5, 0.6]),
}
HEAD = torch.ones(3, 8)
HEADS = [
    *("fc", "fc_002", "head", "heads", "linear", "classifier", "online_classifier"),
    *("projection_head", "projector", "head_proj", "projection_head_momentum", "student_head"),
    *("momentum_projector", "prediction_head", "predictor", "prototypes", "prototypes0"),
    *("queue", "queue_ptr", "memory_bank", "discriminator"),
]


def plain(_, own):
    return own, {}, {"prefix": "", "place": ""}


def lightly(_, own):
    state = {
        **prefixed(own, "backbone."),
        **prefixed({k: v + 9 for k, v in own.items()}, "backbone_momentum."),
        "projection_head.layers.0.weight": HEAD,
        "criterion.memory_bank.bank": HEAD,
    }
    content = {
        "state_dict": state,
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": {"lr": 0.1},
    }
    return content, {}, {"prefix": "backbone.", "place": "state_dict"}


def moco(_, own):
    state = {
        **prefixed(own, "module.encoder_q."),
        **prefixed({k: v + 9 for k, v in own.items()}, "module.encoder_k."),
        "module.encoder_q.fc.0.weight": HEAD,
        "module.queue": HEAD,
        "module.queue_ptr": torch.zeros(1, dtype=torch.long),
    }
    return {"state_dict": state, "arch": "resnet50"}, {}, {"prefix": "module.encoder_q."}


def moco_v3(_, own):
    state = {
        **prefixed(own, "module.base_encoder."),
        **prefixed({k: v + 9 for k, v in own.items()}, "module.momentum_encoder."),
        "module.base_encoder.fc.0.weight": HEAD,
        "module.predictor.0.weight": HEAD,
    }
    return {"state_dict": state}, {}, {"prefix": "module.base_encoder."}


def dino(_, own):
    content = {
        "student": prefixed({k: v + 9 for k, v in own.items()}, "module.backbone."),
        "teacher": {**prefixed(own, "module.backbone."), "module.head.mlp.0.weight": HEAD},
        "args": argparse.Namespace(lr=0.1, output=pathlib.Path("/out")),
        "epoch": 100,
    }
    return content, {}, {"prefix": "module.backbone.", "place": "teacher"}


def solo(_, own):
    state = {
        **prefixed(own, "encoder."),
        **prefixed({k: v + 9 for k, v in own.items()}, "momentum_encoder."),
        "projector.0.weight": HEAD,
        "classifier.weight": HEAD,
        "queue": HEAD,
    }
    return {"state_dict": state}, {}, {"prefix": "encoder."}


def acl(net, own):
    state = renamed(branched(net, own, ".bn_list.{}", 2), *CONV_SHORTCUT)
    state |= {**INPUT, "fc.fc1.weight": HEAD, "fc.bn1.bn_list.0.weight": HEAD}
    return {"state_dict": state, "epoch": 1000}, {"bn_branch": "pgd"}, {"bn_branch": "pgd"}


def dynacl(net, own):
    ema = renamed(branched(net, own, ".bn_list.{}", 2), *CONV_SHORTCUT)
    ema |= {**INPUT, "fc.fc1.weight": HEAD}
    state = {
        **prefixed(ema, "encoder_k."),
        **prefixed({k: v + 9 for k, v in ema.items()}, "encoder_q."),
    }
    return {"state_dict": state, "optim": {}}, {"bn_branch": "pgd"}, {"prefix": "encoder_k."}


def advcl(net, own):
    state = renamed(branched(net, own, ".bn_list.{}", 3), *CONV_SHORTCUT)
    state |= {"fc_002.weight": HEAD, "head_ce.0.weight": HEAD, "head_proj.1.running_mean": HEAD}
    content = {"model": prefixed(state, "module."), "epoch": 5, "rng_state": torch.get_rng_state()}
    return content, {"bn_branch": "pgd"}, {"prefix": "module.", "place": "model"}


def gsa(net, own):
    state = branched(net, own, ".{}", 2)
    state = {**prefixed(state, "encoder."), **prefixed(INPUT, "encoder.")}
    state |= {"head.0.weight": HEAD, "fc.weight": HEAD}
    content = {
        "args": argparse.Namespace(lr=0.5),
        "model": state,
        "discriminator": {"net.0.weight": HEAD},
        "d_optimizer": None,
    }
    return content, {"bn_branch": "adversarial"}, {"bn_branch": "adversarial", "place": "model"}


LAYOUTS = (plain, lightly, moco, moco_v3, dino, solo, acl, dynacl, advcl, gsa)


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


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, checkpointed])
def test_the_encoder_may_be_wrapped(wrap, path):
    theirs, encoder = small(), small(seed=1)
    load_encoder(wrap(encoder), saved(theirs.state_dict(), path))
    found = {
        k.replace("_checkpoint_wrapped_module.", ""): v for k, v in encoder.state_dict().items()
    }
    assert all(torch.equal(value, found[name]) for name, value in theirs.state_dict().items())


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


# --- encoders as people have them -----------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("encoder", value) for value in (None, {}, [nn.ReLU()], nn.Conv2d)),
        *(("path", value) for value in (None, 3, {"a": 1}, tiny())),
        *(("format", value) for value in (None, 3, ["plain"], "simclr", b"plain")),
        *(("prefix", value) for value in (3, b"a.", ["a."], True)),
        *(("bn_branch", value) for value in (3, 0, b"clean", ["clean"])),
        *(("allow_partial", value) for value in (None, 1, "yes")),
    ],
)
def test_arguments_of_the_wrong_type_are_named(argument, value, path):
    saved(tiny().state_dict(), path)
    arguments = {"encoder": tiny(), "path": path, argument: value}
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        load_encoder(arguments.pop("encoder"), arguments.pop("path"), **arguments)


# --- the file's own normalisation -----------------------------------------------------------------

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
SPELLINGS = [
    ("mean", "std"),
    ("mu", "sigma"),
    ("means", "sds"),
    ("_mean", "_std"),
    ("new_mean", "new_std"),
    ("pixel_mean", "pixel_std"),
    ("mean_tensor", "std_tensor"),
]
PLACES = [  # of the layer, of the encoder, prefix=
    ("0.", "1.", "1."),
    ("normalize.", "model.", "model."),
    ("normalizer.", "net.backbone.", "net.backbone"),
    ("", "net.", "net."),
    ("nets.normalize.", "nets.encoder.", "nets.encoder."),
    ("module.0.", "module.1.", "1."),
    ("0.", "1._orig_mod.", "1."),
    ("normalize.", "", None),
    ("backbone.normalize.", "backbone.", None),
    ("normalize.", "backbone.", None),
    ("preprocess.0.", "encoder.", "encoder."),
]


def with_layer(mean, std, at="0.", names=("mean", "std"), encoder="1."):
    layer = {at + names[0]: mean, at + names[1]: std}
    return {**prefixed(tiny().state_dict(), encoder), **layer}


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1), (3, 1, 1)])
@pytest.mark.parametrize("names", SPELLINGS, ids="-".join)
@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p[0]} {p[1]}")
def test_an_input_layer_is_found_wherever_it_stands(place, names, shape, path):
    at, encoder, prefix = place
    state = with_layer(MEAN.view(shape), STD.view(shape), at, names, encoder)
    for content in (state, {"state_dict": state}):
        report = load_encoder(tiny(), saved(content, path), prefix=prefix)
        torch.testing.assert_close(torch.tensor(report.normalization), torch.stack([MEAN, STD]))
        assert {at + name for name in names} <= set(report.ignored)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (torch.tensor([0.5]), torch.tensor([0.25]), ([0.5] * 3, [0.25] * 3)),
        (torch.tensor(0.5), STD, ([0.5] * 3, STD)),
        (MEAN * 255, STD * 255, (MEAN, STD)),
        (MEAN * 255, torch.ones(3), (MEAN, torch.ones(3) / 255)),
        (torch.zeros(3), torch.full((3,), 255.0), (torch.zeros(3), torch.ones(3))),
        (torch.tensor([124, 116, 104]), torch.tensor([58, 57, 57]), None),
        (MEAN.double(), STD.half(), (MEAN, STD.half())),
        (torch.zeros(3), torch.ones(3), (torch.zeros(3), torch.ones(3))),
    ],
    ids=["one number", "mixed", "grey levels", "Caffe", "scaling", "integers", "types", "none"],
)
def test_numbers_of_an_input_layer_are_for_images_in_0_1(mean, std, expected, path):
    report = load_encoder(tiny(), saved(with_layer(mean, std), path), prefix="1.")
    expected = expected or (mean / 255, std / 255)
    for found, wanted in zip(report.normalization, expected, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.as_tensor(wanted).float())


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (MEAN, torch.zeros(3)),
        (MEAN, -STD),
        (MEAN * torch.nan, STD),
        (MEAN, STD * torch.inf),
        (MEAN * 1000, STD),
        (torch.rand(3, 32, 32), torch.rand(3, 32, 32)),
        (torch.rand(1, 3, 32, 32), STD),
    ],
    ids=["zero", "negative", "NaN", "inf", "large", "per pixel", "mean image"],
)
def test_an_input_layer_that_cannot_be_told_is_refused(mean, std, path):
    refuse(tiny(), saved(with_layer(mean, std), path), "0.mean", prefix="1.")


@pytest.mark.parametrize("name", ["0.mean", "0.std", "mu", "normalize.shift", "0.scale"])
def test_half_an_input_layer_is_refused(name, path):
    state = {**prefixed(tiny().state_dict(), "1."), name: MEAN.view(1, 3, 1, 1)}
    refuse(tiny(), saved(state, path), f"{name} .*looks like an input normalisation", prefix="1.")


def test_several_input_layers(path):
    state = with_layer(MEAN, STD) | {"outer.mean": MEAN, "outer.std": STD}
    assert load_encoder(tiny(), saved(state, path), prefix="1.").normalization is not None
    state["outer.mean"] = MEAN / 2
    refuse(tiny(), saved(state, path), "in several ways: 0.mean, 0.std, outer.mean", prefix="1.")


def test_the_input_layer_of_the_encoder_that_is_loaded(path):
    state = with_layer(MEAN, STD, "encoder_k.normalize.", encoder="encoder_k.")
    state |= with_layer(MEAN / 2, STD, "encoder_q.normalize.", encoder="encoder_q.")
    for prefix, mean in (("encoder_k.", MEAN), ("encoder_q.", MEAN / 2)):
        report = load_encoder(tiny(), saved(state, path), prefix=prefix)
        torch.testing.assert_close(torch.tensor(report.normalization[0]), mean)


@pytest.mark.parametrize(
    "beside",
    [
        {"mean": MEAN.tolist(), "std": STD.tolist()},
        {"mean": tuple(MEAN.tolist()), "std": STD.double().numpy()},
        {"normalize": {"mean": MEAN, "std": STD}},
        {"pretrained_cfg": {"mean": tuple(MEAN.tolist()), "std": tuple(STD.tolist())}},
    ],
    ids=["lists", "array", "nested", "settings"],
)
@pytest.mark.parametrize("place", ["state_dict", "model"])
def test_a_normalisation_beside_the_weights(place, beside, path):
    report = load_encoder(tiny(), saved({place: tiny().state_dict(), **beside}, path))
    torch.testing.assert_close(torch.tensor(report.normalization), torch.stack([MEAN, STD]))


@pytest.mark.parametrize(
    "others",
    [
        {"bn.running_mean": MEAN, "bn.running_var": STD},
        {"vae.fc_mu.weight": torch.ones(3), "vae.fc_mu.bias": torch.ones(3)},
        {"critic.mean": MEAN, "critic.std": STD},
        {"discriminator.mu": MEAN, "discriminator.sigma": STD},
        {"latent.mean": torch.zeros(128), "latent.std": torch.ones(128)},
        {"loss.mean": torch.tensor([2.5])},
        {"0.mean": torch.zeros(1).expand(10**9), "0.std": torch.ones(1).expand(10**9)},
        {"0.mean": torch.zeros(1).expand(1, 10**9, 1, 1)},
    ],
    ids=["BatchNorm", "VAE", "critic", "discriminator", "latent", "number", "large", "larger"],
)
def test_what_is_no_input_layer(others, path):
    state = {**prefixed(tiny().state_dict(), "1."), **others}
    assert load_encoder(tiny(), saved(state, path), prefix="1.").normalization is None


def test_results_beside_the_weights_are_no_input_layer(path):
    content = {"state_dict": tiny().state_dict(), "accuracy": {"mean": 0.9, "std": 0.01}}
    assert load_encoder(tiny(), saved(content, path)).normalization is None


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


def test_a_counter_too_many_is_no_stranger(path):
    """torchvision's FrozenBatchNorm2d has weight, bias and statistics, and no count."""
    frozen = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), frozen(4))
    report = load_encoder(encoder, saved(theirs.state_dict(), path))
    assert report.ignored == ("1.num_batches_tracked",)


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


# --- refusals -------------------------------------------------------------------------------------


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


# --- the report -----------------------------------------------------------------------------------


def test_the_report_reads_well(path):
    theirs = network(gsa)
    content, options, _ = gsa(theirs, theirs.state_dict())
    report = load_encoder(network(gsa, seed=1), saved(content, path), **options)
    assert str(report).splitlines() == [
        "72 tensors loaded as \"gsa\" in 'model' behind 'encoder.'",
        "BatchNorm branch: adversarial",
        "ignored: bn1 (5), layer1 (10), layer2 (15), layer3 (15), layer4 (15), normalize (2), "
        "head (1), fc (1), args (1), discriminator (1), d_optimizer (1)",
        "the file's encoder normalises its input: mean 0.1, 0.2, 0.3; std 0.4, 0.5, 0.6",
    ]
    mean, std = report.normalization
    assert mean == pytest.approx((0.1, 0.2, 0.3))
    assert std == pytest.approx((0.4, 0.5, 0.6))


def test_an_input_layer_of_the_encoder_is_filled(path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.normalize = nn.Module()
            self.normalize.register_buffer("mean", torch.zeros(3))
            self.normalize.register_buffer("std", torch.ones(3))

    encoder = Whole()
    report = load_encoder(encoder, saved(INPUT, path))
    assert report.normalization is None
    assert torch.equal(encoder.normalize.mean, INPUT["normalize.mean"])


def test_the_report_is_a_value():
    report = LoadReport("plain", "", "", 3)
    assert str(report) == '3 tensors loaded as "plain"'
    assert report == LoadReport("plain", "", "", 3)
    with pytest.raises(AttributeError):
        report.loaded = 4
