"""Options: the words of a command to what was asked for, checked, without importing torch."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NoReturn

import advssl
from advssl.evaluation.choices import (
    ATTACKS,
    MEASURES,
    NORMS,
    OLDER_PRESETS,
    PRESETS,
    PROTOCOLS,
    named,
    names_timm,
    split_spec,
)
from advssl.evaluation.choices import OWN as OWN
from advssl.evaluation.formats import FORMATS
from advssl.extras import EVAL


@dataclass(frozen=True)
class Options:
    """What ``advssl evaluate`` was asked for."""

    backbone: str | None
    checkpoint: str | None
    format: str
    prefix: str | None
    allow_partial: bool
    bn_branch: list[str] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    data: str
    train: str | None
    val: str | None
    test: str | None
    image_size: int | None
    num_images: int | None
    protocol: list[str]
    preset: str | None
    attacks: list[str]
    norm: str
    eps: float
    doubts: bool | None
    figures: bool | None
    measures: list[str]
    budget: float | None
    batch_size: int
    seed: int
    dry_run: bool
    out: str

    def __post_init__(self) -> None:
        if not self.backbone and not (self.protocol == [OWN] and self.checkpoint):
            raise ValueError(
                "the following arguments are required: --backbone; see advssl evaluate --help"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together; give both, one number per channel")
        of_file = {"bn_branch": None, "prefix": None, "format": "auto", "allow_partial": False}
        for name, unset in of_file.items():
            if getattr(self, name) != unset and not self.checkpoint:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is about a checkpoint's file; give --checkpoint")
        if OWN in self.protocol and len(self.protocol) > 1:
            raise ValueError("--protocol own is a classifier's own head, and goes with no probe")
        if OWN in self.protocol and not self.checkpoint:
            raise ValueError("--protocol own is a classifier's own head; give its --checkpoint")
        if OWN in self.protocol and self.preset:
            raise ValueError("--preset is a probe's, and --protocol own has none")
        check_writable(Path(self.out) / "work" / "measured")

    @property
    def needs(self) -> tuple[str, ...]:
        """The libraries without which the work would end before its report."""
        return (*EVAL, "timm") if self.backbone and names_timm(self.backbone) else EVAL

    @property
    def more(self) -> bool:
        """Without a word on it, doubts and figures come with every attack, and not with none."""
        return self.attacks != ["clean"]


@dataclass(frozen=True)
class Compared:
    """What ``advssl compare`` was asked for."""

    reports: list[list[str]]
    data: str | None
    out: str

    def __post_init__(self) -> None:
        check_writable(Path(self.out))

    @property
    def needs(self) -> tuple[str, ...]:
        """As :attr:`Options.needs`."""
        return EVAL


@dataclass(frozen=True)
class Examined:
    """What ``advssl doctor`` was asked for."""

    step: str
    needs: ClassVar[tuple[str, ...]] = ("msgspec",)  # a finding is an evaluation's check


@dataclass(frozen=True)
class Costed:
    """What ``advssl cost`` was asked for."""

    step: str
    needs: ClassVar[tuple[str, ...]] = Examined.needs


@dataclass(frozen=True)
class Pictured:
    """What ``advssl gallery`` was asked for."""

    step: str
    out: str
    images: int
    needs: ClassVar[tuple[str, ...]] = (*Examined.needs, "matplotlib")

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".png":
            raise ValueError(f"--out {self.out}: one PNG is written; name it such as gallery.png")
        check_writable(Path(self.out).parent)


def parse(words: Sequence[str]) -> Options | Compared | Examined | Costed | Pictured:
    """The words of a command, or a ValueError on what is wrong with them."""
    asked = vars(_parser().parse_args(words))
    kind = asked.pop("kind")
    return kind(**{f.name: asked[f.name] for f in fields(kind)})


def check_writable(place: Path) -> None:
    """Raise if that folder is neither there nor can be made."""
    there = next(above for above in (place, *place.parents) if os.path.lexists(above))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is there and no folder"
        raise ValueError(f"--out: {there} {what}; name another folder")


# --- single values --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Whose complaints are errors as all others: one line, and nothing printed before it."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def _wrong(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{wanted}, got {text[:60]!r}")


def _known(names: Sequence[str]) -> Callable[[str], str]:
    def parsed(text: str) -> str:
        if text not in names:
            raise _wrong(text, f"one of {', '.join(names)}")
        return text

    return parsed


def _text(text: str) -> str:
    if not text.strip():
        raise _wrong(text, "a name must not be empty")
    return text


def _place(text: str) -> str:
    """A path; a shell leaves the tilde of --out=~/report as it is."""
    return os.path.expanduser(_text(text))


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


def _measures(text: str) -> list[str]:
    names = _names(text)
    for name in names:
        try:
            named(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return names


def _protocols(text: str) -> list[str]:
    names = _names(text)
    if not set(names) <= {*PROTOCOLS, OWN}:
        raise _wrong(text, f"protocols are {', '.join(PROTOCOLS)} and {OWN}")
    return names


def _factory(text: str) -> str:
    """A name in a module that is there, without importing the module."""
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise _wrong(text, "a function's place as package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise argparse.ArgumentTypeError(
            f"there is no module {module} here or among the installed ones; call the command in "
            "the folder that it is in"
        )
    return text


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


def _channels(text: str) -> tuple[float, ...]:
    values = [_number(word) for word in _words(text)]
    if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values):
        wanted = "one number or three, for pixels in [0, 1] (123.7 grey levels are 123.7/255)"
        raise _wrong(text, wanted)
    return tuple(values * (3 // len(values)))


def _deviations(text: str) -> tuple[float, ...]:
    values = _channels(text)
    if not all(values):
        raise _wrong(text, "a standard deviation is above zero")
    return values


def _duration(text: str) -> float:
    """Seconds of "90s", "20min" or "2h"."""
    found = re.fullmatch(r"([0-9.]+) *(s|min|m|h)", text.strip())
    number = _number(found[1]) if found else math.nan
    if not found or not 0 < number < math.inf:
        raise _wrong(text, "a time is a number with s, min or h, such as 20min")
    return number * {"s": 1, "m": 60, "min": 60, "h": 3600}[found[2]]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="advssl",
        description="How robust is a checkpoint, which of two is more robust, and is a training "
        "step fit to be attacked?",
    )
    parser.add_argument("--version", action="version", version=f"advssl {advssl.__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="evaluate | compare | doctor | cost | gallery"
    )
    shape = lambda prog: argparse.HelpFormatter(prog, max_help_position=24, width=100)  # noqa: E731
    evaluation = commands.add_parser(
        "evaluate",
        help="probes, attacks and the reasons to doubt them, as one report",
        usage="advssl evaluate --backbone NAME [--checkpoint FILE] [--data DATA] [...]",
        formatter_class=shape,
        add_help=False,
    )
    evaluation.set_defaults(kind=Options)
    hidden = argparse.SUPPRESS
    add = evaluation.add_argument_group("of what").add_argument
    add(
        "--backbone",
        type=_text,
        metavar="NAME",
        help="timm:NAME, or cifar:NAME[:WIDTH] with a 3 x 3 stem",
    )
    add("--checkpoint", type=_place, metavar="FILE", help="its weights; without, random ones")
    add(
        "--format",
        default="auto",
        type=_known(["auto", *(form.name for form in FORMATS)]),
        metavar="NAME",
        help="of the file; found out",
    )
    add("--prefix", metavar="TEXT", help="of the encoder's names in the file")
    add("--allow-partial", action="store_true", help="excuse what is neither encoder nor head")
    add("--bn-branch", type=_names, metavar="NAMES", help="BatchNorm branches, with commas; all")
    add(
        "--mean",
        type=_channels,
        metavar="M,M,M",
        help="of the encoder's input, per channel; none, or the file's",
    )
    add("--std", type=_deviations, metavar="S,S,S", help="likewise")
    add = evaluation.add_argument_group("on which images").add_argument
    add(
        "--data",
        type=_spec,
        default="digits",
        metavar="DATA",
        help="digits, cifar10, cifar100, stl10 with [:ROOT], or folder:PATH; digits",
    )
    add(
        "--train",
        type=_place,
        metavar="FOLDER",
        help="and --val, --test: in place of PATH/train, a tenth of it, PATH/test",
    )
    add("--val", type=_place, help=hidden)
    add("--test", type=_place, help=hidden)
    add(
        "--image-size",
        type=_whole(1, 10_000),
        metavar="N",
        help="height and width; the images' own",
    )
    add(
        "--num-images",
        type=_whole(0, 10**9),
        metavar="N",
        help="class-balanced test images; 0 is all; 200",
    )
    add = evaluation.add_argument_group("by which classifier").add_argument
    add(
        "--protocol",
        type=_protocols,
        default="slf",
        metavar="NAMES",
        help="slf, alf, fsf, aff, with commas; or own, a classifier's head; slf",
    )
    add(
        "--preset",
        type=_known([*PRESETS, *OLDER_PRESETS]),
        metavar="NAME",
        help="with whose settings; advcl for photographs, else standardised",
    )
    add = evaluation.add_argument_group("under which attacks").add_argument
    add(
        "--attacks",
        type=_attack_names,
        default="clean,pgd,pgd-l2,mpgd,aa",
        metavar="NAMES",
        help="clean, pgd, pgd-l2, mpgd, aa: these; pgd-double, pgd-250, mpgd-250",
    )
    add(
        "--norm",
        default="linf",
        type=_known(NORMS),
        metavar="NAME",
        help=f"{' or '.join(NORMS)}; linf",
    )
    add("--eps", type=_radius, default=8 / 255, metavar="RADIUS", help="in pixels of [0, 1]; 8/255")
    add = evaluation.add_argument_group("with how much work").add_argument
    yes_no = argparse.BooleanOptionalAction
    add(
        "--doubts",
        action=yes_no,
        default=None,
        help="reasons not to believe it; yes, unless --attacks clean",
    )
    add(
        "--figures", action=yes_no, default=None, help="accuracy against radius and steps; likewise"
    )
    add(
        "--with",
        dest="measures",
        type=_measures,
        default=[],
        metavar="NAMES",
        help=f"beyond accuracy, with commas: {', '.join(MEASURES)}; none",
    )
    add(
        "--budget",
        type=_duration,
        metavar="TIME",
        help="as many images as fit into 90s, 20min or 2h",
    )
    add(
        "--batch-size",
        type=_whole(1, 10**6),
        default=100,
        metavar="N",
        help="images attacked at once; 100",
    )
    add(
        "--seed",
        type=_whole(0, 2**63 - 1),
        default=0,
        metavar="N",
        help="of probes and attacks; images stay the same; 0",
    )
    add("--dry-run", action="store_true", help="print the plan, and stop")
    add(
        "--out",
        type=_place,
        default="report",
        metavar="FOLDER",
        help="of report.html, report.md and record.json; report",
    )
    add("-h", "--help", action="help", help=hidden)
    comparing = commands.add_parser(
        "compare",
        help="earlier reports against the first of them: which differences are real",
        formatter_class=shape,
    )
    comparing.set_defaults(kind=Compared)
    add = comparing.add_argument
    add(
        "reports",
        nargs="+",
        type=_words,
        metavar="REPORT",
        help="the --out folder of an evaluation; those of one encoder's seeds with commas",
    )
    add("--data", type=_spec, help="where the images are now, if not where they were")
    add("--out", type=_place, default="comparison", help="folder of the three files; comparison")
    for kind, name, said in (
        (Examined, "doctor", "what would silently spoil an attack on your training step"),
        (Costed, "cost", "what each component would add to your training step"),
        (Pictured, "gallery", "what your training step sees: benign and adversarial views"),
    ):
        looking = commands.add_parser(name, help=said, formatter_class=shape)
        looking.set_defaults(kind=kind)
        looking.add_argument(
            "step",
            type=_factory,
            metavar="PACKAGE.MODULE:FUNCTION",
            help="a function without arguments that returns a LightningModule, or a function of a "
            "batch that returns the loss; beside it one batch, and if you like the "
            "AdversarialViewGenerator to attack it with",
        )
    add = looking.add_argument  # of the gallery
    add("--images", type=_whole(1, 64), default=8, metavar="N", help="how many of the batch; 8")
    add("--out", type=_place, default="gallery.png", metavar="PNG", help="gallery.png")
    return parser
