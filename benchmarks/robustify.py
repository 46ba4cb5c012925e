"""A network with real pretrained weights, before and after FARE: benchmarks/results/robustify.json.

    python benchmarks/robustify.py --checkpoint FILE --data folder:data/cifar10 --out runs/robustify

FILE is ``examples/model_test.pt`` of the installed package pyautoattack: a ResNet-18 that others
trained on CIFAR-10, with labels and without attacks. FARE reads none, and the head that the network
has is left as it is: both rows are measured with it. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "papers"))

from advssl import Linf
from advssl.evaluation import evaluate, records
from advssl.evaluation.attacks import PGD
from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.classifiers import load_classifier
from advssl.evaluation.data import open_data
from advssl.evaluation.records import Model, replacing
from advssl.integrations.timm import backbone
from advssl.modes import copied
from fare import FARE, FARESettings
from harness.finetuning import attacked_in, finetune
from harness.recording import as_json, exported, without_place
from harness.schedules import WarmupCosine

HERE = Path(__file__).parent
BACKBONE = "cifar:resnet18"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure both, and write the record."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", required=True)
    add("--data", required=True)
    add("--radius", type=float, default=4, help="of 255")
    add("--steps", type=int, default=3)
    add("--epochs", type=int, default=1)
    add("--rate", type=float, default=3e-4)
    add("--train-images", type=int, default=25_000)
    add("--images", type=int, default=500, help="test images")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("runs/robustify"))
    add("--record", type=Path, default=HERE / "results" / "robustify.json")
    o = parser.parse_args(words)
    o.out.mkdir(parents=True, exist_ok=True)
    data = open_data(o.data)
    nothing: Any = Subset(data.train, [])
    measured_on = replace(data, train=nothing, validation=nothing)  # no probe is trained
    drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(o.seed))  # type: ignore[arg-type]
    images: Any = Subset(data.train, drawn[: o.train_images].tolist())
    encoder = backbone(BACKBONE).eval()
    load_encoder(encoder, o.checkpoint)
    before: Any = load_classifier(BACKBONE, o.checkpoint, classes=data.classes).classifier
    settings = FARESettings(radius=o.radius / 255, **attacked_in(o.steps))
    method = FARE(encoder, data, data.image_size, settings)
    schedule = WarmupCosine(o.rate, 0.1, restarts=True)
    recipe = replace(FARE.recipe, epochs=o.epochs, batch_size=50, schedule=schedule)
    seconds = {"training": finetune(method, images, o.out / "work", recipe=recipe, seed=o.seed)}
    with replacing(o.out / "encoder.pt") as part:
        torch.save(exported(method, method.encoder), part)
    after = copied(before)
    after.model.load_state_dict({**before.model.state_dict(), **method.encoder.state_dict()})
    rows = {}
    networks = {"before": (before, Path(o.checkpoint).name), "after": (after, "encoder.pt")}
    for row, (network, file) in networks.items():
        started = time.perf_counter()
        report = evaluate(
            network,
            measured_on,
            ball=Linf(settings.radius),
            attacks=[PGD(Linf(settings.radius), 20, settings.radius / 4)],
            probe="own",
            images=o.images,
            doubts=False,
            curves=False,
            beside=False,
            seed=o.seed,
            folder=o.out / "work",
            model=Model(backbone=BACKBONE, checkpoint=file),
            say=lambda line: print(line, flush=True),
        )
        rows[row] = [json.loads(m.to_json()) for m in report.sections[0].measurements]
        seconds[row] = time.perf_counter() - started
    record = {
        "name": "robustify",
        "rows": rows,
        "method": "fare",
        "settings": asdict(settings),
        "recipe": asdict(recipe),
        "training_images": len(images),
        "seed": o.seed,
        "seconds": seconds,
        "command": shlex.join(["python", "benchmarks/robustify.py", *map(without_place, words)]),
        "commit": records.commit(),
        "machine": records.machine(),
    }
    with replacing(o.record) as part:
        part.write_text(json.dumps(as_json(record), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
