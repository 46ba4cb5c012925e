"""A file's own input normalisation is found, or the file refused."""

from __future__ import annotations

import argparse
import types

import pytest
import torch
from torch import nn

from advssl.evaluation.checkpoints import (
    load_encoder,
)
from evaluation.layouts import INPUT, prefixed, refuse, saved, tiny

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
SPELLINGS = [
    ("mean", "std"),
    ("mu", "sigma"),
    ("means", "sds"),
    ("_mean", "_std"),
    ("new_mean", "new_std"),
    ("MEAN", "STD"),
    ("inputMean", "inputStd"),
    ("pixelmean", "pixelstddev"),
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


BEFORE = {
    "BatchNorm": nn.BatchNorm2d(3, affine=False),
    "a channel each": nn.Conv2d(3, 3, 1, groups=3),
    "mixed channels": nn.Conv2d(3, 3, 1),
}


@pytest.mark.parametrize("layer", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize(("around", "prefix"), [("", None), ("", "1."), ("model.", "model.1.")])
def test_any_other_layer_before_the_encoder_is_refused(layer, around, prefix, path):
    state = prefixed(nn.Sequential(layer, tiny()).state_dict(), around)
    message = rf"has {around}0\..* in a layer before the encoder"
    refuse(tiny(), saved(state, path), message, prefix=prefix)


def test_one_before_a_sequential_around_the_encoder_is_refused_too(path):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(tiny(), nn.Linear(4, 2)))
    refuse(tiny(), saved(net.state_dict(), path), "in a layer before the", prefix="1.0.")


@pytest.mark.parametrize("names", [("shift", "scale"), ("offset", "divisor"), ("sub", "div")])
@pytest.mark.parametrize("at", ["", "0.", "normalize."])
def test_two_values_per_channel_under_any_name_are_refused(names, at, path):
    state = with_layer(MEAN, STD, at, names)
    refuse(tiny(), saved(state, path), "looks like an input normalisation", prefix="1.")


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
        {"config": {"data": {"normalize": {"Mean": MEAN.tolist(), "Std": STD.tolist()}}}},
        {"transforms": [{"size": 32}, {"mean": MEAN.tolist(), "std": STD.tolist()}]},
        {"mean": [*MEAN.double().numpy()], "std": [*STD.numpy()]},
        {"mean": [*MEAN], "std": (*STD.double(),)},
        {"args": argparse.Namespace(mean=MEAN.tolist(), std=STD.tolist())},
        {"cfg": types.SimpleNamespace(data=argparse.Namespace(mean=[*MEAN], std=[*STD]))},
    ],
    ids=[
        "lists",
        "array",
        "nested",
        "settings",
        "deep",
        "in a list",
        "numpy's numbers",
        "torch's numbers",
        "namespace",
        "namespaces",
    ],
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
        {"dictionary": torch.rand(3, 16)},
        {"a.mean": torch.zeros(1).expand(10**9), "a.std": torch.ones(1).expand(10**9)},
        {"a.mean": torch.zeros(1).expand(1, 10**9, 1, 1)},
        prefixed(tiny().state_dict(), "0."),
        {"2.0.weight": torch.ones(3), "2.0.bias": torch.ones(3)},
    ],
    ids=[
        "BatchNorm",
        "VAE",
        "critic",
        "discriminator",
        "latent",
        "number",
        "matrix",
        "large",
        "larger",
        "another encoder",
        "behind",
    ],
)
def test_what_is_no_input_layer(others, path):
    state = {**prefixed(tiny().state_dict(), "1."), **others}
    assert load_encoder(tiny(), saved(state, path), prefix="1.").normalization is None


@pytest.mark.parametrize("place", ["", "data"])
def test_a_normalisation_in_settings_of_omegaconf(place, path):
    omegaconf = pytest.importorskip("omegaconf")
    settings = {"mean": MEAN.tolist(), "std": STD.tolist(), "missing": "???", "none": None}
    settings = omegaconf.OmegaConf.create({place: settings} if place else settings)
    content = {"state_dict": tiny().state_dict(), "hyper_parameters": settings}
    report = load_encoder(tiny(), saved(content, path))
    torch.testing.assert_close(torch.tensor(report.normalization), torch.stack([MEAN, STD]))


def test_a_mean_that_is_its_std_too(path):
    half = (0.5, 0.5, 0.5)
    content = {"state_dict": tiny().state_dict(), "settings": {"mean": half, "std": half}}
    assert load_encoder(tiny(), saved(content, path)).normalization == (half, half)


def test_a_normalisation_of_one_channel_beside_the_weights(path):
    grey = nn.Conv2d(1, 4, 3)
    content = {"state_dict": grey.state_dict(), "mean": [0.1307], "std": [0.3081]}
    report = load_encoder(nn.Conv2d(1, 4, 3), saved(content, path))
    assert report.normalization == ((0.1307,), (0.3081,))


def test_results_beside_the_weights_are_no_input_layer(path):
    content = {"state_dict": tiny().state_dict(), "accuracy": {"mean": 0.9, "std": 0.01}}
    assert load_encoder(tiny(), saved(content, path)).normalization is None


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
