"""A catalogue of wrong calls: of every public door, by argument, what does not fit."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

import advssl
from advssl import doctor, monitors
from advssl.evaluation import corruptions, divergences, embeddings, evaluate
from advssl.evaluation.anchors import class_terms, per_anchor
from advssl.evaluation.attacks import (
    PGD,
    MultiTargetedPGD,
    attacks_of,
    class_balanced,
    measure,
    transfer,
)
from advssl.evaluation.checkpoints import bn_branches, load_encoder
from advssl.evaluation.classifiers import load_classifier
from advssl.evaluation.curves import curves
from advssl.evaluation.data import Data, InMemory, Stream, open_data
from advssl.evaluation.diagnostics import doubts
from advssl.evaluation.divergences import clouds
from advssl.evaluation.fisher import fisher_information
from advssl.evaluation.images import read_image
from advssl.evaluation.inversion import inversions
from advssl.evaluation.linear import Classifier, accuracy
from advssl.evaluation.probes import finetune
from advssl.evaluation.protocols import protocol
from advssl.evaluation.records import Measurement, Threat
from advssl.evaluation.statistics import compare, wilson
from advssl.evaluation.surfaces import input_surface, weight_surface
from advssl.evaluation.theory import MeanClassifier, info_nce, robust_bounds, told_apart
from advssl.gallery import columns
from advssl.guards import attacked_values
from advssl.integrations import lightning
from advssl.integrations.timm import backbone
from advssl.types import described

PACKAGE = Path(advssl.__file__).parent
SIZE, WIDTH = 4, 6


class Said(NamedTuple):
    """A wrong value, and what an error must say of it where that is not the value itself."""

    value: Any
    seen: str


@dataclass(frozen=True)
class Wrong:
    """A call whose one wrong argument is ``argument``.

    Attributes:
        named: what an error must call it.
        value: what it is.
        seen: of these, one at least must be in the error.
    """

    door: str
    call: Callable[[], Any]
    argument: str
    named: str
    value: Any
    seen: frozenset[str]

    def __repr__(self) -> str:
        return f"{self.door}({self.argument}={_shown(self.value)})"


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).partition('.')[2]}{list(value.shape)}"
    text = repr(value)
    return text if len(text) < 30 and " at 0x" not in text else type(value).__name__


NO_NUMBER = (None, "8", [8.0], True, torch.ones(2), 1j)
NO_VALUE = torch.ones((), device="meta")
NO_FLAG = (None, "yes", 2, torch.ones(2))
NO_WHOLE = (None, "3", 2.5, True, [3])
NO_SEED = (*NO_WHOLE, -(2**63) - 1, 2**64)
NO_FOLDER = (3, ["x"], __file__, Path(__file__) / "x")
NO_MODULE = (None, "encoder", torch.ones(2))
NOT_POSITIVE = (0.0, -0.1, float("nan"), float("inf"))
NO_IMAGES = (
    None,
    "images",
    torch.rand(3, 8, 8),
    torch.rand(0, 3, 8, 8),
    torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
)
NO_EMBEDDINGS = (
    None,
    [[0.0] * WIDTH] * SIZE,
    torch.ones(WIDTH),
    torch.ones(SIZE, WIDTH, 1, 1),
    torch.ones(0, WIDTH),
    torch.ones(SIZE, WIDTH, dtype=torch.int64),
    torch.ones(SIZE, WIDTH).to_sparse(),
)
ELSEWHERE = torch.ones(SIZE, WIDTH, device="meta")  # than what it is computed with
NO_LABELS = (
    [0, 1, 2, 0],
    torch.zeros(SIZE),
    torch.zeros(SIZE - 1, dtype=torch.int64),
    torch.rand(SIZE, 3),
    torch.ones(SIZE, dtype=torch.bool),
)
NO_CLASSES = (*NO_LABELS, Said(torch.arange(SIZE) - 1, "got -1"))


WELL = dict.fromkeys(("spread", "effective_rank", "knn_clean", "knn_fast", "knn_pgd"), 0.5)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, WIDTH))


def classifier() -> nn.Module:
    return model().eval()


def images() -> torch.Tensor:
    return torch.rand(SIZE, 3, 8, 8)


def labels() -> torch.Tensor:
    return torch.arange(SIZE) % 2


def z() -> torch.Tensor:
    return torch.randn(SIZE, WIDTH)


def batches() -> list:
    return [(images(), labels())]


def probe() -> Classifier:
    return Classifier(nn.Flatten(), 192, 2)


def head() -> advssl.ClusterFitHead:
    made = advssl.ClusterFitHead(WIDTH, (2,))
    made.fit(torch.randn(SIZE, 5))
    return made


def loss(views: torch.Tensor) -> torch.Tensor:
    return views.square().mean()


@cache
def digits():
    return open_data("digits", image_size=8)


class Photographs(list):
    """What torchvision's datasets give without a transform."""

    targets = (0, 1)

    def __init__(self) -> None:
        super().__init__((Image.new("RGB", (8, 8)), label) for label in self.targets)


def instead(**parts: Any) -> Data:
    """Data of which one part is wrong."""
    right = InMemory(images(), labels())
    named = {"train": right, "validation": right, "test": right, **parts}
    return Data("wrong", ("a", "b"), **named, natural=False)


def measured(n: int = 3) -> Measurement:
    return Measurement(
        name="clean",
        correct=(True,) * n,
        seed=0,
        settings={},
        dataset="0" * 16,
        commit=None,
        machine={},
    )


def spent(loss: torch.Tensor) -> torch.Tensor:
    """As closures of optimizers return it."""
    torch.autograd.backward(loss)
    return loss


def setting(make: Callable[[], Any], name: str) -> Callable[..., Any]:
    """A door that sets an attribute."""
    return lambda **value: setattr(make(), name, value[name])


# By door: what is called, its right arguments, and by argument what is wrong.
DOORS: dict[str, tuple[Callable[..., Any], Callable[[], Mapping[str, Any]], dict[str, tuple]]] = {
    "Linf": (advssl.Linf, dict, {"radius": (*NO_NUMBER, *NOT_POSITIVE, NO_VALUE)}),
    "L2": (advssl.L2, dict, {"radius": (*NO_NUMBER, *NOT_POSITIVE, NO_VALUE)}),
    "Linf.resized": (advssl.Linf(0.1).resized, dict, {"radius": ("8", *NOT_POSITIVE)}),
    "Pixels": (
        advssl.Pixels,
        lambda: {"mean": (0.5,) * 3, "std": (0.25,) * 3},
        {
            "mean": (None, 0.5, "0.5", (0.5, 0.5), (0.5, 0.5, "x"), (127.0,) * 3),
            "std": (None, 0.25, "x", (0.25,), (0.25, 0.25, 0.0), (0.25, 0.25, float("nan"))),
            "bounds": (1.0, "01", (0.0,), (1.0, 0.0), (0.0, float("nan")), (0.0, None)),
        },
    ),
    "Ramp": (
        advssl.Ramp,
        lambda: {"start": 0.0, "end": 1.0, "epochs": 10},
        {
            "start": (None, "0", float("nan")),
            "end": (None, [1.0], float("inf")),
            "epochs": (None, "10", *NOT_POSITIVE),
            "begin": (None, "0", float("inf")),
            "stages": ("2", 0, 1.5, -1),
        },
    ),
    "Ramp.__call__": (
        advssl.Ramp(0.0, 1.0, epochs=10),
        dict,
        {"epoch": (None, "3", [3], float("nan"))},
    ),
    "AdversarialViewGenerator": (
        advssl.AdversarialViewGenerator,
        dict,
        {
            "ball": (None, 8 / 255, "linf", advssl.Linf, advssl.L2),
            "ball as wider": (advssl.Linf(8.0),),
            "steps": (*NO_WHOLE, -1),
            "step_size": ("2", [0.1], True, *NOT_POSITIVE),
            "start": (None, "random", 0, [0.0]),
            "clamp_start": NO_FLAG,
            "zerograd": (None, "x", -0.1, 1.0, float("nan")),
            "bounds": (1.0, (1.0, 0.0), (0.0, 0.5, 1.0)),
            "mean": (0.5, (0.5,) * 3),
            "std": (0.5, (0.5,) * 3),
            "pixels": ((0.5, 0.5), "imagenet", 255),
        },
    ),
    "AdversarialViewGenerator.radius": (
        setting(advssl.AdversarialViewGenerator, "radius"),
        dict,
        {"radius": (None, "8", *NOT_POSITIVE, 8.0)},
    ),
    "AdversarialViewGenerator.steps": (
        setting(advssl.AdversarialViewGenerator, "steps"),
        dict,
        {"steps": (None, 2.5, -1)},
    ),
    "AdversarialViewGenerator.step_size": (
        setting(advssl.AdversarialViewGenerator, "step_size"),
        dict,
        {"step_size": ("2", -1.0)},
    ),
    "AdversarialViewGenerator.bounds": (
        setting(advssl.AdversarialViewGenerator, "bounds"),
        dict,
        {"bounds": (1.0, (1.0, 0.0))},
    ),
    "AdversarialViewGenerator.forward": (
        advssl.AdversarialViewGenerator(steps=1),
        lambda: {"images": images(), "objective": loss},
        {
            "images": (
                *NO_IMAGES,
                images().half(),
                Said(images() + 1, "got [1"),
                Said(images() * torch.nan, "got [nan, nan]"),
                [],
                {},
            ),
            "objective": (
                None,
                torch.ones(()),
                Said(lambda _: None, "got None"),
                Said(lambda v: v.detach().mean(), "has no gradient in any view"),
                Said(lambda v: v.mean(dim=(1, 2)), "of shape (4, 8)"),
                Said(lambda v: v.mean() * torch.nan, "is not finite at step 1 of 1"),
                Said(lambda v: int(v.mean()), "got 0"),
                Said(lambda _: torch.ones((), requires_grad=True), "has no gradient in any view"),
                Said(lambda v: spent(v.square().mean()), "without calling backward"),
            ),
            "freeze": (
                "encoder",
                3,
                [None],
                Said([*model().parameters()], "got torch.float32 of shape (4, 3, 3, 3)"),
            ),
            "generator": (0, "seed"),
            "start": ("zero", torch.zeros(2, 3, 8, 8), torch.zeros(SIZE, 3, 8, 8, dtype=torch.int)),
        },
    ),
    **{
        view.__name__: (
            view,
            dict,
            {
                "radius": (*NO_NUMBER, -1.0, float("nan"), float("inf")),
                "unit": (None, "pixels", 1, ["pixel"]),
                "p": (None, "x", -0.1, 1.1, float("nan")),
                "same_on_batch": NO_FLAG,
                "keepdim": NO_FLAG,
            },
        )
        for view in (advssl.HighFreqView, advssl.LowFreqView)
    },
    "HighFreqView.forward": (
        advssl.HighFreqView(),
        dict,
        {
            "input as images": (
                None,
                "x",
                torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
                torch.rand(3),
                torch.rand(1, 1, 3, 8, 8),
            )
        },
    ),
    "GlobalDivergenceCritic": (
        advssl.GlobalDivergenceCritic,
        lambda: {"in_features": WIDTH},
        {
            "in_features": (*NO_WHOLE, 0, -1),
            "hidden_features": (None, 4, "4", (4.5,), (0,)),
            "divergence": (None, "JS", "hellinger", ["js"]),
        },
    ),
    "GlobalDivergenceCritic.forward": (
        advssl.GlobalDivergenceCritic(WIDTH),
        dict,
        {"z": (*NO_EMBEDDINGS, torch.ones(SIZE, WIDTH + 1), ELSEWHERE)},
    ),
    "GlobalDivergenceCritic.estimate": (
        advssl.GlobalDivergenceCritic(WIDTH).estimate,
        lambda: {"benign": z(), "adversarial": z()},
        {
            "benign": (*NO_EMBEDDINGS, torch.ones(SIZE, WIDTH + 1), ELSEWHERE),
            "adversarial": (*NO_EMBEDDINGS, torch.ones(SIZE, WIDTH + 1), ELSEWHERE),
        },
    ),
    "SAMWrapper": (
        lambda modules=None, **given: advssl.SAMWrapper(*(modules or [model()]), **given),
        dict,
        {
            "modules": ([None], ["encoder"], [torch.ones(2)]),
            "rho": (*NO_NUMBER, -0.1, float("nan"), float("inf"), NO_VALUE),
            "adaptive": NO_FLAG,
        },
    ),
    "SAMWrapper.forward": (
        advssl.SAMWrapper(_sam := model()),
        lambda: {"closure": lambda: _sam(images()).square().mean()},
        {
            "closure": (
                None,
                torch.ones(()),
                Said(lambda: None, "got None"),
                Said(lambda: 1.0, "got 1.0"),
                Said(lambda: torch.ones(2), "of shape (2,)"),
                Said(lambda: torch.ones(()), "requires_grad=False"),
                Said(lambda: _sam(images()).mean().detach(), "requires_grad=False"),
            ),
            "closure as loss": (
                Said(lambda: torch.ones((), requires_grad=True), "depends on no parameter"),
                Said(lambda: spent(_sam(images()).square().mean()), "without calling backward"),
            ),
            "loss as closure": (
                1.0,
                "x",
                Said(torch.ones(()), "requires_grad=False"),
                torch.ones(2, requires_grad=True),
            ),
            "rng_state": (0, torch.get_rng_state()),
        },
    ),
    "ClusterFitHead": (
        advssl.ClusterFitHead,
        lambda: {"in_features": WIDTH},
        {
            "in_features": (*NO_WHOLE, 0),
            "num_clusters": (None, 10, "10", (), (1,), (2, 2), (2.5,), ("2",)),
        },
    ),
    "ClusterFitHead.fit": (
        lambda **given: advssl.ClusterFitHead(WIDTH, (2,)).fit(**given),
        lambda: {"features": torch.randn(SIZE, 5)},
        {
            "features": (
                None,
                [[1.0]],
                torch.ones(SIZE),
                torch.ones(SIZE, 5, dtype=torch.int64),
                torch.ones(SIZE, 5, 1, 1),
                Said(torch.randn(SIZE, 5) * torch.nan, "got inf or nan"),
            ),
            "seed": NO_SEED,
        },
    ),
    "ClusterFitHead.forward": (
        head(),
        lambda: {"embeddings": z(), "index": torch.arange(SIZE)},
        {
            "embeddings": (*NO_EMBEDDINGS, torch.ones(SIZE, WIDTH + 1)),
            "index": (
                *NO_LABELS,
                Said(torch.arange(SIZE) + 1, "got 1 to 4"),
                Said(torch.arange(SIZE) - 1, "got -1 to 2"),
            ),
            "reduction": (None, "average"),
        },
    ),
    "ClusterFitHead.fit, of too few": (
        advssl.ClusterFitHead(WIDTH, (2,)).fit,
        dict,
        {"features as clusters": (Said(torch.randn(1, 5), "got 1"),)},
    ),
    "ClusterFitHead.forward, not fitted": (
        advssl.ClusterFitHead(WIDTH, (2,)),
        lambda: {"embeddings": z()},
        {"index as this head": (Said(torch.arange(SIZE), "no pseudo-labels yet"),)},
    ),
    "ClusterFitHead.logits": (
        head().logits,
        dict,
        {"embeddings": (*NO_EMBEDDINGS, torch.ones(SIZE, WIDTH + 1), ELSEWHERE)},
    ),
    "ClusterFitHead.assign": (
        head().assign,
        dict,
        {
            "features": (
                None,
                torch.ones(5),
                torch.ones(SIZE, 4),
                Said(torch.full((1, 5), torch.inf), "inf or nan"),
            )
        },
    ),
    "ClusterFitHead.load_state_dict": (
        lambda **given: head().load_state_dict({**head().state_dict(), **given}),
        dict,
        {
            "pseudo_labels": (
                None,
                torch.zeros(SIZE, 1),
                Said(torch.full((SIZE, 1), 2), "got 2 to 2"),
                torch.zeros(3, 1, dtype=torch.int64),
            ),
            "centroids": (
                None,
                torch.zeros(2, 4),
                Said(torch.full((2, 5), torch.nan), "got inf or nan"),
            ),
            "fingerprint": (None, "x", torch.zeros(3), torch.zeros(2, dtype=torch.int64)),
        },
    ),
    "LocalSelectionSupCon": (
        advssl.LocalSelectionSupCon,
        dict,
        {
            "selection": (None, "local", 3, ["hard"]),
            "temperature": (*NO_NUMBER, *NOT_POSITIVE, torch.zeros(1), torch.tensor([-0.1])),
            "keep_twin": NO_FLAG,
            "reduction": (None, "average", True),
        },
    ),
    "LocalSelectionSupCon.forward": (
        advssl.LocalSelectionSupCon(),
        lambda: {
            "z": z(),
            "z_adv": z(),
            "labels": labels(),
            "predictions": labels(),
            "predictions_adv": labels(),
        },
        {
            "z": NO_EMBEDDINGS,
            "z_adv": (*NO_EMBEDDINGS, torch.ones(SIZE, 5), torch.ones(3, WIDTH), ELSEWHERE),
            "labels": (None, *NO_LABELS),
            "predictions": (Said(None, "got only one of them"), *NO_LABELS),
            "predictions_adv": (Said(None, "got only one of them"), *NO_LABELS),
        },
    ),
    "MultiViewNTXentLoss": (
        advssl.MultiViewNTXentLoss,
        dict,
        {
            "temperature": (*NO_NUMBER, *NOT_POSITIVE, torch.zeros(1), torch.tensor([torch.nan])),
            "positives": (None, "max", ["mean"]),
            "gather_distributed": NO_FLAG,
            "reduction": (None, "average", ["mean"]),
        },
    ),
    "MultiViewNTXentLoss.forward": (
        lambda view: advssl.MultiViewNTXentLoss()(z(), view),
        dict,
        {"view": (*NO_EMBEDDINGS, torch.ones(SIZE, 5), torch.ones(3, WIDTH), ELSEWHERE)},
    ),
    "branch_batchnorm": (
        advssl.branch_batchnorm,
        lambda: {"model": model()},
        {
            "model": (
                *NO_MODULE,
                Said(nn.Linear(1, 1), "has no BatchNorm to branch"),
                Said(advssl.branch_batchnorm(model()), "has BatchNorm branches already"),
            ),
            "branches": (None, "clean", (), ("a", "a"), (1, 2), ("a b",), ("weight.x",), ("keys",)),
        },
    ),
    "on_branch": (
        lambda **given: advssl.on_branch(**given).__enter__(),
        lambda: {"model": advssl.branch_batchnorm(model()), "name": "clean"},
        {
            "model": (*NO_MODULE, Said(model(), "has no BatchNorm branches")),
            "name as branch": (None, "pgd", 0, ["clean"]),
        },
    ),
    "keep_branch": (
        advssl.keep_branch,
        lambda: {"model": advssl.branch_batchnorm(model()), "name": "clean"},
        {
            "model": (*NO_MODULE, Said(model(), "has no BatchNorm branches")),
            "name as branch": (None, "pgd", 0, ["clean"]),
        },
    ),
    "frozen": (
        lambda frozen: advssl.frozen(frozen).__enter__(),
        dict,
        {"frozen": (None, "encoder", torch.ones(2))},
    ),
    "evaluating": (
        lambda evaluating: advssl.evaluating(evaluating).__enter__(),
        dict,
        {"evaluating": (None, "encoder", torch.ones(2))},
    ),
    "IndexedDataset": (
        advssl.IndexedDataset,
        dict,
        {"dataset": (None, 3, "digits", iter([1]), {1, 2})},
    ),
    "IndexedDataset.with_index": (
        advssl.IndexedDataset([1]).with_index,
        dict,
        {"collate_fn": (None, "default", 3)},
    ),
    "CatastrophicOverfittingGuard": (
        advssl.CatastrophicOverfittingGuard,
        lambda: {"adversary": advssl.AdversarialViewGenerator()},
        {
            "adversary": (None, advssl.Linf(0.1), "pgd"),
            "every": (*NO_WHOLE, 0),
            "least": (None, "x", 0.0, 1.0, float("nan")),
        },
    ),
    "attacked_values": (
        attacked_values,
        lambda: {
            "adversaries": [advssl.AdversarialViewGenerator(steps=1)],
            "images": images(),
            "objective": loss,
        },
        {
            "adversaries": (None, [None], advssl.AdversarialViewGenerator()),
            "images": NO_IMAGES,
            "objective": (Said(lambda _: None, "got None"),),
            "freeze": ("x", 3),
        },
    ),
    "CatastrophicOverfittingGuard.load_state_dict": (
        advssl.CatastrophicOverfittingGuard(advssl.AdversarialViewGenerator()).load_state_dict,
        dict,
        {
            "state_dict": (None, {}, {"calls": 3}),
            "state_dict as steps": (Said({"calls": 1, "highest": 1.0, "steps": "x"}, "got 'x'"),),
        },
    ),
    "Monitors": (
        monitors.Monitors,
        lambda: {
            "images": torch.rand(8, 3, 8, 8),
            "labels": torch.arange(8) % 2,
            "bank": images(),
            "bank_labels": labels(),
        },
        {
            "images": NO_IMAGES,
            "labels": (None, [0, 1] * 4, torch.zeros(8)),
            "labels as bank": (Said(torch.arange(8), "of label 2"),),
            "bank as images": NO_IMAGES,
            "bank": (torch.rand(SIZE, 3, 4, 4), torch.rand(SIZE, 1, 8, 8)),
            "bank_labels as labels": NO_CLASSES,
            "ball": (None, "linf"),
            "fast": ("fgsm", PGD()),
            "augment": ("flip", 3),
            "pixels": (None, "imagenet"),
            "temperature": (*NO_NUMBER, *NOT_POSITIVE),
            "seed": NO_SEED,
            "batch_size": (*NO_WHOLE, 0),
        },
    ),
    "Alarms": (
        monitors.Alarms,
        lambda: {"images": 8, "classes": 2},
        {"images": (*NO_WHOLE, 0), "classes": (*NO_WHOLE, 1)},
    ),
    "Alarms.__call__": (
        monitors.Alarms(8, 2),
        dict,
        {
            "seen": (None, {}, "knn", {**WELL, "branch_accuracy": 0.5}),
            "seen as knn_pgd": (
                Said(WELL | {"knn_pgd": "0.5"}, "got '0.5'"),
                Said(WELL | {"knn_pgd": float("nan")}, "got nan"),
            ),
        },
    ),
    "Alarms.load_state_dict": (
        monitors.Alarms(8, 2).load_state_dict,
        dict,
        {"state_dict": (None, {}, {"best": 3}, {"best": {"knn_pgd": 0.5}})},
    ),
    "soft_neighbours": (
        monitors.soft_neighbours,
        lambda: {"embeddings": z(), "bank": z(), "labels": labels()},
        {
            "embeddings": (*NO_EMBEDDINGS, torch.ones(SIZE, 5), ELSEWHERE),
            "bank": (*NO_EMBEDDINGS, torch.ones(SIZE, 5)),
            "bank as embeddings": (Said(ELSEWHERE, "must be on meta"),),
            "labels": NO_CLASSES,
            "temperature": (*NO_NUMBER, *NOT_POSITIVE),
        },
    ),
    **{
        measure.__name__: (measure, dict, {"embeddings": NO_EMBEDDINGS})
        for measure in (monitors.effective_rank, monitors.spread_of, monitors.uniformity)
    },
    "alignment": (
        monitors.alignment,
        lambda: {"one": z(), "other": z()},
        {"one": NO_EMBEDDINGS, "other": (*NO_EMBEDDINGS, torch.ones(SIZE, 5), ELSEWHERE)},
    ),
    "feature_deviation": (
        monitors.feature_deviation,
        lambda: {"benign": z(), "attacked": z()},
        {"benign": NO_EMBEDDINGS, "attacked": (*NO_EMBEDDINGS, torch.ones(3, WIDTH), ELSEWHERE)},
    ),
    "pairs_kept": (
        monitors.pairs_kept,
        lambda: {"labels": labels(), "predictions": labels()},
        {
            "labels": (None, [0, 1], torch.zeros(SIZE), torch.zeros(SIZE, 2)),
            "predictions": (None, *NO_LABELS),
            "selection": (None, "local", 3, ["hard"]),
        },
    ),
    "columns": (
        columns,
        lambda: {"step": loss, "batch": images()},
        {
            "step": (None, "step", Said(lambda _: None, "got None")),
            "batch": (None, [], torch.rand(3)),
            "adversary": ("pgd", PGD()),
            "view": ("x", 1),
            "images": (*NO_WHOLE, 0),
            "amplify": ("2", [2.0], *NOT_POSITIVE),
        },
    ),
    "examine": (
        doctor.examine,
        lambda: {"step": loss, "batch": images()},
        {
            "step": (
                None,
                "step",
                3,
                Said(lambda _: None, "got None"),
                Said(lambda v: v.mean(dim=(1, 2)), "of shape (4, 8)"),
                Said(lambda _: {}["loss"], "KeyError"),
            ),
            "batch": (None, [], 3, torch.rand(3), "images"),
            "adversary": ("pgd", advssl.Linf(0.1)),
            "views": (None, "first", (1,), (), (0.5,), 0),
            "freeze": ("x", 3, [None]),
            "loss_scale": (None, "x", *NOT_POSITIVE),
        },
    ),
    "costs": (
        doctor.costs,
        lambda: {"step": loss, "batch": images()},
        {
            "step": (None, "step", Said(lambda _: None, "got None")),
            "batch": (None, [], torch.rand(3)),
            "adversary": ("pgd", advssl.Linf(0.1)),
            "views": (None, "first", (1,), ()),
        },
    ),
    "evaluate": (
        evaluate,
        lambda: {"encoder_or_classifier": model().eval(), "data": digits(), "images": 4},
        {
            "encoder_or_classifier as an encoder or a classifier": (*NO_MODULE, {}, {"a": None}),
            "data": (None, "digits", 3, []),
            "data as data.train": (Said(instead(train=None), "got None"),),
            "data as sample 0": (Said(instead(test=Photographs()), "got a Image"),),
            "ball": (None, 8 / 255, "linf"),
            "ball as wider": (advssl.Linf(8.0),),
            "attacks as attack": (None, "pgd", ["fgsm"], [None], [3], 3),
            "probe as preset": ("knn",),
            "probe": (3, Said([], "must name one at least"), [None]),
            "pixels": (None, (0.5,), "imagenet"),
            "images": (*NO_WHOLE[1:], -1),
            "doubts": NO_FLAG,
            "curves": NO_FLAG,
            "beside": NO_FLAG,
            "measures": (None, "divergence", ["speed"], [None], 3),
            "seed": NO_SEED,
            "folder": NO_FOLDER,
            "progress": (3, "bar"),
            "budget": ("x", -1.0, float("nan"), [3]),
            "attack_seed": ("0", 2.5, 2**64),
            "batch_size": (*NO_WHOLE, 0),
            "model": ("resnet", 3),
            "command": (None, 3),
            "say": (3, "print"),
        },
    ),
    "PGD": (
        PGD,
        dict,
        {
            "ball": (None, 0.1, "linf", advssl.Linf),
            "steps": (*NO_WHOLE, -1),
            "step_size": ("x", *NOT_POSITIVE),
            "restarts": (*NO_WHOLE, 0),
        },
    ),
    "MultiTargetedPGD": (MultiTargetedPGD, dict, {"targets": ("x", 0, 2.5), "ball": ("linf",)}),
    "attacks_of": (
        attacks_of,
        lambda: {"names": ["pgd"], "ball": advssl.Linf(0.1)},
        {
            "names": (None, "pgd"),
            "names as attack": (["fgsm"], [3], [["pgd"]]),
            "ball": (None, "linf", 0.1),
        },
    ),
    "measure": (
        measure,
        lambda: {"classifier": classifier(), "attack": PGD(steps=1), "batches": batches()},
        {
            "classifier": NO_MODULE,
            "attack": (None, "pgd", PGD, 3),
            "batches": (None, 3),
            "batches as batch": (Said([], "give at least one"), [images()]),
            "batches as images": (
                Said([(images() * 255, labels())], "got [0."),
                Said([(images().half(), labels())], "got torch.float16"),
            ),
            "batches as labels": (
                Said([(images(), labels()[:2])], "of shape (2,)"),
                Said([(images(), labels().float())], "got torch.float32"),
                Said([(images(), labels() + 9)], "got 9 to 10"),
            ),
            "seed": NO_SEED,
            "folder": NO_FOLDER,
            "progress": (3,),
            "name": (3,),
            "population": ("x", 0, 2.5),
            "training_seed": ("x", 2.5, 2**64),
            "deadline": ("x",),
        },
    ),
    "transfer": (
        transfer,
        lambda: {"classifiers": {"a": classifier()}, "batches": batches(), "attack": PGD(steps=1)},
        {
            "classifiers": (None, classifier(), Said({}, "got 0"), Said({"a": None}, "got None")),
            "batches": (None,),
            "attack": (None, "pgd"),
            "seed": NO_SEED,
        },
    ),
    "class_balanced": (
        class_balanced,
        lambda: {"labels": labels(), "count": 2, "seed": 0},
        {
            "labels": (None, labels().float(), labels()[None]),
            "count": (0, 5, 2.5, "2"),
            "seed": NO_SEED,
        },
    ),
    "load_encoder": (
        load_encoder,
        lambda: {"encoder": model(), "path": "nowhere.pt"},
        {
            "encoder": NO_MODULE,
            "path": (None, 3),
            "path as nowhere.pt": ("nowhere.pt", Path("nowhere.pt")),
            "path as directory": (".",),
            "format": (None, "torch", 3, ["auto"]),
            "prefix": (3, ["x"]),
            "allow_partial": NO_FLAG,
            "bn_branch": (3, ["clean"]),
        },
    ),
    "bn_branches": (
        bn_branches,
        lambda: {"encoder": model(), "path": "x"},
        {"encoder": NO_MODULE, "path": (None,)},
    ),
    "open_data": (
        open_data,
        lambda: {"spec": "digits"},
        {
            "spec as data": (None, 3, "", "mnist", "digits:x"),
            "spec as nowhere": (
                Said("cifar10:nowhere", "CIFAR-10"),
                Said("folder:nowhere", "train"),
            ),
            "image_size": (*NO_WHOLE[1:], 0),
            "seed": NO_SEED,
            "train": (Said("x", "'digits'"),),
        },
    ),
    "finetune": (
        finetune,
        lambda: {"encoder": model(), "data": digits(), "how": protocol("standardised", "slf")},
        {
            "encoder": NO_MODULE,
            "data": (None, "digits"),
            "data as data.validation": (Said(instead(validation=iter([])), "got a list_iterator"),),
            "data as sample 0": (Said(instead(train=Photographs()), "got a Image"),),
            "how": (None, "slf"),
            "pixels": (3,),
            "mean": (0.5, (0.5,) * 3),
            "std": (0.5, (0.5,) * 3),
            "seed": NO_SEED,
            "folder": NO_FOLDER,
        },
    ),
    "Classifier": (
        Classifier,
        lambda: {
            "encoder": model(),
            "features": WIDTH,
            "classes": 2,
            "mean": (0.5,) * 3,
            "std": (0.25,) * 3,
        },
        {
            "encoder": NO_MODULE,
            "features": (*NO_WHOLE, 0),
            "classes": (*NO_WHOLE, 0),
            "reads": (None, "unitt", ["raw"]),
            "mean": (None, 0.5, (0.5, 0.5), (123.7,) * 3),
            "std": (None, 0.25, (0.25,), (0.25, 0.25, -0.25)),
        },
    ),
    "Classifier.forward": (
        Classifier(nn.Flatten(), 192, 2, mean=(0.5,) * 2, std=(0.25,) * 2),
        dict,
        {"images as mean and std": (Said(images(), "have 2 channels, the images 3"),)},
    ),
    "accuracy": (
        accuracy,
        lambda: {"classifier": probe(), "dataset": InMemory(images(), labels())},
        {
            "classifier": NO_MODULE,
            "dataset": (None, "digits", 3, iter([])),
            "dataset as sample 0": (Said(Photographs(), "got a Image"),),
            "batch_size": (*NO_WHOLE, 0),
        },
    ),
    "InMemory": (
        InMemory,
        lambda: {"images": images(), "labels": labels()},
        {
            "images": (None, "images", torch.rand(3, 8, 8), Said(images() + 1, "got [1")),
            "labels": (None, "x", labels().float(), labels()[:2], Said(labels() - 2, "got -2")),
            "size": ("8", 2.5, (8, 8), 0),
        },
    ),
    "Stream": (
        Stream,
        lambda: {"dataset": InMemory(images(), labels()), "size": 2},
        {"dataset": (None, "digits", 3, iter([])), "size": (*NO_WHOLE, 0)},
    ),
    "read_image": (
        read_image,
        dict,
        {"path": (None, 3, ["x"]), "path as nowhere.png": ("nowhere.png", Path("nowhere.png"))},
    ),
    "curves": (
        curves,
        lambda: {
            "classifier": classifier(),
            "batches": batches(),
            "radii": (0.1,),
            "steps": (1,),
        },
        {
            "classifier": NO_MODULE,
            "batches": (None, 3),
            "batches as images": (Said([], "give at least one"),),
            "ball": (None, "linf", 0.1),
            "radii": (None, 0.1, "x"),
            "radii as a radius": ([-0.1], ["x"]),
            "steps": (None, 1, "x", [-1], [0.5]),
            "seed": NO_SEED,
        },
    ),
    "per_anchor": (
        per_anchor,
        lambda: {"labels": labels(), "predictions": labels(), "attacked": labels()},
        {
            "labels": (None, [0, 1], labels().float()),
            "predictions": (None, *NO_LABELS),
            "attacked": (None, *NO_LABELS),
            "selection": (None, "local", 3),
            "batch_size": (*NO_WHOLE, 0),
            "seed": NO_SEED,
        },
    ),
    "class_terms": (
        class_terms,
        lambda: {
            "classifier": classifier(),
            "images": images(),
            "labels": labels(),
            "encoder": classifier(),
            "attack": PGD(steps=1),
        },
        {
            "classifier": NO_MODULE,
            "images": NO_IMAGES,
            "labels": (None, *NO_LABELS),
            "encoder": ("x", 3),
            "ball": (None, "linf", 0.1),
            "attack": ("pgd", 3),
            "selections": (None, "leaked", 3),
            "selections as selection": (["local"], [3]),
            "batch_size": (*NO_WHOLE, 0),
            "seed": NO_SEED,
        },
    ),
    "MeanClassifier": (
        MeanClassifier,
        lambda: {"encoder": classifier(), "images": images(), "labels": labels()},
        {
            "encoder": NO_MODULE,
            "images": NO_IMAGES,
            "labels": (None, *NO_LABELS),
            "temperature": (*NO_NUMBER, *NOT_POSITIVE),
        },
    ),
    "load_classifier": (
        load_classifier,
        lambda: {"network": classifier(), "classes": ("a", "b")},
        {
            "network": (3, ["x"]),
            "checkpoint as path": (3,),
            "classes": (None, 3, "ab", Said([], "got none")),
            "images": ("x", torch.rand(3, 8, 8)),
            "labels": (3, "ab"),
            "head": (3, ["x"]),
            "mean": (0.5, (0.5,) * 3),
            "std": (0.5, (0.5,) * 3),
        },
    ),
    "protocol": (
        protocol,
        lambda: {"preset": "advcl", "name": "slf"},
        {"preset": (None, "mine", 3, ["advcl"]), "name as protocols": (None, "knn", 3, ["slf"])},
    ),
    "Protocol": (
        lambda **given: replace(protocol("advcl", "slf"), **given),
        dict,
        {
            "epochs": (*NO_WHOLE, 0),
            "batch_size": (0, "x"),
            "learning_rate": (None, "x", -1.0, float("nan")),
            "weight_decay": (None, -1.0, float("inf")),
            "decays": (3, "15", (1.5,)),
            "loss": (None, "mse", ["ce"]),
            "reads": (None, "whitened"),
            "selects": (None, "train"),
        },
    ),
    "doubts": (
        doubts,
        lambda: {"classifier": classifier(), "batches": batches(), "ball": advssl.Linf(0.1)},
        {
            "classifier": NO_MODULE,
            "batches": (None, Said([], "give at least one"), 3),
            "ball": (None, "linf"),
            "which": ("gradients", ["x"], 3, [3]),
            "seed": NO_SEED,
            "folder": NO_FOLDER,
        },
    ),
    "corrupted": (
        corruptions.corrupted,
        lambda: {"images": images(), "name": "contrast", "severity": 1},
        {
            "images": (*NO_IMAGES, torch.rand(2, 1, 8, 8), Said(images() + 1, "got [1")),
            "name as corruptions": (None, "rain", 3, ["contrast"]),
            "severity": (None, 0, 6, 2.5, "3"),
            "seed": NO_SEED,
            "indices": (Said([0], "got 1"), "x", [0.5] * SIZE, 3),
        },
    ),
    "divergences": (
        divergences.divergences,
        lambda: {"clean": z(), "attacked": z(), "labels": labels()},
        {
            "clean": NO_EMBEDDINGS,
            "attacked": (*NO_EMBEDDINGS, torch.ones(3, WIDTH)),
            "labels": NO_CLASSES,
            "batch_size": (None, 0, 2.5),
            "seed": NO_SEED,
        },
    ),
    "clouds": (
        clouds,
        lambda: {
            "classifier": classifier(),
            "attack": PGD(steps=1),
            "batches": batches(),
            "encoder": classifier(),
        },
        {
            "classifier": NO_MODULE,
            "attack": (None, "pgd"),
            "batches": (None,),
            "batches as images": (Said([], "give at least one"),),
            "encoder": ("x", Said(None, "Sequential")),
            "seed": NO_SEED,
        },
    ),
    "tsne": (
        embeddings.tsne,
        lambda: {"features": z()},
        {
            "features": (*NO_EMBEDDINGS, Said(z()[:3], "got 3"), Said(z() * torch.nan, "NaN")),
            "seed": NO_SEED,
        },
    ),
    "plane": (
        embeddings.plane,
        lambda: {
            "classifier": classifier(),
            "attack": PGD(steps=1),
            "batches": batches(),
            "encoder": classifier(),
        },
        {
            "classifier": NO_MODULE,
            "attack": (None, "pgd"),
            "batches": (None,),
            "batches as images": (Said([(images()[:2], labels()[:2])], "got 2"),),
            "encoder": ("x", Said(None, "Sequential")),
            "attacked": (None, 0, 2.5, "x"),
            "seed": NO_SEED,
        },
    ),
    "inversions": (
        inversions,
        lambda: {"encoder": classifier(), "starts": images(), "neurons": [0], "steps": 1},
        {
            "encoder": NO_MODULE,
            "starts": NO_IMAGES,
            "starts as images": (Said(images() + 1, "got [1"),),
            "neurons": (None, Said([], "one at least"), 0, [-1], [WIDTH], [0.5], "0"),
            "steps": (*NO_WHOLE, 0),
            "step_size": ("x", *NOT_POSITIVE),
            "seed": NO_SEED,
        },
    ),
    "input_surface": (
        input_surface,
        lambda: {"classifier": classifier(), "batches": batches(), "points": 3},
        {
            "classifier": NO_MODULE,
            "batches": (None,),
            "batches as images": (Said([], "give at least one"),),
            "ball": (None, "linf", 0.1),
            "loss": (None, "ce"),
            "span": (None, "x", *NOT_POSITIVE),
            "points": (None, 2, 0, "x", 2.5),
            "seed": NO_SEED,
        },
    ),
    "weight_surface": (
        weight_surface,
        lambda: {"classifier": classifier(), "batches": batches(), "points": 3},
        {
            "classifier": (*NO_MODULE, Said(nn.Flatten(), "no weights")),
            "batches": (None,),
            "batches as images": (Said([], "give at least one"),),
            "attack": (None, "pgd"),
            "loss": (None, "ce"),
            "toward_sam": NO_FLAG,
            "span": ("x", 0.0),
            "points": (2,),
            "seed": NO_SEED,
        },
    ),
    "fisher_information": (
        fisher_information,
        lambda: {"classifier": classifier(), "batches": batches()},
        {
            "classifier": NO_MODULE,
            "batches": (None,),
            "batches as images": (Said([], "give at least one"),),
            "seed": NO_SEED,
        },
    ),
    "told_apart": (
        told_apart,
        lambda: {"benign": z(), "adversarial": z()},
        {
            "benign": NO_EMBEDDINGS,
            "adversarial": (*NO_EMBEDDINGS, z()[:3]),
            "divergence": (None, "JS"),
            "seed": NO_SEED,
        },
    ),
    "info_nce": (
        info_nce,
        lambda: {
            "anchors": z(),
            "positives": z(),
            "others": z(),
            "negatives": torch.ones(SIZE, SIZE, dtype=torch.bool),
        },
        {
            "anchors": NO_EMBEDDINGS,
            "positives": (*NO_EMBEDDINGS, z()[:3]),
            "others": (*NO_EMBEDDINGS, torch.ones(SIZE, 5)),
            "negatives": (None, torch.ones(SIZE, SIZE), torch.ones(2, 2, dtype=torch.bool)),
            "temperature": (None, "x", *NOT_POSITIVE),
            "beta": ("x", *NOT_POSITIVE),
        },
    ),
    "robust_bounds": (
        robust_bounds,
        lambda: {
            "encoder": classifier(),
            "classifier": None,
            "images": images(),
            "labels": labels(),
        },
        {
            "encoder": NO_MODULE,
            "classifier": ("x", 3),
            "images": NO_IMAGES,
            "labels": NO_CLASSES,
            "ball": (None, "linf"),
            "attack": ("pgd", 3),
            "temperature": (None, "x", *NOT_POSITIVE),
            "rho": (None, "x", -0.1),
            "delta": (None, "x", 0.0, 1.0, float("nan")),
            "seed": NO_SEED,
        },
    ),
    "wilson": (
        wilson,
        lambda: {"correct": 1, "n": 2},
        {"correct": (None, -1, 3, "x", 0.5), "n": (None, 0, "x")},
    ),
    "compare": (
        compare,
        lambda: {"a": [measured()], "b": [measured()]},
        {
            "a": (None, Said([], "holds no measurement"), 3, [None], "x"),
            "b": (None, [3], Said([measured(4)], "got n 3, 4")),
        },
    ),
    "Measurement": (
        lambda **given: Measurement(**given),
        lambda: {
            "name": "clean",
            "correct": (True,),
            "seed": 0,
            "settings": {},
            "dataset": "0" * 16,
            "commit": None,
            "machine": {},
        },
        {
            "name": (None, 3),
            "correct": (
                Said(None, "got object"),
                Said((), "of shape (0,)"),
                Said((2,), "got int64"),
                "x",
            ),
            "seed": NO_SEED,
            "settings": (None, 3),
            "dataset": (None, 3),
            "machine": (None, 3),
        },
    ),
    "Threat": (
        Threat,
        lambda: {"norm": "linf", "radius": 0.1},
        {"norm": (None, "", 3), "radius": (None, "x", -1.0)},
    ),
    "lightning.AdversarialViews": (
        lightning.AdversarialViews,
        lambda: {"adversary": advssl.AdversarialViewGenerator()},
        {
            "adversary": (None, "pgd", advssl.Linf(0.1)),
            "views": (None, (), "first", (0.5,), ("0",), 0),
        },
    ),
    "lightning.OverfittingGuard": (
        lightning.OverfittingGuard,
        dict,
        {"guard": (None, "x", advssl.AdversarialViewGenerator())},
    ),
    "lightning.SharpnessAware": (
        lightning.SharpnessAware,
        dict,
        {"rho": (None, "x", -1.0, float("nan")), "adaptive": NO_FLAG},
    ),
    "lightning.GlobalDivergence": (
        lightning.GlobalDivergence,
        lambda: {"critic": advssl.GlobalDivergenceCritic(WIDTH), "on": "head"},
        {
            "critic": (None, nn.Linear(1, 1), "x"),
            "on": (None, 3, nn.Linear(1, 1)),
            "weight": (None, "x", -1.0, float("nan"), float("inf")),
            "optimizer": (
                "sgd",
                0.1,
                Said(
                    torch.optim.SGD(model().parameters(), lr=0.1),
                    "of this GlobalDivergenceCritic alone",
                ),
            ),
        },
    ),
    "lightning.ClusterFit": (
        lightning.ClusterFit,
        lambda: {"head": head(), "on": "head"},
        {
            "head": (None, nn.Linear(1, 1), "x"),
            "on": (None, 3),
            "weight": (None, "x", -1.0),
            "optimizer": ("sgd",),
        },
    ),
    "lightning.Scheduled": (
        lambda **given: lightning.Scheduled(advssl.AdversarialViewGenerator(), **given),
        dict,
        {"radius": (None, 0.1, "x"), "epsilon": (Said(abs, "has no epsilon"),)},
    ),
    "backbone": (
        backbone,
        lambda: {"spec": "cifar:resnet20"},
        {
            "spec as backbone": (None, 3, "", "resnet18", "torch:resnet18", "timm:", ["timm:a"]),
            "spec as model": (Said("timm:resnet99", "'resnet99'"),),
            "spec as width": ("cifar:cnn:16", Said("cifar:resnet18:x", "got 'x'")),
            "in_channels": (*NO_WHOLE, 0),
        },
    ),
}


def forms(value: Any) -> frozenset[str]:
    """How an error may show a value: as it is, described, or what is wrong inside it."""
    shown = {described(value), repr(value), str(value)}
    if isinstance(value, type):
        shown |= {value.__name__}
    if isinstance(value, float):
        shown |= {f"{value:.4g}"}
    if isinstance(value, int) and not isinstance(value, bool):
        shown |= {str(float(value))}
    if isinstance(value, torch.Tensor):
        shown |= {str(tuple(value.shape)), str(value.dtype)}
        shown |= {str(value.item())} if value.numel() == 1 and not value.is_meta else set()
    if isinstance(value, list | tuple):
        shown |= {described(one) for one in value} | {repr(one) for one in value}
    return frozenset(shown)


def catalogue() -> Iterator[Wrong]:
    for name, (door, right, wrong) in DOORS.items():
        for key, values in wrong.items():
            argument, _, named = key.partition(" as ")
            for given in values:
                value = given.value if isinstance(given, Said) else given
                yield Wrong(
                    name,
                    lambda door=door, right=right, a=argument, v=value: door(**{**right(), a: v}),
                    argument,
                    named or argument,
                    value,
                    frozenset({given.seen}) if isinstance(given, Said) else forms(value),
                )


WRONG = list(catalogue())


def fault(wrong: Wrong) -> str | None:
    """What is wrong with the answer to a wrong call; None of a good one."""
    try:
        wrong.call()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = linecache.getline(where.filename, where.lineno or 0)
        said = str(error)
        # By us, and not by Python or torch where they met the value.
        ours = PACKAGE in Path(where.filename).parents and line.lstrip().startswith("raise ")
        if not isinstance(error, ValueError) or not ours:
            return f"raised in {where.filename}: {type(error).__name__}: {said}"
        if wrong.named not in said.replace("-", "_").replace("__", ""):
            return f"does not name {wrong.named}: {said}"
        return None if any(form in said for form in wrong.seen) else f"does not show it: {said}"
    return "nothing was raised"
