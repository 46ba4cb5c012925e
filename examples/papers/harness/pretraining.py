"""Pretraining: a plan to its method, trained, read back where it was trained before."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities import rank_zero_only

from advssl import ClusterFitHead
from advssl.evaluation import records
from advssl.evaluation.data import Data
from advssl.evaluation.identity import dataset_fingerprint, fingerprint_of, identity_of, keep, kept
from advssl.evaluation.places import without_place
from harness.inputs import features, loader, steps_per_epoch, training_images
from harness.method import Method
from harness.networks import Network
from harness.plans import Plan, before, build, digest
from harness.training import pretrain

# Of a plan, what pretraining does not depend on.
_EVALUATING = (
    *("protocols", "preset", "attacked", "num_images", "branches"),
    *("plus", "finetune_data"),
)


class Pretrained(NamedTuple):
    """A method at the end of its schedule, and what that took.

    Attributes:
        method: with its weights.
        told: presentations (of images, over all epochs), seconds, commit and machine of the
            training, as plain JSON; with "before", the same of what was trained before it.
    """

    method: Method
    told: dict[str, Any]


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

    Pseudo-labels and a teacher come from another method's encoder, which is trained first
    (:func:`harness.plans.before`), or from a finished network.

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
    others = method.after is not None and method.after not in methods
    network = Network(str(method.after)) if others else None
    identity = _identity(plan, method, images)
    if network is not None:
        identity["network"] = fingerprint_of(network.state_dict())
    key = digest(identity)
    folder = out / "work" / f"{plan.method}-{key}"
    trained = folder / "method.pt"
    there = kept(trained, key)
    if there is not None:
        method.load_state_dict(there["weights"])
        return Pretrained(method, there["told"])
    if method.after is not None:
        found: Pretrained | None
        if network is not None:
            found = Pretrained(network, {})
        else:
            earlier = before(plan, method, methods)
            alone = {**options, "watch": ()}  # who looks on does so at the plan's own training
            found = pretrained(earlier, methods, data, out, memory_gb=memory_gb, **alone)
        if found is None:
            return None
        told["before"] = {"method": without_place(method.after), **found.told}
        method.prepare(found.method, features(found.method, images))
    seconds = pretrain(
        method,
        plan.recipe,
        partial(loader, images, plan, memory_gb),
        steps,
        folder=folder,
        identity=key,
        name=f"pretraining {plan.method}, seed {plan.seed}",
        seed=plan.seed,
        precision=plan.precision,
        **options,
    )
    if seconds is None:
        return None
    told |= {"seconds": round(seconds, 1), "commit": records.commit(), "machine": records.machine()}
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        keep(trained, key, {"weights": method.state_dict(), "told": told})
    return Pretrained(method, told)


def _identity(plan: Plan, method: Method, images: Any) -> dict[str, Any]:
    """What the pretrained weights depend on, as plain JSON: code and packages included."""
    told = asdict(plan)
    for key in (*_EVALUATING, "flags"):
        del told[key]
    told |= {
        "settings": {
            key: without_place(value) if isinstance(value, str) else value
            for key, value in asdict(method.settings).items()
        },
        "images": [len(images), dataset_fingerprint(images)],
        "start": fingerprint_of(method.state_dict()),  # a teacher from a file included
        "code": identity_of([path.read_bytes() for path in _files(method)]),
    }
    return json.loads(json.dumps(told))


def _files(method: Method) -> list[Path]:
    """Of the harness and of the method's classes."""
    here = Path(__file__).parent
    own = {Path(inspect.getfile(kind)) for kind in type(method).__mro__[:-1]}
    return sorted({*here.glob("*.py"), *(path for path in own if here.parent in path.parents)})
