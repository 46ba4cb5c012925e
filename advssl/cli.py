"""The command line: ``advssl evaluate``, from a checkpoint to a robustness report."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advssl.balls import L2, Ball, Linf
from advssl.evaluation import attacks, diagnostics, probes, report
from advssl.evaluation.checkpoints import FORMATS, load_encoder
from advssl.evaluation.data import Data, batches, open_data, targets
from advssl.integrations.timm import backbone
from advssl.types import Images, Labels

Batches = list[tuple[Images, Labels]]

_BATCH = 100
_L2_RADIUS = 0.5  # of "pgd-l2", whatever --eps says: the field's figure at 32 x 32
_RADII = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)  # of the figure, in units of --eps
_STEPS = (1, 2, 5, 10, 20, 50)
_STRIP = 8
ATTACKS = ("clean", "pgd", "pgd-l2", "mpgd", "aa")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake in what was asked for ends it with one line, before any work."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(words)
    try:
        written = evaluate(options, "advssl " + shlex.join(words))
    except (ValueError, ImportError) as error:
        raise SystemExit(f"advssl: {error}") from error
    print("\n".join(f"wrote {path}" for path in written.values()))


def evaluate(options: argparse.Namespace, command: str) -> dict[str, Path]:
    """Probes, attacks, doubts and the report. Repeated after a kill, it goes on where it was."""
    if (options.mean is None) != (options.std is None):
        raise ValueError("--mean and --std go together; give both, one number per channel")
    ball = _ball(options.norm, options.eps)
    chosen = _attacks(options.attacks, ball)
    protocols = [probes.protocol(options.preset, name) for name in _words(options.protocol)]
    data = open_data(
        options.data,
        image_size=options.image_size,
        seed=options.seed,
        train=options.train,
        validation=options.val,
        test=options.test,
    )
    torch.manual_seed(options.seed)  # of a backbone without checkpoint
    encoder = backbone(options.backbone)
    model: dict[str, Any] = {"backbone": options.backbone, "checkpoint": "none: random weights"}
    if options.checkpoint:
        loaded = load_encoder(
            encoder,
            options.checkpoint,
            format=options.format,
            prefix=options.prefix,
            allow_partial=options.allow_partial,
            bn_branch=options.bn_branch,
        )
        print(loaded)
        model |= {"checkpoint": Path(options.checkpoint).name, "format": loaded.format}
        if loaded.normalization and options.mean is None:
            options.mean, options.std = (list(part) for part in loaded.normalization)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.eval().to(device)
    measured = _measured_on(data, options.num_images, options.seed, device)
    work = Path(options.out) / "work"
    with attacks.progress_bars() as progress:
        sections = tuple(
            _section(encoder, how, data, measured, chosen, ball, options, work, progress)
            for how in protocols
        )
    return report.write(
        report.Report(
            title=f"Robustness of {options.backbone} on {options.data}",
            model=model | {"mean": options.mean, "std": options.std},
            data={
                "name": data.name,
                "classes": len(data.classes),
                "train": len(targets(data.train)),
                "validation": len(targets(data.validation)),
                "test": len(targets(data.test)),
                "measured on": sum(len(y) for _, y in measured),
            },
            command=command,
            sections=sections,
        ),
        options.out,
    )


def _section(
    encoder: nn.Module,
    how: probes.Protocol,
    data: Data,
    measured: Batches,
    chosen: Sequence[attacks.Attack],
    ball: Ball,
    options: argparse.Namespace,
    work: Path,
    progress: attacks.Progress,
) -> report.Section:
    classifier = _classifier(encoder, how, data, ball, options, work, progress)
    population = len(targets(data.test))

    def measure(attack: attacks.Attack) -> Any:
        return attacks.measure(
            classifier,
            attack,
            measured,
            seed=options.seed,
            folder=work / "measured",
            progress=lambda what, done, total: progress(f"{how.name}: {what}", done, total),
            population=population,
        )

    found = [measure(attack) for attack in chosen]
    step = ball.radius / 4
    by_radius = [(0.0, found[0].value)]
    for share in _RADII:
        around = type(ball)(share * ball.radius)  # type: ignore[call-arg]
        by_radius.append((around.radius, measure(attacks.PGD(around, 20, None)).value))
    by_steps = [
        (steps, measure(attacks.PGD(ball, steps, max(step, ball.radius / steps))).value)
        for steps in _STEPS
    ]
    return report.Section(
        protocol=how.name,
        branch=options.bn_branch,
        measurements=tuple(found),
        checks=tuple(
            _doubts(classifier, measured, found[0].dataset, ball, work, how.name, progress)
        ),
        by_radius=tuple(by_radius),
        by_steps=tuple(by_steps),
        strip=_strip(classifier, data, measured, ball, options.seed),
    )


def _classifier(
    encoder: nn.Module,
    how: probes.Protocol,
    data: Data,
    ball: Ball,
    options: argparse.Namespace,
    work: Path,
    progress: attacks.Progress,
) -> probes.Classifier:
    """The protocol's classifier, trained, or read from ``work`` if that was done before."""
    return probes.finetune(
        encoder,
        data,
        how,
        ball=ball,
        mean=options.mean,
        std=options.std,
        seed=options.seed,
        folder=work,
        progress=lambda what, done, total: progress(f"{how.name}: {what}", done, total),
    ).last


def _doubts(
    classifier: nn.Module,
    measured: Batches,
    dataset: str,
    ball: Ball,
    work: Path,
    name: str,
    progress: attacks.Progress,
) -> list[diagnostics.Check]:
    key = f"{attacks.classifier_fingerprint(classifier)} {dataset} {ball}"
    path = work / f"doubts-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if path.exists():
        return [diagnostics.Check(**c) for c in json.loads(path.read_text(encoding="utf-8"))]
    checks = diagnostics.doubts(
        classifier,
        measured,
        ball=ball,
        progress=lambda what, done, total: progress(f"{name}: doubts: {what}", done, total),
    )
    part = path.with_suffix(".part")
    part.write_text(json.dumps([asdict(c) for c in checks]), encoding="utf-8")
    os.replace(part, path)
    return checks


def _strip(
    classifier: nn.Module, data: Data, measured: Batches, ball: Ball, seed: int
) -> report.Strip:
    images, labels = (column[:_STRIP] for column in measured[0])
    hard = attacks.PGD(ball, 20, None)(classifier, images, labels, seed=seed)

    def names(classes: torch.Tensor) -> tuple[str, ...]:
        return tuple(data.classes[c] for c in classes.tolist())

    with torch.no_grad():
        before, after = (classifier(x).argmax(1) for x in (images, hard))
    return report.Strip(
        clean=images.cpu(),
        adversarial=hard.cpu(),
        labels=names(labels),
        predicted_clean=names(before),
        predicted=names(after),
        radius=ball.radius,
    )


def _measured_on(data: Data, count: int, seed: int, device: torch.device) -> Batches:
    """Class-balanced, seeded test images; all of them with ``count`` 0."""
    dataset: Any = data.test
    if count:
        labels = torch.tensor(targets(dataset))
        chosen = attacks.class_balanced(labels, min(count, len(labels)), seed)
        dataset = torch.utils.data.Subset(dataset, chosen.tolist())
    return [(x.to(device), y.to(device)) for x, y in batches(dataset, _BATCH)]


def _attacks(names: str, ball: Ball) -> list[attacks.Attack]:
    """Clean accuracy first, then what was asked for."""
    r = ball.radius
    available: dict[str, list[attacks.Attack]] = {
        "clean": [],
        # 2/255 and 0.8/255 at a radius of 8/255: the field reports either.
        "pgd": [attacks.PGD(ball, 20, r / 4), attacks.PGD(ball, 20, r / 10)],
        "pgd-l2": [attacks.PGD(L2(_L2_RADIUS), 20, _L2_RADIUS / 10)],
        "mpgd": [attacks.MultiTargetedPGD(ball, 20, r / 4)],
        "aa": [attacks.AutoAttack(ball)],
    }
    unknown = [name for name in _words(names) if name not in available]
    if unknown:
        raise ValueError(f"attacks are {', '.join(ATTACKS)}, got {', '.join(unknown)}")
    return [attacks.Clean(), *(a for name in _words(names) for a in available[name])]


def _ball(norm: str, radius: float) -> Ball:
    return Linf(radius) if norm == "linf" else L2(radius)


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _fraction(text: str) -> float:
    """ "8/255" or "0.03"."""
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def _channels(text: str) -> list[float]:
    return [float(value) for value in _words(text)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="advssl", description=__doc__)
    add = (
        parser.add_subparsers(required=True, metavar="evaluate")
        .add_parser(
            "evaluate",
            help="probes, attacks and the reasons to doubt them, as one report",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        .add_argument
    )
    add("--backbone", required=True, help="timm:NAME, or cifar:NAME for a 3 x 3 stem")
    add("--checkpoint", help="a file; without it the backbone's random weights")
    add("--format", default="auto", choices=["auto", *(f.name for f in FORMATS)])
    add("--prefix", help="of the encoder's names in the checkpoint")
    add("--allow-partial", action="store_true", help="excuse what is neither encoder nor head")
    add("--bn-branch", help="which BatchNorm branch, if the checkpoint has several")
    add("--data", default="digits", help="digits, cifar10[:ROOT] or folder:PATH")
    add("--train", help="folder of training images, if not PATH/train")
    add("--val", help="folder of validation images, if not a tenth of train")
    add("--test", help="folder of test images, if not PATH/test")
    add("--image-size", type=int)
    add("--mean", type=_channels, help="of the encoder's input, per channel: 0.5,0.5,0.5")
    add("--std", type=_channels)
    add("--preset", default="plain", choices=sorted(probes.PRESETS))
    add("--protocol", default="slf", help="slf, alf, aff, several with commas")
    add("--attacks", default=",".join(ATTACKS), help="of " + ", ".join(ATTACKS))
    add("--norm", default="linf", choices=["linf", "l2"])
    add("--eps", type=_fraction, default=8 / 255, help="radius in pixels of [0, 1]: 8/255")
    add("--num-images", type=int, default=200, help="class-balanced test images; 0 is all")
    add("--seed", type=int, default=0)
    add("--out", default="report", help="folder of report.html, report.md and record.json")
    return parser


if __name__ == "__main__":
    main()
