"""Small networks, and a synthetic checkpoint of each format that holds one."""

from __future__ import annotations

import argparse
import copy
import pathlib

import pytest
import torch
from torch import nn

from advssl.evaluation.checkpoints import (
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


def wrapped(_, own):
    """RobustBench's: a module that normalises, then its network, here of a Lightning module too."""
    state = {**prefixed(own, "model."), "mu": INPUT["normalize.mean"].view(1, 3, 1, 1)}
    state |= {"sigma": INPUT["normalize.std"].view(1, 3, 1, 1), "model.linear.weight": HEAD}
    return {"state_dict": state}, {}, {"prefix": "model.", "place": "state_dict"}


LAYOUTS = (plain, lightly, moco, moco_v3, dino, solo, acl, dynacl, advcl, gsa, wrapped)
