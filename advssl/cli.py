"""The command line: from a checkpoint to a robustness report, and from reports to a comparison."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
from torch import nn

from advssl.balls import L2, Ball, Linf, check_radius
from advssl.evaluation import attacks, comparison, diagnostics, probes, records, report
from advssl.evaluation.checkpoints import FORMATS, bn_branches, load_encoder
from advssl.evaluation.data import Data, batches, open_data, split_spec, targets
from advssl.evaluation.identity import identity_of
from advssl.integrations.timm import backbone
from advssl.types import Images, Labels, see

Batches: TypeAlias = list[tuple[Images, Labels]]
Encoders: TypeAlias = dict[str | None, nn.Module]  # by BatchNorm branch

_BATCH = 100
# One split and one choice of images whatever --seed is: reports of several seeds are paired by
# image, and what an encoder was pretrained on never becomes a test image.
_DATA_SEED = 0
_IMAGES = 200  # measured on, where there are as many
_L2_RADIUS = 0.5  # of "pgd-l2", whatever --eps says: the field's figure at 32 x 32
_RADII = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the figure, in units of --eps
_STEPS = (1, 2, 5, 10, 20, 50)
_STRIP = 8
ATTACKS = ("clean", "pgd", "pgd-l2", "mpgd", "aa")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake in what was asked for ends it with one line, before any work."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parser().parse_args(words)
        written = options.run(options, "advssl " + shlex.join(words))
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"advssl: {error}") from error
    print("\n".join(f"wrote {path}" for path in written.values()))


def evaluate(options: argparse.Namespace, command: str) -> dict[str, Path]:
    """Probes, attacks, doubts and the report. Repeated after a kill, it goes on where it was."""
    if (options.mean is None) != (options.std is None):
        raise ValueError("--mean and --std go together; give both, one number per channel")
    if options.bn_branch and not options.checkpoint:
        raise ValueError("--bn-branch chooses from a checkpoint's branches; give --checkpoint")
    ball = _ball(options)
    chosen = _attacks(options.attacks, ball)
    protocols = [probes.protocol(options.preset, name) for name in options.protocol]
    _check_writable(Path(options.out) / "work" / "measured")
    torch.manual_seed(options.seed)  # of a backbone without checkpoint
    blank = backbone(options.backbone).eval()
    data = _data(options)
    measured = _measured_on(data, options.num_images)
    _check_radius(ball, measured[0][0].shape[1:])
    encoders, model = _encoders(options, blank)
    job = _Job(options, data, measured, ball, chosen)
    with attacks.progress_bars() as progress:
        sections = [s for how in protocols for s in job.sections(encoders, how, progress)]
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
                "measured on": sum(len(y) for _, y in job.measured),
            },
            command=command,
            sections=tuple(sections),
        ),
        options.out,
    )


def _data(options: argparse.Namespace) -> Data:
    return open_data(
        options.data,
        image_size=options.image_size,
        seed=_DATA_SEED,
        train=options.train,
        validation=options.val,
        test=options.test,
    )


def _encoders(options: argparse.Namespace, blank: nn.Module) -> tuple[Encoders, dict[str, Any]]:
    """By BatchNorm branch, and what the report says of them."""
    model: dict[str, Any] = {"backbone": options.backbone, "checkpoint": "none: random weights"}
    encoders: Encoders = {None: blank}
    if options.checkpoint:
        file = options.checkpoint
        how = {k: getattr(options, k) for k in ("format", "prefix", "allow_partial")}
        branches = options.bn_branch or bn_branches(blank, file, **how)
        encoders = {}
        for branch in branches or (None,):
            encoder = copy.deepcopy(blank)
            loaded = load_encoder(encoder, file, bn_branch=branch, **how)
            print(loaded)
            encoders[loaded.bn_branch] = encoder
        model |= {"checkpoint": Path(file).name, "format": loaded.format}
        if loaded.normalization and options.mean is None:
            options.mean, options.std = (list(part) for part in loaded.normalization)
    return {branch: encoder.to(_device()) for branch, encoder in encoders.items()}, model


@dataclass(frozen=True)
class _Job:
    """What all sections of a report have in common."""

    options: argparse.Namespace
    data: Data
    measured: Batches
    ball: Ball
    chosen: Sequence[attacks.Attack]

    @property
    def work(self) -> Path:
        return Path(self.options.out) / "work"

    def sections(
        self, encoders: Encoders, how: probes.Protocol, progress: attacks.Progress
    ) -> Iterator[report.Section]:
        """One protocol: for each branch the last epoch's classifier, then the best one's."""
        told = {branch: _telling(progress, how.name, branch) for branch in encoders}
        found = {
            branch: self._finetuned(encoder, how, told[branch])
            for branch, encoder in encoders.items()
        }
        last = {branch: f.last for branch, f in found.items()}
        for branch, f in found.items():
            yield self._of_last(last, branch, how, told[branch])
            if how.selects == "validation" and not targets(self.data.validation):
                continue  # one image per class: no epoch could be chosen
            selected = "selected on test" if how.selects == "test" else "best on validation"
            yield report.Section(
                protocol=how.name,
                branch=branch,
                measurements=tuple(
                    self._measure(f.best, attack, told[branch])
                    for attack in (attacks.Clean(), attacks.PGD(self.ball, 20, self._step))
                ),
                selected=f"{selected}, epoch {f.best_epoch} of {how.epochs}",
            )

    @property
    def _step(self) -> float:
        return self.ball.radius / 4

    def _of_last(
        self,
        classifiers: Mapping[str | None, probes.Classifier],
        branch: str | None,
        how: probes.Protocol,
        progress: attacks.Progress,
    ) -> report.Section:
        classifier, ball = classifiers[branch], self.ball
        found = [self._measure(classifier, attack, progress) for attack in self.chosen]

        def accuracy(attack: attacks.Attack) -> float:
            return self._measure(classifier, attack, progress).value

        by_radius = [(0.0, found[0].value)]
        # To where every image can become the same grey, and accuracy must be zero.
        grey = diagnostics.grey_radius(ball, self.measured[0][0])
        assert grey is not None  # of Linf and L2, which are all that _ball makes
        for radius in (*(r for r in (s * ball.radius for s in _RADII) if r < grey), grey):
            around = type(ball)(radius)  # type: ignore[call-arg]
            by_radius.append((radius, accuracy(attacks.PGD(around, 20, None))))
        return report.Section(
            protocol=how.name,
            branch=branch,
            measurements=tuple(found),
            checks=tuple(self._doubts(classifiers, branch, found[0].dataset, progress)),
            by_radius=tuple(by_radius),
            by_steps=tuple(
                (steps, accuracy(attacks.PGD(ball, steps, max(self._step, ball.radius / steps))))
                for steps in _STEPS
            ),
            strip=self._strip(classifier),
            classifier=self._kept(classifier),
        )

    def _finetuned(
        self, encoder: nn.Module, how: probes.Protocol, progress: attacks.Progress
    ) -> probes.Finetuned:
        return probes.finetune(
            encoder,
            self.data,
            how,
            ball=self.ball,
            mean=self.options.mean,
            std=self.options.std,
            seed=self.options.seed,
            folder=self.work,
            progress=progress,
        )

    def _measure(
        self, classifier: nn.Module, attack: attacks.Attack, progress: attacks.Progress
    ) -> records.Measurement:
        return attacks.measure(
            classifier,
            attack,
            self.measured,
            seed=self.options.seed,
            folder=self.work / "measured",
            progress=progress,
            population=len(targets(self.data.test)),
        )

    def _kept(self, classifier: nn.Module) -> str:
        """Its weights' name in ``work``, for a later comparison."""
        name = attacks.classifier_fingerprint(classifier)[:16]
        path = self.work / f"classifier-{name}.pt"
        if not path.exists():
            with records.replacing(path) as partial:
                torch.save(classifier.state_dict(), partial)
        return name

    def _doubts(
        self,
        classifiers: Mapping[str | None, nn.Module],
        branch: str | None,
        dataset: str,
        progress: attacks.Progress,
    ) -> list[diagnostics.Check]:
        branches = {name: c for name, c in classifiers.items() if name and len(classifiers) > 1}
        involved = [classifiers[branch], *branches.values()]
        identity = identity_of(involved, dataset, self.ball)
        path = self.work / f"doubts-{identity[:16]}.json"
        if path.exists():
            return [diagnostics.Check(**c) for c in json.loads(path.read_text(encoding="utf-8"))]
        checks = diagnostics.doubts(
            classifiers[branch],
            self.measured,
            ball=self.ball,
            branches=branches,
            progress=progress,
        )
        with records.replacing(path) as partial:
            partial.write_text(json.dumps([asdict(c) for c in checks]), encoding="utf-8")
        return checks

    def _strip(self, classifier: nn.Module) -> report.Strip:
        images, labels = (column[:_STRIP] for column in self.measured[0])
        hard = attacks.PGD(self.ball, 20, None)(classifier, images, labels, seed=self.options.seed)

        def names(classes: torch.Tensor) -> tuple[str, ...]:
            return tuple(self.data.classes[c] for c in classes.tolist())

        with torch.no_grad():
            before, after = (classifier(x).argmax(1) for x in (images, hard))
        return report.Strip(
            clean=images.cpu(),
            adversarial=hard.cpu(),
            labels=names(labels),
            predicted_clean=names(before),
            predicted=names(after),
            radius=self.ball.radius,
        )


def _telling(progress: attacks.Progress, *names: str | None) -> attacks.Progress:
    """``progress`` under the names of what it is the progress of."""
    start = " / ".join(filter(None, names))
    return lambda what, done, total: progress(f"{start}: {what}", done, total)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _measured_on(data: Data, count: int | None) -> Batches:
    """Class-balanced, seeded test images; all of them with ``count`` 0."""
    dataset: Any = data.test
    there = len(targets(dataset))
    if count is not None and count > there:
        raise ValueError(f"--num-images {count}: there are {there} test images; 0 is all")
    if count is None or count:
        labels = torch.tensor(targets(dataset))
        chosen = attacks.class_balanced(labels, count or min(_IMAGES, there), _DATA_SEED)
        dataset = torch.utils.data.Subset(dataset, chosen.tolist())
    return [(x.to(_device()), y.to(_device())) for x, y in batches(dataset, _BATCH)]


def _check_writable(place: Path) -> None:
    """Raise if that folder is neither there nor can be made."""
    there = next(above for above in (place, *place.parents) if os.path.lexists(above))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is there and no folder"
        raise ValueError(f"--out: {there} {what}; name another folder")


def _attacks(names: Sequence[str], ball: Ball) -> list[attacks.Attack]:
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
    return [attacks.Clean(), *(a for name in names for a in available[name])]


def _ball(options: argparse.Namespace) -> Ball:
    ball = Linf(options.eps) if options.norm == "linf" else L2(options.eps)
    _check_radius(ball)
    return ball


def _check_radius(ball: Ball, shape: Sequence[int] | None = None) -> None:
    try:
        check_radius(ball, shape)
    except ValueError as error:
        raise ValueError(f"--eps: {error}") from error


# --- compare --------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, command: str) -> dict[str, Path]:
    """The differences of earlier reports from the first, and how their attacks transfer."""
    _check_writable(Path(options.out))
    groups = [[_Earlier.opened(Path(place)) for place in group] for group in options.reports]
    earlier = [one for group in groups for one in group]
    if Path(options.out).resolve() in [one.folder.resolve() for one in earlier]:
        raise ValueError(f"--out: {options.out} is a report that is compared; name another folder")
    balls = {repr(_ball(one.options)): None for one in earlier}
    if len(balls) > 1:
        raise ValueError(
            f"reports are compared under one threat model, got {', '.join(balls)}; evaluate all "
            "with the same --norm and --eps"
        )
    short = {one.folder: one.folder.resolve().name for one in earlier}
    if len(set(short.values())) < len(short):
        short = {folder: str(folder) for folder in short}
    encoders = {
        ", ".join(short[one.folder] for one in group): [one.written for one in group]
        for group in groups
    }
    page = comparison.compared(encoders, command)
    with attacks.progress_bars() as progress:
        transfer = _transfer({short[one.folder]: one for one in earlier}, progress)
    page = replace(page, tables=(*page.tables, transfer))
    for section, check in report.failed(page):
        print(f"doubt: {section.label}: {check.evidence}")
    for table in page.tables:
        print(table)
    return report.write(page, options.out)


@dataclass(frozen=True)
class _Earlier:
    """A report that was written by ``advssl evaluate``."""

    folder: Path
    written: report.Report
    options: argparse.Namespace

    @classmethod
    def opened(cls, place: Path) -> _Earlier:
        folder = place if place.is_dir() else place.parent
        record = folder / "record.json"
        if not record.exists():
            raise ValueError(f"no report in {place}; give the --out folder of advssl evaluate")
        found = report.read(record)
        words = found.command.split()[1:2]
        if words != ["evaluate"]:
            raise ValueError(f"{record} is of {found.command!r}; give reports of advssl evaluate")
        try:  # read, never run: without --help, which prints and ends the program
            asked = _parser(add_help=False).parse_args(shlex.split(found.command)[1:])
            _ball(asked)
        except ValueError as error:
            raise ValueError(
                f"{record} has no command of this advssl, {found.command!r}: {error}; evaluate "
                "again"
            ) from error
        return cls(folder, found, asked)

    def classifier(self, section: report.Section) -> probes.Classifier:
        """What ``section`` measured, from the weights that were kept."""
        if not re.fullmatch("[0-9a-f]{16}", section.classifier or ""):  # part of a file's name
            raise ValueError(
                f"{self.folder} names a classifier by 16 hex digits, got {section.classifier!r}"
            )
        path = self.folder / "work" / f"classifier-{section.classifier}.pt"
        if not path.exists():
            raise ValueError(f"{path} is not there; run again: {self.written.command}")
        try:
            classifier = self._filled(path, probes.protocol(self.options.preset, section.protocol))
        except Exception as error:  # whatever a file or a record by others leads to
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path} does not fit its record: {reason}" + see("A record that is refused")
            ) from error
        if attacks.classifier_fingerprint(classifier)[:16] != section.classifier:
            raise ValueError(f"{path} is not what was measured; run again: {self.written.command}")
        return classifier.eval().requires_grad_(False).to(_device())

    def _filled(self, path: Path, how: probes.Protocol) -> probes.Classifier:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # A tensor in a small file can claim any size, by strides of zero.
        if sum(t.numel() * t.element_size() for t in state.values()) > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        classes, width = state["linear.weight"].shape
        mean, std = (report.known(self.written.model).get(name) for name in ("mean", "std"))
        classifier = probes.Classifier(
            backbone(self.options.backbone), width, classes, mean=mean, std=std, reads=how.reads
        )
        classifier.load_state_dict(state)
        return classifier


def _transfer(earlier: Mapping[str, _Earlier], progress: attacks.Progress) -> report.Table:
    """Black-box accuracies; without the classifiers or the images, why there are none."""
    title, first = "Transfer of adversarial images", next(iter(earlier.values()))
    ball = _ball(first.options)
    attack = attacks.PGD(ball, 20, ball.radius / 4)
    try:
        classifiers = {
            f"{name}: {section.label}": one.classifier(section)
            for name, one in earlier.items()
            for section in one.written.sections
            if section.classifier
        }
        clean = first.written.sections[0].measurements[0]
        measured = _measured_on(_data(first.options), clean.n)
        seen = records.Fingerprint()
        for images, labels in measured:
            seen.update(images, labels)
        if str(seen) != clean.dataset:
            raise ValueError(f"{first.options.data} has other images than when it was measured")
    except (ValueError, OSError) as error:
        return report.Table(title, (), (), f"Not run: {error}.")
    found = attacks.transfer(classifiers, measured, attack, progress=progress)
    return report.Table(
        title,
        ("made for", *(f"{name} (%)" for name in classifiers)),
        tuple((name, *(100 * share for share in found.loc[name])) for name in classifiers),
        f"Accuracy under {attack.name}, made for the classifier of the row and given to that of "
        "the column; the diagonal is white box. Where another row of a column leaves less than its "
        "diagonal, the white-box number of that column is not to be believed.",
    )


# --- what is asked for ----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Whose complaints are errors as all others: one line, and nothing printed before it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def _wrong(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{wanted}, got {text[:60]!r}")


def _text(text: str) -> str:
    if not text.strip():
        raise _wrong(text, "a name must not be empty")
    return text


def _words(text: str) -> list[str]:
    words = [word for word in text.split(",") if word.strip()]
    if not words:
        raise _wrong(text, "one name at least, several with commas")
    return words


def _names(text: str) -> list[str]:
    """Words, each once."""
    return list(dict.fromkeys(word.strip() for word in _words(text)))


def _attack_names(text: str) -> list[str]:
    names = _names(text)
    if not set(names) <= {*ATTACKS}:
        raise _wrong(text, f"attacks are {', '.join(ATTACKS)}")
    return names


def _spec(text: str) -> str:
    try:
        split_spec(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parsed(text: str) -> int:
        digits = text.strip().removeprefix("+")
        # int() also takes other scripts' digits and, of too many digits, is an error of its own.
        if not re.fullmatch("[0-9]{1,20}", digits) or not least <= int(digits) <= most:
            raise _wrong(text, f"a whole number from {least} to {most}")
        return int(digits)

    return parsed


def _number(text: str) -> float:
    """One number or a fraction of two, NaN on anything else."""
    try:
        above, *below = map(float, text.split("/"))
        (divisor,) = below or [1.0]
        return above / divisor
    except (ValueError, ZeroDivisionError):
        return math.nan


def _radius(text: str) -> float:
    radius = _number(text)
    if not 0 < radius < math.inf:
        raise _wrong(text, "a radius is a positive number or fraction, such as 0.03 or 8/255")
    return radius


def _channels(text: str) -> list[float]:
    values = [_number(word) for word in _words(text)]
    if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values):
        wanted = "one number or three, for pixels in [0, 1] (123.7 grey levels are 123.7/255)"
        raise _wrong(text, wanted)
    return values


def _deviations(text: str) -> list[float]:
    values = _channels(text)
    if not all(values):
        raise _wrong(text, "a standard deviation is above zero")
    return values


def _parser(add_help: bool = True) -> argparse.ArgumentParser:
    parser = _Parser(prog="advssl", description=__doc__, add_help=add_help)
    commands = parser.add_subparsers(required=True, metavar="evaluate | compare")
    evaluation = commands.add_parser(
        "evaluate",
        help="probes, attacks and the reasons to doubt them, as one report",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        add_help=add_help,
    )
    evaluation.set_defaults(run=evaluate)
    add = evaluation.add_argument
    add("--backbone", type=_text, required=True, help=_BACKBONE_HELP)
    add("--checkpoint", type=_text, help="a file; without it the backbone's random weights")
    add("--format", default="auto", choices=["auto", *(f.name for f in FORMATS)])
    add("--prefix", help="of the encoder's names in the checkpoint")
    add("--allow-partial", action="store_true", help="excuse what is neither encoder nor head")
    add("--bn-branch", type=_names, help=_BRANCH_HELP)
    add("--data", type=_spec, default="digits", help=_DATA_HELP)
    add("--train", type=_text, help="folder of training images, if not PATH/train")
    add("--val", type=_text, help="folder of validation images, if not a tenth of train")
    add("--test", type=_text, help="folder of test images, if not PATH/test")
    add("--image-size", type=_whole(1, 10_000))
    add("--mean", type=_channels, help="of the encoder's input, per channel: 0.5,0.5,0.5")
    add("--std", type=_deviations)
    add(
        "--preset",
        default="standardised",
        type=probes.preset_name,
        choices=sorted(probes.PRESETS),
        help=_PRESET_HELP,
    )
    add("--protocol", type=_names, default="slf", help="slf, alf, fsf, aff, several with commas")
    add("--attacks", type=_attack_names, default=",".join(ATTACKS), help=_ATTACKS_HELP)
    add("--norm", default="linf", choices=["linf", "l2"])
    add("--eps", type=_radius, default=8 / 255, help="radius in pixels of [0, 1]: 8/255")
    add("--num-images", type=_whole(0, 10**9), help=_IMAGES_HELP)
    add("--seed", type=_whole(0, 2**63 - 1), default=0, help=_SEED_HELP)
    add(
        "--out",
        type=_text,
        default="report",
        help="folder of report.html, report.md and record.json",
    )
    comparing = commands.add_parser(
        "compare",
        help="earlier reports against the first of them: which differences are real",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        add_help=add_help,
    )
    comparing.set_defaults(run=compare)
    comparing.add_argument(
        "reports",
        nargs="+",
        type=_words,
        metavar="REPORT",
        help="the --out folder of an evaluation; those of one encoder's seeds with commas",
    )
    comparing.add_argument(
        "--out", type=_text, default="comparison", help="folder of the three files"
    )
    return parser


_BACKBONE_HELP = "timm:NAME, or cifar:NAME[:WIDTH] with a 3 x 3 stem"
_DATA_HELP = "digits, cifar10, cifar100 or stl10 with [:ROOT], or folder:PATH"
_BRANCH_HELP = "of a checkpoint's BatchNorm branches, several with commas; else all"
_ATTACKS_HELP = f"of {', '.join(ATTACKS)}"
_IMAGES_HELP = f"class-balanced test images; 0 is all; else {_IMAGES}, if there are as many"
_SEED_HELP = "of probes and attacks; images stay the same"
_PRESET_HELP = 'whose settings a protocol has; "released" alone selects its epoch on test images'

if __name__ == "__main__":
    main()
