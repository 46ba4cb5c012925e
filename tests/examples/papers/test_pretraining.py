"""From a plan to its trained method: what is trained on, what is read back, and by what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advcl import AdvCL
from advssl.evaluation.data import InMemory, open_data, targets
from harness import chain, plans, pretraining
from reproduce import METHODS, parse, plan_of

from . import tiny
from .tiny import never, opened

# --- what is trained on ---------------------------------------------------------------------------


def test_a_limit_takes_as_many_of_each_class_and_leaves_the_rest_alone():
    whole, cut = (chain.open_plan(tiny.plan("simclr", "--limit", n)) for n in ("0", "60"))
    assert sorted(targets(cut.train)) == sorted([*range(10)] * 6)
    assert len(targets(whole.train)) > 1000
    assert targets(cut.validation) == targets(whole.validation)
    assert targets(cut.test) == targets(whole.test)


def test_the_seed_is_of_the_weights_and_not_of_the_data():
    one, other = (tiny.plan("simclr", "--seed", seed) for seed in "01")
    (first, images), (second, same) = opened(one), opened(other)
    assert images.train.indices == same.train.indices
    assert not tiny.same(first.state_dict(), second.state_dict())
    assert tiny.same(first.state_dict(), opened(one)[0].state_dict())


def test_unlabelled_images_are_for_those_who_read_no_labels():
    data = open_data("digits", image_size=8)
    more = InMemory(torch.rand(5, 3, 8, 8), torch.full((5,), -1))
    data = replace(data, unlabelled=more)
    simclr, at = (opened(tiny.plan(name))[0] for name in ("simclr", "at"))
    assert len(chain.training_images(simclr, data)) == len(targets(data.train)) + 5
    assert chain.training_images(at, data) is data.train


def test_presentations_are_of_whole_batches(tmp_path):
    plan = tiny.plan("simclr", "--epochs", "2", "--batch-size", "25")
    assert tiny.train(plan, tmp_path).told["presentations"] == 2 * 50


def test_unlabelled_images_are_presented_too(tmp_path):
    plan = tiny.plan("simclr")
    data = chain.open_plan(plan)
    more = InMemory(torch.rand(25, 3, 8, 8), torch.full((25,), -1))
    found = chain.pretrained(plan, METHODS, replace(data, unlabelled=more), tmp_path)
    assert found.told["presentations"] == 80


@pytest.mark.parametrize("name", ["fare", "deacl", "advcl"])
def test_what_is_trained_first_has_its_own_schedule_where_the_method_has(name):
    """FARE's two epochs at a rate of 1e-5 would leave its teacher as it began."""
    method, first = opened(tiny.plan(name))[0], METHODS["simclr"].recipe

    def recipe(*words):
        plan = plan_of(name, parse([name, "--data", "digits", *words]), {})
        return plans.before(plan, method, METHODS).recipe, plan.recipe

    paper = ("--preset", "paper")
    assert recipe(*paper)[0] == first
    half = str(method.recipe.epochs // 2)
    assert recipe(*paper, "--epochs", half)[0] == replace(first, epochs=first.epochs // 2)
    assert recipe(*paper, "--epochs", "1")[0].epochs == first.epochs / method.recipe.epochs
    assert recipe(*paper, "--batch-size", "7")[0] == replace(first, batch_size=7)
    for words in (["--preset", "quick"], ["--preset", "look"], [*paper, "--recipe", "bui-adam"]):
        earlier, own = recipe(*words)
        assert earlier == own


def test_batches_that_cannot_be_are_refused_before_any_work(tmp_path):
    plan = tiny.plan("simclr")
    with pytest.raises(ValueError, match="batch of 61 needs as many training images, there are 60"):
        tiny.train(replace(plan, recipe=replace(plan.recipe, batch_size=61)), tmp_path)
    with pytest.raises(ValueError, match="batch of 20 cannot be shared equally by 3 devices"):
        tiny.train(plan, tmp_path, devices=3)
    assert not list(tmp_path.iterdir())


def test_unknown_attacks_are_refused():
    with pytest.raises(ValueError, match=r"attacks are pgd, .*, aa, got fgsm"):
        tiny.plan("simclr", "--attacks", "pgd,fgsm")


# --- read back ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a trained GSA-RSL, and what was said of it."""
    out = tmp_path_factory.mktemp("done")
    return out, tiny.train(tiny.plan("gsa_rsl"), out)


@pytest.mark.slow
def test_what_was_trained_is_read_back(done, monkeypatch):
    out, first = done
    monkeypatch.setattr(pretraining, "pretrain", never)
    again = tiny.train(tiny.plan("gsa_rsl", "--protocol", "alf", "--num-images", "5"), out)
    assert again.told == first.told
    assert tiny.same(tiny.weights(again), tiny.weights(first))
    # The default, said aloud, is the same run.
    said = tiny.train(tiny.plan("gsa_rsl", "--rho", str(again.method.settings.rho)), out)
    assert tiny.same(tiny.weights(said), tiny.weights(first))


@pytest.mark.parametrize(
    "other", ["--rho 0.5", "--seed 1", "--limit 80", "--epochs 2", "--mode paper", "--width 3"]
)
def test_another_run_is_another_folder(other, done, monkeypatch):
    monkeypatch.setattr(pretraining, "pretrain", never)
    with pytest.raises(AssertionError, match="work was begun"):
        tiny.train(tiny.plan("gsa_rsl", *other.split()), done[0])


def changed(data, index):
    """The same training images, one of them inverted."""
    images = torch.stack([1 - x if i == index else x for i, (x, _) in enumerate(data.train)])
    return replace(data, train=InMemory(images, torch.tensor(targets(data.train))))


@pytest.mark.parametrize("index", [0, 1, 30, 59])
def test_any_other_image_is_another_run(index):
    plan = tiny.plan("simclr")
    data = chain.open_plan(plan)
    method = chain.build(plan, METHODS["simclr"], data)

    def identity(images):
        return pretraining._identity(plan, method, images)

    assert identity(changed(data, index).train) != identity(changed(data, None).train)
    assert identity(data.train) == identity(chain.open_plan(plan).train)


def test_another_package_is_another_run(done, monkeypatch):
    monkeypatch.setattr(pretraining, "pretrain", never)
    monkeypatch.setattr("advssl.evaluation.identity._source", lambda: "other code")
    with pytest.raises(AssertionError, match="work was begun"):
        tiny.train(tiny.plan("gsa_rsl"), done[0])


def test_a_damaged_file_is_trained_again(tmp_path):
    first = tiny.weights(tiny.train(tiny.plan("simclr"), tmp_path))
    (path,) = tmp_path.rglob("method.pt")
    path.write_bytes(path.read_bytes()[:-500])
    assert tiny.same(tiny.weights(tiny.train(tiny.plan("simclr"), tmp_path)), first)


@pytest.fixture
def given(monkeypatch):
    """The methods that ``prepare`` is given, beside their features."""
    found, prepare = [], AdvCL.prepare

    def noted(self, before, features):
        found.append(before)
        prepare(self, before, features)

    monkeypatch.setattr(AdvCL, "prepare", noted)
    return found


@pytest.mark.slow
def test_the_method_of_the_clusters_is_trained_first_and_once(tmp_path, monkeypatch, given):
    trained, pretrain = [], pretraining.pretrain

    def noted(method, *args, **options):
        trained.append(type(method).__name__)
        return pretrain(method, *args, **options)

    monkeypatch.setattr(pretraining, "pretrain", noted)
    found = tiny.train(tiny.plan("advcl"), tmp_path)
    tiny.train(tiny.plan("gsa_on_advcl"), tmp_path)
    simclr = tiny.train(tiny.plan("simclr"), tmp_path)
    assert trained == ["SimCLR", "AdvCL", "GSAOnAdvCL"]
    assert len(given) == 2
    assert all(tiny.same(before.state_dict(), tiny.weights(simclr)) for before in given)
    assert found.told["before"] == {"method": "simclr", **simclr.told}
    # The labels are k-means of its features, in the order of the training images.
    data = chain.open_plan(tiny.plan("advcl"))
    method = chain.build(tiny.plan("advcl"), METHODS["advcl"], data)
    method.prepare(simclr.method, chain.features(simclr.method, data.train))
    assert torch.equal(found.method.clusters.pseudo_labels, method.clusters.pseudo_labels)


def test_random_weights_are_measured_without_a_trace(tmp_path):
    plan = tiny.plan("gsa_rsl", "--epochs", "0")
    found = tiny.train(plan, tmp_path)
    assert tiny.same(tiny.weights(found), opened(plan)[0].state_dict())
    assert found.told == {"presentations": 0}
    assert not list(tmp_path.iterdir())


def test_features_are_in_order_in_eval_mode_and_on_the_methods_own_branch():
    method, data = opened(tiny.plan("gsa_rsl"))
    for norm in method.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    images = torch.stack([x for x, _ in data.train])
    encoder, other = (e.eval() for e in chain.encoders(method).values())
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in method.pixels)
    found = chain.features(method, data.train)
    torch.testing.assert_close(found, encoder((images - mean) / std))
    assert not torch.allclose(found, other((images - mean) / std))
    assert not found.requires_grad
    assert method.training
    assert tiny.same(method.state_dict(), before)


def test_what_is_counted_is_the_first_step(given):
    plan = tiny.plan("advcl")
    data = chain.open_plan(plan)
    method, batch = chain.first_step(plan, METHODS, replace(data, unlabelled=data.train))
    assert batch.images.shape == (20, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert method.clusters.pseudo_labels.shape == (120, 1)
    assert [type(before) for before in given] == [METHODS["simclr"]]
    assert all(term.isfinite() for term in method(batch).values())
