"""The chain of a paper: pretrain, finetune by a protocol, attack, record."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec import structs
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from advssl import L2, ClusterFitHead, Linf, evaluating, keep_branch, on_branch
from advssl.evaluation import attacks, probes, records
from advssl.evaluation.data import Data, batches, open_data, targets
from advssl.evaluation.identity import dataset_fingerprint, identity_of, keep, kept
from advssl.integrations.timm import backbone
from advssl.modes import copied
from advssl.types import embeddings_of
from harness.data import Batch, Loader, pixels
from harness.method import Method
from harness.schedules import Recipe
from harness.settings import Settings
from harness.training import pretrain

BATCH = 100  # images attacked at once
ATTACKS = ("pgd", "pgd-l2", "mpgd", "aa")
_L2_RADIUS = 0.5  # the field's figure at 32 x 32, whatever the method's radius


@dataclass(frozen=True)
class Plan:
    """All that a chain's numbers depend on.

    Attributes:
        method: a name of ``methods.METHODS``.
        mode: "released" or "paper", which differ where the code and the text do.
        flags: settings of the method that differ from its mode's.
        data: as ``advssl.evaluation.data.open_data`` reads it.
        image_size: H = W; None is the data's own.
        limit: how many training images are used, class-balanced; None is all.
        backbone: as ``advssl.integrations.timm.backbone`` reads it.
        recipe: the schedule.
        seed: of the weights, the order, the views and the attacks; the split is always the same.
        precision: of pretraining; evaluation is float32.
        protocols: of ``preset``, each trained on the frozen or copied encoder.
        preset: of :mod:`advssl.evaluation.probes`.
        attacked: of ``ATTACKS``, beside clean accuracy.
        num_images: class-balanced test images that are attacked; 0 is all.
        branches: "own" measures the branch that the method names, "all" every one it names.
    """

    method: str
    mode: str
    flags: Mapping[str, Any]
    data: str
    image_size: int | None
    limit: int | None
    backbone: str
    recipe: Recipe
    seed: int = 0
    precision: str = "32-true"
    protocols: tuple[str, ...] = ("slf",)
    preset: str = "standardised"
    attacked: tuple[str, ...] = ("pgd",)
    num_images: int = 0
    branches: str = "all"

    def __post_init__(self) -> None:
        unknown = [name for name in self.attacked if name not in ATTACKS]
        if unknown:
            raise ValueError(f"attacks are {', '.join(ATTACKS)}, got {', '.join(unknown)}")


class Pretrained(NamedTuple):
    """A method at the end of its schedule, and what that took.

    Attributes:
        method: with its weights.
        told: presentations (of images, over all epochs), seconds, commit and machine of the
            training, as plain JSON; with "before", the same of the method that gave its clusters.
    """

    method: Method
    told: dict[str, Any]


def open_plan(plan: Plan) -> Data:
    """The plan's data, its training part cut to ``limit`` images."""
    data = open_data(plan.data, image_size=plan.image_size)  # one split for all seeds
    if plan.limit is None or plan.limit >= len(targets(data.train)):
        return data
    rows = attacks.class_balanced(torch.tensor(targets(data.train)), plan.limit, seed=0)
    return replace(data, train=Subset(data.train, rows.tolist()))


def build(plan: Plan, method: type[Method], data: Data) -> Method:
    """The plan's method at its random start."""
    torch.manual_seed(plan.seed)
    size = data.train[0][0].shape[-1]
    settings = method.settings_type.of(plan.mode, **plan.flags)
    built = method(backbone(plan.backbone), data, size, settings)
    return built.to(memory_format=torch.channels_last)


def pretrained(
    plan: Plan,
    methods: Mapping[str, type[Method]],
    data: Data,
    out: Path,
    *,
    memory_gb: float = 4.0,
    **options: Any,
) -> Pretrained | None:
    """The plan's method, trained: read from ``out`` if it was trained before, else trained there.

    Pseudo-labels come from another method's encoder, which is trained first with the same plan.

    Args:
        plan: what to train.
        methods: classes by name.
        data: the plan's, see :func:`open_plan`.
        out: folder of everything that runs leave.
        memory_gb: larger training sets are streamed.
        options: of :func:`harness.training.pretrain`: devices, deadline and the like.

    Returns:
        None if the deadline passed before the end.

    Raises:
        ValueError: if an epoch has no whole batch, a batch no equal share for each device, or a
            cluster no image.
    """
    method = build(plan, methods[plan.method], data)
    images = training_images(method, data)
    steps = steps_per_epoch(plan, images, options.get("devices", 1))
    most = max(
        (max(m.num_clusters) for m in method.modules() if isinstance(m, ClusterFitHead)), default=0
    )
    if most > len(images):
        raise ValueError(
            f"{most} clusters need as many training images, there are {len(images)}; take more "
            "with --limit, or fewer clusters with --supervision"
        )
    told: dict[str, Any] = {"presentations": plan.recipe.epochs * steps * plan.recipe.batch_size}
    if plan.recipe.epochs == 0:
        return Pretrained(method, told)
    identity = _identity(plan, method, images)
    folder = out / "work" / f"{plan.method}-{digest(identity)}"
    trained = folder / "method.pt"
    there = kept(trained, digest(identity))
    if there is not None:
        method.load_state_dict(there["weights"])
        return Pretrained(method, there["told"])
    if method.after is not None:  # labels of the plan's own images
        found = pretrained(
            _before(plan, method), methods, data, out, memory_gb=memory_gb, **options
        )
        if found is None:
            return None
        told["before"] = {"method": method.after, **found.told}
        method.prepare(found.method, features(found.method, images))
    seconds = pretrain(
        method,
        plan.recipe,
        partial(_loader, images, plan, memory_gb),
        steps,
        folder=folder,
        identity=identity,
        name=f"pretraining {plan.method}, seed {plan.seed}",
        seed=plan.seed,
        precision=plan.precision,
        **options,
    )
    if seconds is None:
        return None
    told |= {"seconds": round(seconds, 1), "commit": records.commit(), "machine": records.machine()}
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        keep(trained, digest(identity), {"weights": method.state_dict(), "told": told})
    return Pretrained(method, told)


def training_images(method: Method, data: Data) -> Any:
    """Those a method is pretrained on: unlabelled ones too, unless it reads labels."""
    if data.unlabelled is None or method.labelled:
        return data.train
    return ConcatDataset([data.train, data.unlabelled])


def steps_per_epoch(plan: Plan, images: Any, devices: int = 1) -> int:
    """Whole batches in an epoch, or a ValueError if there is none."""
    size = plan.recipe.batch_size
    if size > len(images):
        raise ValueError(
            f"a batch of {size} needs as many training images, there are {len(images)}; "
            "take a smaller --batch-size"
        )
    if size % devices:
        raise ValueError(f"a batch of {size} cannot be shared equally by {devices} devices")
    return len(images) // size


def _identity(plan: Plan, method: Method, images: Any) -> dict[str, Any]:
    """What the pretrained weights depend on, as plain JSON: code and packages included."""
    told = asdict(plan)
    for key in ("flags", "protocols", "preset", "attacked", "num_images", "branches"):
        del told[key]
    told |= {
        "settings": asdict(method.settings),
        "images": [len(images), dataset_fingerprint(images)],
        "code": identity_of([path.read_bytes() for path in _files(method)]),
    }
    return json.loads(json.dumps(told))


def _files(method: Method) -> list[Path]:
    """Of the harness and of the method's classes."""
    here = Path(__file__).parent
    own = {Path(inspect.getfile(kind)) for kind in type(method).__mro__[:-1]}
    return sorted({*here.glob("*.py"), *(path for path in own if here.parent in path.parents)})


def encoders(method: Method, branches: str = "all") -> dict[str, nn.Module]:
    """Plain encoders to measure, by BatchNorm branch; "" where there is only one BatchNorm."""
    encoder, names = method.measured()
    if not names:
        return {"": copied(encoder)}
    return {name: keep_branch(encoder, name) for name in names[: None if branches == "all" else 1]}


def measured(
    plan: Plan, method: Method, data: Data, out: Path, progress: attacks.Progress
) -> list[records.Measurement]:
    """Every protocol on every branch; every attack on its last epoch, the first on its best."""
    ball = Linf(method.settings.radius)
    images = _attacked_images(plan, data)
    method.to(_device())
    found = []
    for branch, encoder in encoders(method, plan.branches).items():
        for name in plan.protocols:
            how = probes.protocol(plan.preset, name)
            place = f"{how.name} {branch}".strip()
            made = probes.finetune(
                encoder,
                data,
                how,
                ball=ball,
                **normalization(method),
                seed=plan.seed,
                folder=out / "work" / "probes",
                progress=_inside(progress, place),
            )
            found += _attacked(plan, place, made.last, images, data, ball, out, progress)
            place = f"{place}, best on {how.selects}"
            # One attack is enough to see whether the choice of an epoch matters.
            short = replace(plan, attacked=plan.attacked[:1])
            found += _attacked(short, place, made.best, images, data, ball, out, progress)
    own = method.classifier()
    if own is not None:
        found += _attacked(plan, "own head", own.eval(), images, data, ball, out, progress)
    return found


def _attacked(
    plan: Plan,
    place: str,
    classifier: nn.Module,
    images: Sequence[tuple[Tensor, Tensor]],
    data: Data,
    ball: Linf,
    out: Path,
    progress: attacks.Progress,
) -> list[records.Measurement]:
    known: dict[str, list[attacks.Attack]] = {
        # A quarter and a tenth of the radius: 2/255 and 0.8/255 at 8/255, as papers differ.
        "pgd": [attacks.PGD(ball, 20, ball.radius / 4), attacks.PGD(ball, 20, ball.radius / 10)],
        "pgd-l2": [attacks.PGD(L2(_L2_RADIUS), 20, _L2_RADIUS / 10)],
        "mpgd": [attacks.MultiTargetedPGD(ball, 20, ball.radius / 4)],
        "aa": [attacks.AutoAttack(ball)],
    }
    chosen = [attacks.Clean(), *(a for name in plan.attacked for a in known[name])]
    found = []
    for attack in chosen:
        m = attacks.measure(
            classifier,
            attack,
            images,
            seed=0,
            training_seed=plan.seed,
            folder=out / "work" / "measured",
            progress=_inside(progress, place),
            population=len(targets(data.test)),
        )
        found.append(structs.replace(m, name=f"{place}: {m.name}"))
    return found


def first_step(plan: Plan, methods: Mapping[str, type[Method]], data: Data) -> tuple[Method, Batch]:
    """A method and its first batch, to count and time what a step costs.

    What it is prepared with is noise, so it is good for nothing else.
    """
    method = build(plan, methods[plan.method], data)
    images = training_images(method, data)
    if method.after is not None:
        before = build(_before(plan, method), methods[method.after], data)
        method.prepare(before, torch.randn(len(images), 8))
    batch = next(iter(_loader(images, plan, 0.0, 0, 1)))
    return method, batch._replace(images=pixels(batch.images))


def features(method: Method, images: Any) -> Tensor:
    """The measured encoder's features (N, D) of a training set, in its order, on its own branch."""
    (encoder, branches), device = method.measured(), _device()
    own = on_branch(encoder, branches[0]) if branches else nullcontext()
    method.to(device)
    with torch.no_grad(), evaluating(method), own:
        answers = (encoder(method.normalized(x.to(device))) for x, _ in DataLoader(images, 256))
        return torch.cat([embeddings_of("the encoder", answer).cpu() for answer in answers])


def normalization(method: Method) -> dict[str, Any]:
    """Mean and std of the encoder's input, if it is normalised."""
    return dict(zip(("mean", "std"), method.pixels or (), strict=False))


def digest(content: Any) -> str:
    """Ten letters for plain JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _loader(images: Any, plan: Plan, memory_gb: float, rank: int, world_size: int) -> Loader:
    return Loader(
        images,
        plan.recipe.batch_size // world_size,
        seed=plan.seed,
        memory_gb=memory_gb,
        rank=rank,
        world_size=world_size,
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _before(plan: Plan, method: Method) -> Plan:
    """Of the method that is trained first: with those of the flags that any method has."""
    shared = {f.name: plan.flags[f.name] for f in fields(Settings) if f.name in plan.flags}
    return replace(plan, method=method.after or plan.method, flags=shared)


def _attacked_images(plan: Plan, data: Data) -> list[tuple[Tensor, Tensor]]:
    count = len(targets(data.test))
    rows = attacks.class_balanced(
        torch.tensor(targets(data.test)), min(plan.num_images or count, count), seed=0
    )
    return batches(Subset(data.test, rows.tolist()), BATCH)


def _inside(progress: attacks.Progress, place: str) -> attacks.Progress:
    return lambda what, done, total: progress(f"{place}: {what}", done, total)
