"""Protocols train what they say, leave the encoder alone, and repeat with the seed."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.fx
from bars import SHORT, bars, encoder_of_bars, equal_states, images_of, stopping
from borrowed import Trace
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import Subset, TensorDataset

from advssl.balls import Linf
from advssl.evaluation.attacks import PGD, batch_seed, measure
from advssl.evaluation.data import Data, batches
from advssl.evaluation.logits import logits_of
from advssl.evaluation.probes import (
    PRESETS,
    accuracy,
    finetune,
    protocol,
    untrained,
)
from advssl.pixels import IMAGENET, Pixels
from precision import default_dtype, low_precision


@pytest.fixture
def data() -> Data:
    return bars()


@pytest.fixture
def bars_encoder() -> nn.Module:
    return encoder_of_bars()


def test_photographs_without_augmentation_are_forwarded_once(data, bars_encoder):
    how = replace(SHORT, augments=False)
    plain = finetune(bars_encoder, data, how)
    photographs = finetune(bars_encoder, replace(data, natural=True), how)
    assert torch.equal(plain.last.linear.weight, photographs.last.linear.weight)
    augmented = finetune(bars_encoder, replace(data, natural=True), SHORT)
    assert not torch.equal(plain.last.linear.weight, augmented.last.linear.weight)
    assert [p.augments for p in PRESETS["standardised"].values()] == [False, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("natural", [False, True])
def test_learns_and_leaves_the_encoder_alone(data, bars_encoder, loss, whole, natural):
    trace, state = Trace(bars_encoder), torch.get_rng_state()
    how = replace(SHORT, loss=loss, trains_encoder=whole, learning_rate=0.05)
    ticks = []
    found = finetune(
        bars_encoder, replace(data, natural=natural), how, progress=lambda *told: ticks.append(told)
    )
    classifier, history = found.last, found.history
    trace.assert_none()
    assert torch.equal(torch.get_rng_state(), state)
    assert len(history) == 6
    assert {what for what, *_ in ticks} <= {"features", "training"}
    trained = [told for told in ticks if told[0] == "training"]
    assert trained == [("training", done, 6 * 3) for done in range(1, 6 * 3 + 1)]
    assert history[-1] > 0.7
    assert accuracy(classifier, data.test) > 0.7
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    same = all(
        torch.equal(p, q)
        for p, q in zip(classifier.encoder.parameters(), bars_encoder.parameters(), strict=True)
    )
    assert same != whole
    moved = not torch.equal(classifier.encoder[1].running_mean, bars_encoder[1].running_mean)
    assert moved == whole  # a frozen encoder's BatchNorm does not adapt either


def test_features_made_once_train_as_images_do(data, bars_encoder, monkeypatch):
    """The shortcut for a frozen encoder is no other protocol."""

    fast = finetune(bars_encoder, data, SHORT).last
    monkeypatch.setattr("advssl.evaluation.training._shifted_and_mirrored", lambda images: images)
    slow = finetune(bars_encoder, replace(data, natural=True), SHORT).last
    torch.testing.assert_close(fast.linear.weight, slow.linear.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_classifier(data, bars_encoder):
    def weights(seed):
        found = finetune(bars_encoder, data, replace(SHORT, loss="pgd"), seed=seed)
        return found.last.linear.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.slow
def test_adversarial_finetuning_is_more_robust(data, bars_encoder):
    ball = Linf(0.25)
    whole = replace(SHORT, epochs=15, trains_encoder=True, learning_rate=0.05)
    robust = {}
    for loss in ("ce", "trades"):
        classifier = finetune(bars_encoder, data, replace(whole, loss=loss), ball=ball).last
        robust[loss] = measure(classifier, PGD(ball, 10, None), batches(data.test, 30)).value
    assert robust["trades"] > robust["ce"] + 0.1


class TestBest:
    @pytest.mark.slow
    @pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
    @pytest.mark.parametrize("whole", [False, True])
    def test_has_the_highest_score_and_its_epochs_weights(self, data, bars_encoder, loss, whole):
        how = replace(SHORT, loss=loss, trains_encoder=whole, decays=())
        ball = Linf(0.2)
        found = finetune(bars_encoder, data, how, ball=ball)
        assert len(found.history) == how.epochs
        assert found.best_epoch == 1 + found.history.index(max(found.history))
        assert found.history[found.best_epoch - 1] == self.score(found.best, data, loss, ball)
        assert found.history[-1] == self.score(found.last, data, loss, ball)
        shorter = finetune(bars_encoder, data, replace(how, epochs=found.best_epoch), ball=ball)
        assert equal_states(found.best, shorter.last)
        assert (found.best.encoder is found.last.encoder) == (not whole)
        assert not any(p.requires_grad for p in found.best.parameters())
        assert not found.best.training

    @staticmethod
    def score(classifier, data, loss, ball):
        """What is documented, measured on its own."""
        if loss == "ce":
            return accuracy(classifier, data.validation)
        (images, labels) = batches(data.validation, 30)[0]
        attack = PGD(ball, 10, ball.radius / 4)
        found = attack.search(classifier, images, labels, seed=batch_seed(0, 0))
        return int(found.correct.sum()) / 30

    def test_is_selected_on_the_test_images_by_the_released_preset_alone(self, data, bars_encoder):
        how = replace(protocol("released", "slf"), batch_size=32)
        how = replace(how, epochs=6, learning_rate=0.1, reads="standard")
        found = finetune(bars_encoder, data, how, ball=Linf(0.1))
        (images, labels) = batches(data.test, 60)[0]
        attack = PGD(Linf(0.1), 20, 0.025)
        kept = attack.search(found.best, images, labels, seed=batch_seed(0, 0)).correct
        assert max(found.history) == int(kept.sum()) / 60
        blind = replace(data, test=images_of(60, 10))
        honest = replace(how, selects="validation")
        assert finetune(bars_encoder, blind, how, ball=Linf(0.1)).history != found.history
        a, b = (finetune(bars_encoder, d, honest, ball=Linf(0.1)) for d in (data, blind))
        assert a.history == b.history


ODD = {
    "one left over": {"count": 17, "batch_size": 16},
    "one in each batch": {"count": 3, "batch_size": 1},
    "one in all": {"count": 1, "batch_size": 16},
    "one of each class": {"count": 3, "batch_size": 16},
}


@pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("odd", ODD)
def test_a_batch_of_one_ends_no_training(data, loss, whole, odd):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4))
    size = ODD[odd]["batch_size"]
    how = replace(SHORT, epochs=2, batch_size=size, loss=loss, trains_encoder=whole)
    data = replace(data, train=images_of(ODD[odd]["count"], 0), natural=True)
    ticks = []
    found = finetune(encoder, data, how, progress=lambda *told: ticks.append(told))
    assert len(found.history) == 2
    assert found.last(data.test.images).isfinite().all()
    steps = ODD[odd]["count"] if size == 1 else 1
    assert ticks[-1] == ("training", 2 * steps, 2 * steps)


@pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_training_that_diverged_is_no_result(data, bars_encoder, tmp_path, loss, whole):
    how = replace(SHORT, loss=loss, trains_encoder=whole, learning_rate=1e38, reads="raw")
    advice = r"not finite.*in epoch \d of 6: the training diverged.*lower learning rate than 1e\+38"
    for _ in range(2):
        with pytest.raises(ValueError, match=advice):
            finetune(bars_encoder, data, how, folder=tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("whole", [False, True])
def test_features_that_are_not_finite_are_refused(data, bars_encoder, value, whole):
    with torch.no_grad():
        bars_encoder[-1].bias[0] = value
    with pytest.raises(ValueError, match="encoder's features are not finite"):
        finetune(bars_encoder, data, replace(SHORT, trains_encoder=whole))


class Answers(nn.Module):
    """An encoder whose answer is made otherwise."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.layer, self.answer = nn.Conv2d(3, 4, 3), answer

    def forward(self, images):
        return self.answer(self.layer(images), self.training)


def pooled(maps):
    return maps.mean((2, 3))


@pytest.mark.parametrize(
    "answer",
    [
        lambda z, _: z.mean((2, 3), keepdim=True),
        lambda z, _: (pooled(z),),
        lambda z, _: {"features": pooled(z)},
        lambda z, _: pooled(z).double(),
    ],
)
def test_an_answer_with_one_meaning_is_read(data, answer):
    plain = Answers(lambda z, _: pooled(z))
    odd = Answers(answer)
    odd.load_state_dict(plain.state_dict())
    for how in (SHORT, replace(SHORT, trains_encoder=True, reads="raw", epochs=2)):
        found, expected = (finetune(e, data, how).last for e in (odd, plain))
        torch.testing.assert_close(found(data.test.images), expected(data.test.images))


@pytest.mark.parametrize("loss", ["ce", "pgd"])
@pytest.mark.parametrize("whole", [False, True])
def test_an_answer_without_its_batch_of_one_is_read(data, loss, whole):
    plain, odd = Answers(lambda z, _: pooled(z)), Answers(lambda z, _: pooled(z).squeeze())
    odd.load_state_dict(plain.state_dict())
    single = replace(data, validation=Subset(data.validation, [0]))
    how = replace(SHORT, loss=loss, trains_encoder=whole, reads="raw", batch_size=1, epochs=1)
    found, expected = (finetune(e, single, how).last for e in (odd, plain))
    one = data.test.images[:1]
    torch.testing.assert_close(found(one), expected(one))
    torch.testing.assert_close(logits_of(nn.Sequential(odd), one), logits_of(plain, one))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_an_encoder_without_gradient_is_read_and_not_trained(data, mode, loss):
    encoder = Answers(lambda z, _: pooled(z))
    encoder.forward = mode()(encoder.forward)
    finetune(encoder, data, replace(SHORT, epochs=1))
    how = replace(SHORT, trains_encoder=True, reads="raw", loss=loss)
    with pytest.raises(ValueError, match="its features have no gradient; let it answer without"):
        finetune(encoder, data, how)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda z, _: z, r"must answer floating.*\(2, 4, 4, 4\); pool"),
        (lambda z, _: z.flatten(2), r"\(2, 4, 16\); pool"),
        (lambda z, _: (pooled(z), z), r"one tensor .*tuple of"),
        (lambda z, _: pooled(z).long(), "got torch.int64"),
        (lambda z, _: pooled(z).numpy(force=True), "got a ndarray"),
        (lambda z, train: pooled(z)[:, : 3 if train else 4], r"in train and in eval.*\(32, 3\)"),
        (lambda z, _: pooled(z)[:1], r"features \(32, 4\) to 32 images"),
        (lambda z, _: pooled(z)[:, :0], r"must answer floating.*\(2, 0\)"),
        (lambda z, _: pooled(z).detach(), "its features have no gradient; let it answer without"),
        (lambda z, _: z.view(7, 7), r"broke down on images of \(3, 6, 6\): shape"),
    ],
)
def test_another_answer_is_refused_with_what_was_seen(data, answer, complaint):
    with pytest.raises(ValueError, match=complaint):
        finetune(Answers(answer), data, replace(SHORT, trains_encoder=True, reads="raw"))


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"encoder": torch.flatten}, "encoder must be a torch.nn.Module"),
        ({"data": "digits"}, "data must be a Data, got 'digits'"),
        ({"how": "slf"}, "how must be a Protocol, got 'slf'"),
    ],
)
def test_what_is_of_another_kind_is_named(data, bars_encoder, asked, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}"):
        finetune(**{"encoder": bars_encoder, "data": data, "how": SHORT, **asked})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_encoder_of_another_precision_is_probed_in_float32(data, bars_encoder, dtype):
    odd = copy.deepcopy(bars_encoder).to(dtype)
    found, expected = (finetune(e, data, SHORT).last for e in (odd, copy.deepcopy(odd).float()))
    assert equal_states(found, expected)
    assert odd[0].weight.dtype == dtype


def scripted(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.jit.script(model)


WRAPPED = {
    "scripted": scripted,
    "traced": torch.fx.symbolic_trace,
    "in parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of dynamo's own
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("loss", ["ce", "pgd"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_wrapped_encoder_is_probed_as_itself(data, bars_encoder, tmp_path, wrapped, loss, whole):
    how = replace(SHORT, loss=loss, trains_encoder=whole, reads="raw", epochs=2)
    expected = finetune(bars_encoder, data, how)
    odd = WRAPPED[wrapped](copy.deepcopy(bars_encoder))
    for _ in range(2):
        found = finetune(odd, data, how, folder=tmp_path)
        x = data.test.images
        torch.testing.assert_close(found.last(x), expected.last(x), rtol=1e-4, atol=1e-5)
    assert len(list(tmp_path.glob("probe-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "around",
    [
        default_dtype,
        low_precision,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu"),
        torch.no_grad,
        torch.inference_mode,
    ],
)
@pytest.mark.parametrize("loss", ["ce", "trades"])
@pytest.mark.parametrize("whole", [False, True])
def test_what_torch_is_set_to_changes_nothing(data, bars_encoder, around, loss, whole):
    how = replace(SHORT, loss=loss, trains_encoder=whole, epochs=2)
    data = replace(data, natural=True)
    expected = finetune(bars_encoder, data, how)
    with around():
        found = finetune(bars_encoder, data, how)
    assert equal_states(found.last, expected.last)
    assert found.history == expected.history


def test_weights_that_torch_remembers_are_computed_anew(data, bars_encoder):
    how = replace(SHORT, trains_encoder=True, epochs=2)
    layer = next(m for m in bars_encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    nn.utils.parametrizations.weight_norm(layer)
    expected = finetune(bars_encoder, data, how)
    with parametrize.cached():
        bars_encoder.eval()(data.test.images)
        found = finetune(bars_encoder, data, how)
    assert found.history == expected.history
    assert equal_states(found.last, expected.last)


class TestPixels:
    def test_are_mean_and_std(self, data, bars_encoder):
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        found = finetune(bars_encoder, data, SHORT, pixels=Pixels(mean, std))
        assert equal_states(
            found.last, finetune(bars_encoder, data, SHORT, mean=mean, std=std).last
        )
        neutral = finetune(bars_encoder, data, SHORT, pixels=Pixels())
        assert equal_states(neutral.last, finetune(bars_encoder, data, SHORT).last)
        assert not equal_states(found.last, neutral.last)

    @pytest.mark.parametrize(
        ("said", "complaint"),
        [
            ({"pixels": IMAGENET, "mean": (0.5,) * 3}, "says mean and std; give it alone"),
            ({"pixels": IMAGENET, "std": (0.5,) * 3}, "says mean and std; give it alone"),
            ({"pixels": Pixels(bounds=(0, 255))}, r"of images in \[0, 1\].*255"),
            ({"pixels": (0.5, 0.5)}, "must be Pixels.*got .*tuple"),
        ],
    )
    def test_said_twice_or_in_another_unit_are_refused(self, data, bars_encoder, said, complaint):
        with pytest.raises(ValueError, match=complaint):
            finetune(bars_encoder, data, SHORT, **said)


class TestParts:
    @pytest.mark.parametrize("part", ["train", "validation", "test"])
    @pytest.mark.parametrize("bad", [-1, 3])
    def test_a_label_that_is_no_class_is_refused_before_the_work(
        self, data, bars_encoder, part, bad
    ):
        getattr(data, part).targets[5] = bad
        with pytest.raises(ValueError, match=rf"labels of data.{part} must be from 0 to 2.*{bad}"):
            finetune(bars_encoder, data, SHORT, progress=stopping(0))

    def test_of_a_dataset_that_knows_its_labels_only_with_its_images(self, data, bars_encoder):
        labels = torch.tensor([0, 1, -1, 2])
        train = TensorDataset(torch.rand(4, 3, 6, 6), labels)
        with pytest.raises(ValueError, match="classes from 0 on, got -1"):
            finetune(bars_encoder, replace(data, train=train), SHORT)

    @pytest.mark.parametrize(("part", "selects"), [("train", "validation"), ("test", "test")])
    def test_one_without_images_is_named(self, data, bars_encoder, part, selects):
        data = replace(data, **{part: images_of(0, 0)})
        with pytest.raises(ValueError, match=f"data.{part} holds no image"):
            finetune(bars_encoder, data, replace(SHORT, selects=selects))

    @pytest.mark.slow
    @pytest.mark.parametrize("loss", ["ce", "pgd"])
    def test_without_validation_images_the_last_epoch_is_the_best(
        self, data, bars_encoder, tmp_path, loss
    ):
        blind, how = replace(data, validation=images_of(0, 0)), replace(SHORT, loss=loss)
        for _ in range(2):
            found = finetune(bars_encoder, blind, how, folder=tmp_path)
            assert found.best_epoch == len(found.history) == 6
            assert all(math.isnan(score) for score in found.history)
            assert equal_states(found.best, found.last)
        assert equal_states(found.last, finetune(bars_encoder, data, how).last)


def test_a_classifier_survives_a_state_dict(data, bars_encoder):
    how = protocol("standardised", "slf")
    classifier = finetune(bars_encoder, data, replace(how, epochs=2)).last
    again = untrained(copy.deepcopy(bars_encoder), data, how, None, None)
    again.load_state_dict(classifier.state_dict())
    images = data.test.images
    assert torch.equal(again.eval()(images), classifier(images))
