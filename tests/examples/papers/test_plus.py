"""DynACL++: an encoder on its own clusters, in its two stages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advssl import Linf
from advssl.evaluation.data import InMemory
from advssl.pixels import Pixels
from harness import chain, pretraining
from harness.method import IMAGENET
from plus import FINETUNING, PROBING, Named, plus_plus
from reproduce import METHODS, main

from . import tiny

# Three kinds of images, which random features tell apart.
KINDS = torch.arange(24) % 3
SHORT = {
    "clusters": 3,
    "natural": False,
    "ball": Linf(0.05),
    "probing": replace(PROBING, epochs=2, batch_size=12),
    "finetuning": replace(FINETUNING, epochs=2, batch_size=12, decays=(1,)),
}


def images(labels=KINDS):
    torch.manual_seed(1)
    return InMemory((0.1 * torch.rand(24, 3, 4, 4) + 0.3 * KINDS.view(-1, 1, 1, 1)), labels)


def encoder():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())


def weights(module):
    return torch.cat([v.flatten().double() for v in module.state_dict().values()])


def test_no_label_is_read():
    one, other = (plus_plus(encoder(), images(y), **SHORT) for y in (KINDS, KINDS.flip(0)))
    assert torch.equal(weights(one), weights(other))


def test_it_gives_a_copy_and_takes_nothing_from_what_it_was_given():
    given = encoder().train()
    dataset, before = images(), weights(given)
    drawn = torch.get_rng_state()
    better = plus_plus(given, dataset, **SHORT)
    assert torch.equal(weights(given), before)
    assert given.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [type(m) for m in better] == [type(m) for m in given]
    assert not torch.equal(weights(better), before)
    assert all(not p.requires_grad for p in better.parameters())
    assert not better.training


def test_written_out():
    """The linear layer from zero on the frozen encoder in eval mode, then TRADES on both."""
    seen, pixels = [], Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    alone = {
        **SHORT,
        "natural": True,
        "finetuning": replace(SHORT["finetuning"], epochs=1, learning_rate=1e-30),
    }
    better = plus_plus(
        encoder(), images(), pixels=pixels, **alone, progress=lambda *told: seen.append(told)
    )
    # A rate of nothing leaves the weights; BatchNorm has seen clean and attacked images.
    for name, p in encoder().named_parameters():
        torch.testing.assert_close(better.get_parameter(name), p)
    assert better[1].num_batches_tracked == 2 * 2
    assert [done for stage, done, _ in seen if stage == "training"] == [1, 2, 3, 4, 1, 2]


def test_the_linear_layer_starts_at_zero():
    """So a first step on all images, without probing before it, leaves the encoder where it was."""
    first = {
        **SHORT,
        "probing": replace(PROBING, epochs=1, learning_rate=0.0),
        "finetuning": replace(FINETUNING, epochs=1, weight_decay=0.0),
    }
    better = plus_plus(encoder(), images(), **first)
    for name, p in encoder().named_parameters():
        assert torch.equal(better.get_parameter(name), p)


def test_clusters_are_of_another_network_if_it_is_given():
    """Of one that sees which of two pixels is brighter, and no kind."""

    class Brighter(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0] - x[:, 0, 1, 1], x[:, 0, 0, 0] * 0], dim=1)

    two = {**SHORT, "clusters": 2}
    own, others = plus_plus(encoder(), images(), **two), plus_plus(
        encoder(), images(), clustered=Brighter(), **two
    )  # fmt: skip
    assert not torch.equal(weights(own), weights(others))


def test_afterwards_its_clusters_are_withstood_better():
    """What it is for, on images whose clusters are their kinds."""
    longer = {**SHORT, "finetuning": replace(FINETUNING, epochs=8, batch_size=8, decays=(6,))}
    before = encoder().eval()
    after = plus_plus(encoder(), images(), **longer)

    def margin(net):
        x = torch.stack([image for image, _ in images()])
        with torch.no_grad():
            z = F.normalize(net(x), dim=1)
            means = F.normalize(torch.stack([z[k == KINDS].mean(0) for k in range(3)]), dim=1)
            near = z @ means.T
            own = near[torch.arange(24), KINDS]
            near[torch.arange(24), KINDS] = -2
            return (own - near.amax(1)).mean()

    assert margin(after) > margin(before) + 0.1


def test_killed_it_goes_on(tmp_path):
    whole = plus_plus(encoder(), images(), **SHORT)

    def stop(stage, done, of):
        if (stage, done, of) == ("training", 3, 4) and len(list(tmp_path.glob("probe-*"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plus_plus(encoder(), images(), **SHORT, folder=tmp_path, progress=stop)
    again = []
    better = plus_plus(
        encoder(), images(), **SHORT, folder=tmp_path, progress=lambda *told: again.append(told)
    )
    assert torch.equal(weights(better), weights(whole))
    assert [done for stage, done, _ in again if stage == "training"] == [3, 4]


def test_the_released_settings():
    assert (PROBING.epochs, PROBING.learning_rate, PROBING.rate(9)) == (10, 0.01, 0.01)
    assert (PROBING.batch_size, PROBING.weight_decay) == (512, 1e-4)
    assert [FINETUNING.rate(e) for e in (0, 10, 20)] == pytest.approx([0.1, 0.01, 0.001])
    assert (FINETUNING.epochs, FINETUNING.batch_size, FINETUNING.weight_decay) == (25, 512, 1e-4)
    assert (FINETUNING.loss, FINETUNING.trains_encoder, PROBING.trains_encoder) == (
        "trades",
        True,
        False,
    )


def test_named_has_its_labels():
    named = Named(images(), torch.arange(24))
    assert len(named) == 24
    image, label = named[5]
    assert label == 5
    assert torch.equal(image, images()[5][0])


# --- the chain ------------------------------------------------------------------------------------


def test_the_chain_finetunes_the_adversarial_batchnorm_on_the_clean_one_s_clusters(
    tmp_path, monkeypatch
):
    plan = tiny.plan("acl", "--plus")
    data = chain.open_plan(plan)
    method, told = chain.build(plan, METHODS["acl"], data), {}
    nn.init.constant_(method.encoder.bn1["adversarial"].bias, 7.0)

    def instead(encoder, images, **more):
        told.update(more, encoder=encoder, images=images)
        return encoder

    monkeypatch.setattr(chain, "plus_plus", instead)
    chain.improve(plan, method, data, tmp_path, lambda *_: None)
    assert (told["encoder"].bn1.bias == 7).all()
    assert (told["clustered"].bn1.bias == 0).all()
    assert told["images"] is data.train
    assert (told["natural"], told["ball"]) == (False, Linf(0.1))
    assert told["pixels"] == Pixels(*IMAGENET)
    assert (told["probing"].batch_size, told["finetuning"].batch_size) == (20, 20)
    assert list(chain.encoders(method)) == [""]
    assert (chain.encoders(method)[""].bn1.bias == 7).all()


def test_pretraining_is_the_same_before_it(tmp_path, monkeypatch):
    plain = tiny.train(tiny.plan("simclr"), tmp_path)

    def never(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(pretraining, "pretrain", never)
    assert tiny.same(
        tiny.weights(tiny.train(tiny.plan("simclr", "--plus"), tmp_path)), tiny.weights(plain)
    )


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["dynacl", "simclr"])
def test_a_whole_chain(name, tmp_path):
    main(tiny.words(name, "--plus", "--out", str(tmp_path)))
    (folder,) = tmp_path.glob(f"{name}-*")
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert record["plan"]["plus"]
    assert {p.name for p in folder.iterdir()} == {"record.json", "encoder.pt"}
