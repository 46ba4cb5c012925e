"""The options of the command line: those of a run, and the settings of the method as flags."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from advssl.evaluation import choices
from advssl.extras import EVAL, check
from harness import published
from harness.presets import PRESETS
from harness.settings import told
from methods import METHODS

if TYPE_CHECKING:
    from harness.method import Method

GOES_ON = "the same command goes on where it was"
NEEDS = (*EVAL, "pytorch_lightning", "timm")  # without which a chain would end in its middle


def parse(
    words: Sequence[str], script: str = "reproduce.py", about: str = ""
) -> argparse.Namespace:
    """The options, with the settings of the method that is named as flags."""
    parser = Parser(
        prog=script,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("method", nargs="?", choices=sorted(METHODS), metavar="METHOD", help=", ".join(METHODS))
    add("--list", action="store_true", help="every method, table, figure and preset")
    add("--table", metavar="ID", help="run the rows of a table, such as advcl-4")
    add("--figure", metavar="ID", help="draw a figure; figure:ID says so too")
    add("--dry-run", action="store_true", help="the plan, its cost in F, and a time estimate")
    add(
        "--data",
        default="digits",
        help="digits, cifar10, cifar100, stl10 (:ROOT), folder:PATH; digits@0-4",
    )
    add("--finetune-data", metavar="DATA", help="other data to finetune and to measure on")
    add("--preset", choices=sorted(PRESETS), help="default: quick on digits, look elsewhere")
    add("--mode", default="released", choices=["released", "paper"])
    add("--seed", type=at_least(0), default=0)
    add(
        "--recipe", choices=sorted(published.recipes()), help="a table's, not the method's schedule"
    )
    add("--epochs", type=at_least(0), help="0 measures random weights")
    add("--batch-size", type=at_least(2), help="over all devices")
    add("--backbone", help="cifar:resnet18, cifar:wrn34_10, cifar:resnet20, timm:NAME")
    add("--width", type=at_least(1), help="channels of the first stage of a cifar:resnet18")
    add("--image-size", type=at_least(1))
    add("--limit", type=at_least(0), help="training images, class-balanced; 0 is all")
    add("--memory-gb", type=float, default=4.0, help="larger training sets are streamed")
    add("--plus", action="store_true", help="before that, finetune on its own clusters (DynACL++)")
    add("--protocol", default="slf", help="slf, alf, aff, fsf, with commas; or own, its own head")
    add(
        "--probe",
        type=choices.preset_name,
        choices=sorted(choices.PRESETS),
        help="whose finetuning settings",
    )
    attacks = ", ".join(name for name in choices.ATTACKS if name != "clean")
    add("--attacks", default="pgd", help=f"of {attacks}, several with commas")
    add("--num-images", type=at_least(0), help="test images that are attacked; 0 is all")
    add("--precision", choices=["32-true", "bf16-mixed"], help="of pretraining")
    add("--compile", action="store_true", help="torch.compile the encoder")
    add("--devices", type=at_least(1), default=1, help="processes, with DDP from two on")
    add("--time-budget", type=float, metavar="SECONDS", help=f"of pretraining; {GOES_ON}")
    add("--out", type=Path, default=Path("runs/papers"))
    name = next((word for word in words if word in METHODS), None)
    if name:
        check(NEEDS, script)
        of = METHODS[name].settings_type
        own, kinds = parser.add_argument_group(f"settings of {name}"), get_type_hints(of)
        for setting in fields(of):
            kind = kinds[setting.name]
            how: dict[str, Any] = {"type": _fraction if kind is float else kind}
            if kind is bool:
                how = {"action": argparse.BooleanOptionalAction}
            elif get_origin(kind) is Literal:
                how = {"choices": get_args(kind), "metavar": setting.name.upper()}
            flag = f"--{setting.name.replace('_', '-')}"
            own.add_argument(flag, default=argparse.SUPPRESS, help=told(setting, kind), **how)
    options, unknown = parser.parse_known_args(_spelled(words))
    if unknown:
        whose = f"{script} {name} --help" if name else f"{script} --help"
        parser.error(f"unknown: {' '.join(unknown)}; {whose} lists what there is")
    if sum(map(bool, (options.method, options.table, options.figure, options.list))) != 1:
        parser.error("name one of METHOD, --table ID, figure:ID and --list")
    if (options.table or options.figure) and options.devices > 1:
        what = "table" if options.table else "figure"
        parser.error(f"a {what} runs on one device; name its methods one by one")
    if options.devices > 1:
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else options.devices
        if options.devices > there:
            parser.error(f"there are {there} devices here, got --devices {options.devices}")
    budget = options.time_budget
    options.deadline = None if budget is None else time.monotonic() + budget
    return options


def _spelled(words: Sequence[str]) -> list[str]:
    """With figure:ID as the option that it is."""
    return [w.replace("figure:", "--figure=", 1) if w.startswith("figure:") else w for w in words]


def without_table(words: Sequence[str]) -> list[str]:
    """The words of a command without those that name a table or a figure."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--table")
    parser.add_argument("--figure")
    return parser.parse_known_args(_spelled(words))[1]


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the whole usage before it."""
        self.exit(2, f"{self.prog}: {message}\n")


def at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} on, got {text!r}")
        return int(text)

    return number


def _fraction(text: str) -> float:
    """ "0.1" or "8/255"."""
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction, got {text!r}") from None


def given(options: argparse.Namespace, method: type[Method]) -> dict[str, Any]:
    """Of a method's settings, those that were named."""
    names = [f.name for f in fields(method.settings_type)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
