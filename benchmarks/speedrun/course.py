"""What all records share: training against the clock, the measurement, and what is written.

A record is one file beside this one, which says what is trained and how. Here is nothing that a
record could gain by.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "papers"))

from advssl import Linf
from advssl.copying import copied
from advssl.doctor.operations import flops
from advssl.evaluation import evaluate, records, report
from advssl.evaluation.attacks import PGD
from advssl.evaluation.data import Data, InMemory, open_data
from advssl.evaluation.identity import fingerprint_of, keep, kept
from advssl.evaluation.records import Model, replacing
from advssl.stopping import stopping
from harness import fastest
from harness.cost import step
from harness.data import Batch
from harness.finetuning import finetune
from harness.inputs import features as features
from harness.method import Method
from harness.recording import as_json, without_place
from harness.schedules import Recipe
from harness.stored import in_memory, pixels

RESULTS = Path(__file__).parents[1] / "results"
BALL = Linf(8 / 255)
PROBE = "advcl"
_COUNTED = 4  # images whose operations are counted, in each epoch


class Unfinished(Exception):
    """The time budget of this call is spent; the same call goes on."""


@dataclass
class Course:
    """One run: its images, its folder, and what has been spent.

    Attributes:
        data: in memory.
        folder: where every stage is kept; a call that is repeated goes on after the last one.
        seed: of all that is drawn.
        deadline: on ``time.monotonic``.
        spent: by stage, in order: seconds, FLOPs (of matrix products and convolutions, two for a
            product and its sum), presentations of an image.
    """

    data: Data
    folder: Path
    seed: int
    deadline: float = math.inf
    spent: dict[str, dict[str, float]] = field(default_factory=dict)

    def train(self, stage: str, method: Method, recipe: Recipe) -> None:
        """Train ``method`` in place, without labels; it ends at the same weights however often
        the run was killed."""
        images: Any = Unnamed(self.data.train)
        deadline = None if math.isinf(self.deadline) else self.deadline
        seconds = finetune(
            method, images, self.folder, recipe=recipe, seed=self.seed, deadline=deadline
        )
        if seconds is None:
            raise Unfinished
        steps = recipe.epochs * (len(images) // recipe.batch_size)
        self.spent[stage] = {
            "seconds": seconds,
            "flops": _flops(method, recipe, images) * steps * recipe.batch_size,
            "presentations": steps * recipe.batch_size,
        }

    def once(self, stage: str, make: Callable[[], Any], *depends: Any) -> Any:
        """What ``make`` gives, kept under all that it depends on, with the time that it took."""
        path, key = self.folder / f"{stage}.pt", fingerprint_of(stage, self.seed, *depends)
        there = kept(path, key)
        if there is None:
            started = time.perf_counter()
            made: list[Any] = []
            cost = flops(lambda: made.append(make()))
            there = {"made": made[0], "seconds": time.perf_counter() - started, "flops": cost}
            keep(path, key, there)
        self.spent[stage] = {"seconds": there["seconds"], "flops": there["flops"]}
        return there["made"]


Record: TypeAlias = Callable[[Course], nn.Module]


class Unnamed(InMemory):
    """Images without their labels: whoever reads one gets -1."""

    def __init__(self, images: InMemory) -> None:
        super().__init__(images.images, [-1] * len(images))


def run(record: Record, name: str, minutes: int, backbone: str, words: Sequence[str]) -> None:
    """Train, measure and write what is asked for by ``words``, a command's.

    Args:
        record: trains an encoder.
        name: of its file.
        minutes: of its class.
        backbone: how its network is called.
        words: the command line's.
    """
    parser = argparse.ArgumentParser(description=f"The speedrun's record of {minutes} minutes.")
    add = parser.add_argument
    add("--data", required=True, help="folder:PATH, with train/CLASS and test/CLASS in it")
    add("--seeds", type=int, default=3, help="runs")
    add("--seed", type=int, action="append", help="this run alone; the record keeps its others")
    add("--images", type=int, default=1000, help="test images under PGD-20")
    add("--aa-images", type=int, default=256, help="test images under AutoAttack")
    add("--limit", type=int, help="training images; a record takes all")
    add("--time-budget", type=float, metavar="SECONDS", help="the same command goes on then")
    add("--out", type=Path, default=Path("runs/speedrun"))
    add("--record", type=Path, default=RESULTS / f"speedrun_{name}.json")
    add("--weights", type=Path, help="where seed 0's encoder goes, in safetensors")
    o = parser.parse_args(words)
    deadline = time.monotonic() + (o.time_budget or math.inf)
    started = time.perf_counter()
    data = held(open_data(o.data), o.limit)
    reading = time.perf_counter() - started
    seeds = o.seed or range(o.seeds)
    script = f"benchmarks/speedrun/{name}.py"
    by = {
        "command": shlex.join(["python", script, *map(without_place, words)]),
        "commit": records.commit(),
        "precision": fastest.precision(),
        "machine": {**records.machine(), "threads": torch.get_num_threads()},
    }
    runs = []
    try:
        with stopping():
            for seed in seeds:
                course = Course(data, o.out / f"{name}-{seed}", seed, deadline)
                course.spent["reading"] = {"seconds": reading}
                encoder = record(course)
                if seed == 0 and o.weights:
                    _publish(encoder, o.weights, {"backbone": backbone, "record": o.record.name})
                runs.append({**_run(course, encoder, backbone, o), **by})
                print(_line(runs[-1]), flush=True)
    except Unfinished:
        print(f"{len(runs)} of {len(seeds)} runs; the same command goes on")
        return
    except KeyboardInterrupt:
        raise SystemExit(f"{script}: interrupted; the same command goes on") from None
    if o.seed and o.record.exists():
        there = json.loads(o.record.read_text(encoding="utf-8"))["runs"]
        runs += [run for run in there if run["seed"] not in seeds]
    runs.sort(key=lambda run: run["seed"])
    written = {"name": name, "minutes": minutes, "backbone": backbone, "runs": runs}
    with replacing(o.record) as part:
        part.write_text(json.dumps(as_json(written), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {o.record.name}; `make tables` brings it into the docs")


def held(data: Data, limit: int | None = None) -> Data:
    """The same with its images in memory, and so many of them to train on."""
    parts = {}
    for part in ("train", "validation", "test"):
        images = getattr(data, part)
        if not len(images):  # a validation part that few images leave none for
            continue
        found = in_memory(images, math.inf, watched=True)
        assert found is not None
        rows = torch.arange(len(images)) if found.rows is None else found.rows
        if part == "train":
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
            rows = rows[drawn[:limit].sort().values]
        parts[part] = InMemory(found.images[rows], found.labels[rows].tolist())
    return replace(data, **parts)


def _flops(method: Method, recipe: Recipe, images: InMemory) -> float:
    """Of an image and step, in the mean over the epochs, whose sizes and attacks may differ."""
    rows = torch.arange(_COUNTED)
    few = Batch(pixels(images.images[:_COUNTED]), torch.full_like(rows, -1), rows)
    counted, total = copied(method), 0
    for epoch in range(recipe.epochs):
        counted.begin_epoch(epoch, recipe.epochs)
        total += flops(lambda: step(counted, few))
    return total / recipe.epochs / _COUNTED


def _run(
    course: Course, encoder: nn.Module, backbone: str, o: argparse.Namespace
) -> dict[str, Any]:
    """Measured: PGD-20 on many images, AutoAttack on few, and the reasons to doubt the first."""
    file = course.folder / "encoder.pt"
    with replacing(file) as part:
        torch.save(encoder.state_dict(), part)
    shared: dict[str, Any] = {
        "ball": BALL,
        "probe": PROBE,
        "curves": False,
        "beside": False,
        "seed": course.seed,
        "attack_seed": 0,
        "folder": course.folder,
        "model": Model(backbone=backbone, checkpoint=file.name),
    }
    pgd = [PGD(BALL, 20, 2 / 255)]
    found = [
        evaluate(encoder, course.data, attacks=pgd, images=o.images, **shared),
        evaluate(encoder, course.data, attacks=["aa"], images=o.aa_images, doubts=False, **shared),
    ]
    report.write(found[0], course.folder / "report")
    return {
        "seed": course.seed,
        "spent": course.spent,
        "measurements": [
            json.loads(m.to_json()) for one in found for m in one.sections[0].measurements
        ],
        "doubts": [asdict(check) for check in found[0].sections[0].checks],
    }


def _publish(encoder: nn.Module, file: Path, said: dict[str, str]) -> None:
    """The encoder in the field's format, whose header says where it comes from."""
    weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    with replacing(file) as part:
        save_file(weights, part, said)


def _line(run: dict[str, Any]) -> str:
    minutes = sum(stage["seconds"] for stage in run["spent"].values()) / 60
    found = (f"{m['name']} {100 * m['value']:.1f} ({m['n']})" for m in run["measurements"])
    return f"seed {run['seed']}: {minutes:.1f} minutes; {', '.join(found)}"
