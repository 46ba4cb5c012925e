"""Robustness without labels, bolted onto SimCLR: three encoders side by side in a few minutes.

    python examples/quickstart.py [--seeds 3]

On scikit-learn's digits (1,797 real images: 1,297 to train on, 500 to test on) it pretrains three
encoders without labels, freezes each and fits a linear probe on the training images. It measures
how many test images the classifier gets right when every pixel, in [0, 1], may be changed by 0.1.

Settings were chosen with the adversarial view and one seed on 260 images held out of the training
set (``--validate`` measures there). The GSA-RSL stack has them too; its own three were not tuned.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from queue import Empty, Queue
from statistics import mean, stdev
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from kornia.augmentation import RandomAffine, RandomBrightness, RandomContrast
from lightly.models.modules import SimCLRProjectionHead
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.utils.data import Subset

from advssl import (
    AdversarialViewGenerator,
    GlobalDivergenceCritic,
    Linf,
    MultiViewNTXentLoss,
    SAMWrapper,
)
from advssl.evaluation import evaluate
from advssl.evaluation.attacks import PGD, AutoAttack
from advssl.evaluation.data import Data, InMemory

EMBEDDING = 64  # width of what the projection head returns
AUTOATTACK_FORWARDS = 8_000  # about how many it takes on a robust classifier, for the progress bar
COLOURS = ("#595959", "#D55E00", "#0072B2")  # of the methods: grey, vermilion, blue


@dataclass(frozen=True)
class Training:
    """How every encoder is pretrained; the same for all three, each reads what it knows."""

    epochs: int = 40
    batch_size: int = 100
    learning_rate: float = 8e-3  # the peak of one cycle, AdamW
    weight_decay: float = 1e-4
    temperature: float = 0.5
    radius: float = 0.1  # ℓ∞, of pixels in [0, 1]
    steps: int = 5  # of the attack that finds the adversarial view
    benign_weight: float = 0.5  # of NT(z1, z2) beside NT(z1, hard)
    critic_weight: float = 0.1  # of the divergence, in the attack and in the loss
    critic_learning_rate: float = 0.1
    sam_rho: float = 0.05


@dataclass(frozen=True)
class Evaluation:
    """How every encoder is measured: a linear probe, attacked in float32."""

    radius: float = 0.1  # ℓ∞, of pixels in [0, 1]
    pgd_steps: int = 20
    radii: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # of the figure's curves
    autoattack_images: int = 50  # the first of each class in turn


# --- the three methods: two augmented views in, the loss to descend out ---------------------------

Loss = Callable[[Tensor, Tensor], Tensor]


def simclr(model: nn.Module, s: Training) -> Loss:
    """SimCLR: the two views of an image attract each other."""
    nt_xent = MultiViewNTXentLoss(s.temperature)

    def loss(t1: Tensor, t2: Tensor) -> Tensor:
        z1, z2 = model(t1), model(t2)
        return nt_xent(z1, z2)

    return loss


def adversarial_view(model: nn.Module, s: Training) -> Loss:
    """... and so does the view that is hardest to match: three lines."""
    nt_xent = MultiViewNTXentLoss(s.temperature)
    adversary = AdversarialViewGenerator(Linf(s.radius), s.steps)  # 1

    def loss(t1: Tensor, t2: Tensor) -> Tensor:
        z1, z2 = model(t1), model(t2)
        hard = adversary(t2, lambda v: nt_xent(z1.detach(), model(v)), freeze=model)  # 2
        return nt_xent(z1, model(hard)) + s.benign_weight * nt_xent(z1, z2)  # 3

    return loss


def gsa_rsl(model: nn.Module, s: Training) -> Loss:
    """... and a critic keeps the two clouds of embeddings together, and the benign term is flat."""
    nt_xent = MultiViewNTXentLoss(s.temperature)
    adversary = AdversarialViewGenerator(Linf(s.radius), s.steps)
    critic = GlobalDivergenceCritic(EMBEDDING)
    critic_optimizer = torch.optim.SGD(critic.parameters(), s.critic_learning_rate, momentum=0.9)
    sam = SAMWrapper(model, rho=s.sam_rho)

    def loss(t1: Tensor, t2: Tensor) -> Tensor:
        z1, z2 = model(t1), model(t2)
        benign = F.normalize(z2)

        def objective(v: Tensor) -> Tensor:
            z = model(v)
            divergence = critic.estimate(benign.detach(), F.normalize(z))
            return nt_xent(z1.detach(), z) + s.critic_weight * divergence

        z_hard = model(adversary(t2, objective, freeze=(model, critic)))
        adversarial = F.normalize(z_hard)
        critic_optimizer.zero_grad()
        critic.loss(benign, adversarial).backward()
        critic_optimizer.step()
        flat = sam(lambda: nt_xent(model(t1), model(t2)), loss=nt_xent(z1, z2))
        divergence = critic.estimate(benign, adversarial)
        return nt_xent(z1, z_hard) + s.benign_weight * flat + s.critic_weight * divergence

    return loss


METHODS = {"SimCLR": simclr, "adversarial view": adversarial_view, "GSA-RSL stack": gsa_rsl}


# --- data, pretraining, probe ---------------------------------------------------------------------


class Digits(NamedTuple):
    """Images (N, 1, 16, 16) in [0, 1] and labels, to train on and to measure on."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    record: dict[str, Any]


def load(*, validate: bool = False, split_seed: int = 0) -> Digits:
    """Scikit-learn's digits, split by class; measured on 260 of the training images to validate."""
    raw = load_digits()
    labels = torch.from_numpy(raw.target)
    images = torch.from_numpy(raw.images / 16).float().unsqueeze(1)
    images = F.interpolate(images, size=16, mode="bilinear")
    split = {"stratify": raw.target, "random_state": split_seed}
    train, test = train_test_split(np.arange(len(labels)), test_size=500, **split)
    if validate:
        split["stratify"] = raw.target[train]
        train, test = train_test_split(train, test_size=260, **split)
    content = [part.astype(np.uint8).tobytes() for part in (raw.images, raw.target)]
    content += [rows.astype("<i8").tobytes() for rows in (train, test)]
    record = {
        "name": "scikit-learn digits, 8 x 8 pixels resized to 16 x 16",
        "measured_on": "validation part of train" if validate else "test",
        "train": len(train),
        "test": len(test),
        "classes": len(raw.target_names),
        "split_seed": split_seed,
        "sha256": hashlib.sha256(b"".join(content)).hexdigest(),  # pixels, labels and split
    }
    return Digits(images[train], labels[train], images[test], labels[test], record)


def small_resnet() -> ResNet:
    """timm's ResNet, narrow: 16, 32 and 64 channels at 8, 4 and 2 pixels."""
    net = ResNet(
        BasicBlock,
        layers=(1, 1, 1),
        channels=(16, 32, 64),
        stem_type="deep",  # three 3 x 3 convolutions
        stem_width=8,
        in_chans=1,
        num_classes=0,
    )
    net.maxpool = nn.Identity()
    net.layer4 = nn.Identity()  # timm's forward expects a fourth stage
    return net.to(memory_format=torch.channels_last)


def pretrain(
    method: Callable[[nn.Module, Training], Loss],
    images: Tensor,
    s: Training,
    seed: int,
    tick: Callable[[], None],
) -> nn.Module:
    """An encoder trained on images alone."""
    torch.manual_seed(seed)
    encoder = small_resnet()
    model = nn.Sequential(encoder, SimCLRProjectionHead(encoder.num_features, 64, EMBEDDING))
    loss = method(model, s)
    augment = nn.Sequential(  # no flips: they would make other digits
        RandomAffine(degrees=12, translate=(0.1, 0.1), scale=(0.85, 1.15), p=1.0),
        RandomBrightness((0.8, 1.2)),
        RandomContrast((0.7, 1.3)),
    )
    batches = len(images) // s.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=s.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, s.learning_rate, total_steps=s.epochs * batches
    )
    for _ in range(s.epochs):
        for rows in torch.randperm(len(images)).chunk(batches):
            optimizer.zero_grad()
            loss(augment(images[rows]), augment(images[rows])).backward()
            optimizer.step()
            schedule.step()
            tick()
    return encoder.eval()


def linear_probe(encoder: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """The frozen encoder and a logistic regression on its features, as one classifier."""
    with torch.no_grad():
        features = encoder(images).double().numpy()
    fit = LogisticRegression(max_iter=5_000).fit(features, labels.numpy())
    linear = nn.Linear(*reversed(fit.coef_.shape))
    linear.load_state_dict(
        {"weight": torch.from_numpy(fit.coef_), "bias": torch.from_numpy(fit.intercept_)}
    )
    return nn.Sequential(encoder, linear).eval().requires_grad_(False)


# --- measuring ------------------------------------------------------------------------------------


class Reporter:
    """What one encoder's phases tell the progress bar, and how many seconds each of them took."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self.tell, self.seconds = tell, dict[str, float]()

    @contextmanager
    def phase(self, what: str, ticks: int) -> Iterator[None]:
        self.ticks, self.told, started = 0, 0.0, time.perf_counter()
        self.tell(description=what, total=ticks, completed=0)
        yield
        self.seconds[what] = round(time.perf_counter() - started, 1)
        self.tell(completed=ticks)

    def tick(self, *_: Any) -> None:
        self.ticks += 1
        if time.perf_counter() > self.told + 0.2:
            self.told = time.perf_counter()
            self.tell(completed=self.ticks)


def class_balanced(labels: Tensor, count: int) -> Tensor:
    """Indices of the first images of each class in turn, ``count`` in all."""
    by_class = [torch.nonzero(labels == c).flatten() for c in labels.unique()]
    return torch.stack([by_class[i % len(by_class)][i // len(by_class)] for i in range(count)])


def measure(
    classifier: nn.Module, data: Digits, e: Evaluation, seed: int, report: Reporter
) -> dict[str, Any]:
    """Clean, PGD and AutoAttack accuracy of one classifier on the test images."""
    hook = classifier.register_forward_hook(report.tick)
    asked = {"ball": Linf(e.radius), "probe": "own", "doubts": False, "curves": False, "seed": seed}
    radii = [PGD(Linf(radius), e.pgd_steps, None) for radius in e.radii]
    with report.phase("PGD", len(radii) * (e.pgd_steps + 3)):
        found = evaluate(classifier, labelled(data), attacks=radii, images=0, **asked)
    clean, *curve = (m.value for m in found.sections[0].measurements)
    at_radius = e.radii.index(e.radius)
    reached: dict[str, Any] = {"clean": clean, "curve": curve, "pgd": curve[at_radius]}
    if e.autoattack_images:
        some = class_balanced(data.test_labels, e.autoattack_images)
        few = data._replace(test=data.test[some], test_labels=data.test_labels[some])
        attacks = [radii[at_radius], AutoAttack(Linf(e.radius))]  # which finds no fewer errors
        with report.phase("AutoAttack", AUTOATTACK_FORWARDS):
            found = evaluate(classifier, labelled(few), attacks=attacks, images=0, **asked)
        _, pgd, autoattack = (m.value for m in found.sections[0].measurements)
        reached |= {"pgd_same_images": pgd, "autoattack": autoattack}
    hook.remove()
    return reached


def labelled(data: Digits) -> Data:
    """As an evaluation reads it; nothing is selected here."""
    train, test = InMemory(data.train, data.train_labels), InMemory(data.test, data.test_labels)
    names = tuple(map(str, range(10)))
    return Data("digits", names, train, validation=Subset(train, []), test=test, natural=False)


def start_worker(queue: Queue[Any]) -> None:
    """One thread each: these layers are too small to share, the encoders are trained beside."""
    global news  # a queue reaches another process only in this way
    news = queue
    torch.set_num_threads(1)


def one_encoder(
    name: str, seed: int, data: Digits, t: Training, e: Evaluation
) -> tuple[dict[str, Any], nn.Module]:
    """What one method reaches with one seed, and its classifier."""
    report = Reporter(lambda **update: news.put(((name, seed), update)))
    with report.phase("pretraining", t.epochs * (len(data.train) // t.batch_size)):
        encoder = pretrain(METHODS[name], data.train, t, seed, report.tick)
    with report.phase("linear probe", 1):
        classifier = linear_probe(encoder, data.train, data.train_labels)
    reached = measure(classifier, data, e, seed, report)
    kinds = [k for k in ("clean", "pgd", "autoattack") if k in reached]
    summary = ", ".join(f"{reached[k]:.1%} {k}" for k in kinds)
    report.tell(description=summary)
    return {**reached, "seconds": report.seconds}, classifier


def run(
    data: Digits, t: Training, e: Evaluation, seeds: int, workers: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, nn.Module]]:
    """By method: what the encoder of each seed reached, and the first seed's classifier."""
    jobs = [(name, seed) for name in reversed(METHODS) for seed in range(seeds)]  # longest first
    columns = (SpinnerColumn(), "{task.fields[who]}: {task.description}", BarColumn(20))
    if workers > 1:
        context = get_context("spawn")
        queue, kind = context.Queue(), partial(ProcessPoolExecutor, mp_context=context)
    else:
        queue, kind = Queue(), ThreadPoolExecutor
    with (
        kind(min(workers, len(jobs)), initializer=start_worker, initargs=(queue,)) as pool,
        Progress(*columns, TimeElapsedColumn()) as progress,
    ):
        bars = {job: progress.add_task("waiting", who="{}, seed {}".format(*job)) for job in jobs}
        futures = {job: pool.submit(one_encoder, *job, data, t, e) for job in jobs}
        while not (all(future.done() for future in futures.values()) and queue.empty()):
            with suppress(Empty):
                job, update = queue.get(timeout=0.1)
                progress.update(bars[job], **update)
                if "description" in update and not progress.console.is_terminal:
                    print(f"{job[0]}, seed {job[1]}: {update['description']}", flush=True)
        done = {job: future.result() for job, future in futures.items()}
    found = {name: [done[name, seed][0] for seed in range(seeds)] for name in METHODS}
    return found, {name: done[name, 0][1] for name in METHODS}


# --- the record, and the table and the figure made from it ----------------------------------------


def make_record(
    found: dict[str, list[dict[str, Any]]],
    data: Digits,
    t: Training,
    e: Evaluation,
    command: str,
    workers: int,
) -> dict[str, Any]:
    """All that the table and the curves show, and what it takes to get it again."""

    def over_seeds(values: list[float], n: int) -> dict[str, Any]:
        std = stdev(values) if len(values) > 1 else None
        return {"values": values, "n": n, "mean": mean(values), "std": std}

    sizes = {"clean": len(data.test), "pgd": len(data.test)}
    sizes |= {"pgd_same_images": e.autoattack_images, "autoattack": e.autoattack_images}
    methods = [
        {
            "name": name,
            **{k: over_seeds([r[k] for r in runs], n) if n else None for k, n in sizes.items()},
            "curve": {"radii": [0, *e.radii], "values": [[r["clean"], *r["curve"]] for r in runs]},
            "seconds": {phase: [r["seconds"][phase] for r in runs] for phase in runs[0]["seconds"]},
        }
        for name, runs in found.items()
    ]
    commit = said("git", "rev-parse", "HEAD")
    return {
        "name": "quickstart",
        "methods": methods,
        "seeds": list(range(len(methods[0]["clean"]["values"]))),
        "dataset": data.record,
        "schedule": asdict(t),
        "attack": {"norm": "Linf", "autoattack": "standard", **asdict(e)},
        "command": command,
        "commit": commit,
        "dirty": bool(said("git", "status", "--porcelain")) if commit else None,
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "workers": workers,  # of one thread each
            **{p: version(p) for p in ("torch", "timm", "lightly", "kornia", "pyautoattack")},
        },
    }


def said(*command: str) -> str | None:
    """What a command prints when run beside this file, or None if it fails."""
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode().strip()


def cpu_model() -> str:
    """The processor's name: Linux tells it in a file, other systems through Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def make_table(record: dict[str, Any]) -> str:
    """The record's accuracies, in Markdown."""

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return "skipped"
        spread = "" if found["std"] is None else f" ± {100 * found['std']:.1f}"
        return f"{100 * found['mean']:.1f}{spread}"

    attack, dataset, seeds = record["attack"], record["dataset"], len(record["seeds"])
    n, pgd = attack["autoattack_images"], f"PGD-{attack['pgd_steps']}"
    heads = ["accuracy (%)", "clean", pgd]
    heads += [f"{pgd}, n = {n}", f"AA standard, n = {n}"] if n else ["AA standard"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    kinds = ["clean", "pgd", *(["pgd_same_images"] if n else []), "autoattack"]
    for m in record["methods"]:
        cells = [m["name"], *(cell(m[k]) for k in kinds)]
        lines.append(f"| {' | '.join(cells)} |")
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return "\n".join(lines) + (
        f"\n\nLinear probe, {spread}; n = {dataset['test']} {dataset['measured_on']} images unless "
        f"stated; attacks in the ℓ∞ ball of radius {attack['radius']}, pixels in [0, 1].\n"
    )


def make_figure(
    record: dict[str, Any], classifiers: dict[str, nn.Module], data: Digits, e: Evaluation
) -> Figure:
    """Above, accuracy against attack radius; below, what the attack does. As wide as a phone."""
    figure = Figure(figsize=(4.8, 6.9), layout="constrained", dpi=130)
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1), hspace=0.03)
    draw_curves(above.subplots(), record)
    draw_digits(below, hardest_views(classifiers, data, e))
    return figure


def draw_curves(axes: Axes, record: dict[str, Any]) -> None:
    """Accuracy against attack radius: the mean over seeds, and their range as a band."""
    for method, colour, marker in zip(record["methods"], COLOURS, "so^", strict=True):
        radii, values = method["curve"]["radii"], 100 * np.array(method["curve"]["values"])
        axes.plot(radii, values.mean(0), marker, ls="-", color=colour, lw=2, label=method["name"])
        axes.fill_between(radii, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
    axes.axvline(record["schedule"]["radius"], color="black", lw=1, ls=":")
    axes.text(record["schedule"]["radius"], 102, "radius trained with", ha="center")
    seeds, steps = len(record["seeds"]), record["attack"]["pgd_steps"]
    band = f"\nmean and range of {seeds} seeds" if seeds > 1 else ""
    axes.set_title(f"How many digits survive PGD-{steps}{band}", pad=16, weight="bold")
    axes.set_xlabel("attack radius (ℓ∞, pixels in [0, 1])")
    axes.set_ylabel(f"right of {record['dataset']['test']} test digits (%)")
    axes.set(xlim=(0, radii[-1]), ylim=(0, 101))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


Views: TypeAlias = tuple[str, Tensor, Tensor | None]  # what they are, images, what is read


def hardest_views(classifiers: dict[str, nn.Module], data: Digits, e: Evaluation) -> list[Views]:
    """Digits of five classes, and the views of them that two encoders find hardest to match."""
    digits = data.test[class_balanced(data.test_labels, 10)][::2]
    rows: list[Views] = [("clean", digits, None)]
    for name, label in (("SimCLR", "SimCLR"), ("adversarial view", "the robust\nencoder")):
        encoder, _ = classifier = classifiers[name]
        clean = encoder(digits)
        hard = AdversarialViewGenerator(Linf(e.radius), e.pgd_steps)(
            digits,
            lambda v: -F.cosine_similarity(encoder(v), clean),
            freeze=encoder,
            generator=torch.Generator().manual_seed(0),
        )
        rows.append((f"hardest view\nfor {label}", hard, classifier(hard).argmax(1)))
    return rows


def draw_digits(figure: SubFigure, rows: list[Views]) -> None:
    """A row of images each, and above them what the probe reads."""
    grid = figure.subplots(len(rows), len(rows[0][1]))
    for axes, (label, images, read) in zip(grid, rows, strict=True):
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for place, (ax, image) in enumerate(zip(axes, images, strict=True)):
            ax.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if read is not None:
                wrong = int(read[place]) != 2 * place
                style_of_text = {"color": COLOURS[1], "weight": "bold"} if wrong else {}
                ax.set_title(f"reads {read[place]}", fontsize=10, pad=2, **style_of_text)
    figure.suptitle("What the linear probe then reads", weight="bold")


# --- command line ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain, measure, and write record.json, table.md and quickstart.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seeds", type=int, default=1, help="repeat with seeds 0 to N - 1")
    add("--epochs", type=int, default=Training.epochs)
    add("--pgd-steps", type=int, default=Evaluation.pgd_steps)
    add("--aa-images", type=int, default=Evaluation.autoattack_images, help="0: no AutoAttack")
    add("--workers", type=int, default=os.cpu_count(), help="encoders trained side by side")
    add("--validate", action="store_true", help="measure on 260 of the training images instead")
    add("--out", type=Path, default=Path("runs/quickstart"))
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "examples/quickstart.py", *arguments])
    command = re.sub(r"(?<=[ =])/\S*/", "", command)  # no folder of this machine
    data = load(validate=options.validate)
    t = Training(epochs=options.epochs)
    e = Evaluation(pgd_steps=options.pgd_steps, autoattack_images=options.aa_images)
    found, classifiers = run(data, t, e, options.seeds, options.workers)
    record = make_record(found, data, t, e, command, options.workers)
    table = make_table(record)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "record.json").write_text(json.dumps(record, indent=1, ensure_ascii=False))
    (options.out / "table.md").write_text(table)
    make_figure(record, classifiers, data, e).savefig(options.out / "quickstart.png")
    print(f"\n{table}\nrecord.json, table.md and quickstart.png are in {options.out}")


if __name__ == "__main__":
    main()
