"""Reproduce a paper's method, or a table of it: pretrain, finetune, attack, record.

    python examples/papers/reproduce.py --list
    python examples/papers/reproduce.py advcl                           # on digits, in minutes
    python examples/papers/reproduce.py advcl --data cifar10 --preset paper
    python examples/papers/reproduce.py --table advcl-4                 # ours beside the paper's
    python examples/papers/reproduce.py gsa_rsl --no-sam --dry-run      # the plan and its cost

Interrupted, or out of its ``--time-budget``, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import torch
from pytorch_lightning.utilities import rank_zero_only

from acl import ACL
from advcl import AdvCL
from advssl.evaluation import attacks, probes, records
from ascl_local import ASCL
from extended import ACLGSA, AdvCLGSA, GSAOnAdvCL
from gsa_rsl import GSARSL
from harness import chain, cost, tables
from harness.chain import Plan
from harness.data import Batch
from harness.method import Method
from harness.schedules import Recipe, WarmupCosine
from simclr import SimCLR
from supcon import SupCon
from supervised import AT, TRADES

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "supcon": SupCon,
    "at": AT,
    "trades": TRADES,
    "acl": ACL,
    "advcl": AdvCL,
    "gsa_rsl": GSARSL,
    "ascl_local": ASCL,
    "gsa_advcl": AdvCLGSA,
    "gsa_on_advcl": GSAOnAdvCL,
    "gsa_acl": ACLGSA,
}


@dataclass(frozen=True)
class Preset:
    """What a run takes where nothing else is said; None is the method's own."""

    what: str
    backbone: str = "cifar:resnet18"
    recipe: Recipe | None = None
    image_size: int | None = None
    limit: int | None = None
    num_images: int = 0
    precision: str = "32-true"
    probe: str | None = None
    flags: Mapping[str, Any] | None = None
    short: bool = True  # whether a method's settings for short runs are taken


# To see what a step costs, of a batch that would take longer than that:
_FEW, _PATIENCE = 16, 10.0  # images, seconds
SCRIPT = "reproduce.py"  # what records and messages call it
_GOES_ON = "the same command goes on where it was"

PRESETS = {
    "quick": Preset(
        "minutes on two cores: digits at 8 pixels, a narrow ResNet-18, ℓ∞ radius 0.1",
        backbone="cifar:resnet18:8",
        recipe=Recipe(24, 100, WarmupCosine(8e-3, 4, restarts=True), "adam"),
        image_size=8,
        probe="plain",
        flags={"radius": 0.1},
    ),
    "look": Preset(
        "a first look at natural images on a CPU: 10,000 of them, a narrow ResNet-18",
        backbone="cifar:resnet18:16",
        recipe=Recipe(20, 250, WarmupCosine(2e-3, 2, restarts=True), "adam"),
        limit=10_000,
        num_images=1_000,
        precision="bf16-mixed",
        probe="plain",
    ),
    "paper": Preset("the paper's own backbone, schedule and finetuning", short=False),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """One method, one table, or the list of what there is."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join([SCRIPT, *map(_without_place, words)])
    options = parse(words)
    try:
        if options.list:
            print(listing())
        elif options.table:
            print(reproduce_table(options, command))
        else:
            plan = plan_of(options.method, options, given(options, METHODS[options.method]))
            print(dry_run(plan) if options.dry_run else run(plan, options, command)["table"])
    except (ValueError, ImportError) as error:
        raise SystemExit(f"{SCRIPT}: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"{SCRIPT}: interrupted; {_GOES_ON}") from None


def run(plan: Plan, options: argparse.Namespace, command: str) -> dict[str, Any]:
    """The chain of one plan; its record, which is also written to ``--out``."""
    data = chain.open_plan(plan)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"no folder can be made at --out {options.out}: {error.strerror}"
        ) from error
    trained = chain.pretrained(
        plan,
        METHODS,
        data,
        options.out,
        compiled=options.compile,
        devices=options.devices,
        deadline=options.deadline,
        memory_gb=options.memory_gb,
    )
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        raise SystemExit(0)  # the first process does the rest
    if trained is None:
        print(f"the time budget is spent; {_GOES_ON}")
        raise SystemExit(0)
    method, told = trained
    started = time.perf_counter()
    with attacks.progress_bars() as progress:
        found = chain.measured(plan, method, data, options.out, progress)
    record = {
        "kind": "advssl chain",
        "plan": {**_json(asdict(plan)), "data": _without_place(plan.data)},
        "settings": _json(asdict(method.settings)),
        "presentations": told["presentations"],
        "command": command,
        "commit": records.commit(),
        "machine": records.machine(),
        "seconds": {
            "pretraining": told.get("seconds", 0.0),
            "evaluation": round(time.perf_counter() - started, 1),
        },
        "pretraining": told,
        "measurements": [json.loads(m.to_json()) for m in found],
    }
    folder = options.out / f"{plan.method}-{chain.digest(asdict(plan))}"
    folder.mkdir(exist_ok=True)
    record = _kept(folder / "record.json", record)
    for branch, encoder in chain.encoders(method, plan.branches).items():
        name = f"encoder-{branch}.pt" if branch else "encoder.pt"
        with records.replacing(folder / name) as part:
            torch.save(_exported(method, encoder), part)
    table = f"{_table(plan, found)}\n\nrecord.json and the encoders are in {folder}"
    return {**record, "table": table, "found": found}


def _kept(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record at ``path`` if it says the same of the same, else ``record``, written there.

    A command that is repeated reads its results back: when, where and how fast they were found
    stays what it was.
    """
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if _result(known) == _result(record):
            return known
    with records.replacing(path) as part:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record


def _result(record: Mapping[str, Any]) -> Any:
    measurements = [
        [m[key] for key in ("name", "correct", "seed", "settings", "dataset")]
        for m in record["measurements"]
    ]
    same = ("kind", "plan", "settings", "presentations", "pretraining")
    return [*(record.get(key) for key in same), measurements]


def _exported(method: Method, encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What ``advssl evaluate`` reads: weights, and how the encoder's input is normalised."""
    normalization = {
        f"normalize.{part}": torch.tensor(values)
        for part, values in chain.normalization(method).items()
    }
    return {**{k: v.cpu() for k, v in encoder.state_dict().items()}, **normalization}


def _table(plan: Plan, found: Sequence[records.Measurement]) -> str:
    """A line for each classifier, a column for each attack."""
    rows: dict[str, dict[str, str]] = {}
    for m in found:
        place, _, attack = m.name.partition(": ")
        rows.setdefault(place, {})[attack] = f"{100 * m.value:.1f}"
    heads = list(next(iter(rows.values())))
    title = f"{METHODS[plan.method].title}: accuracy (%) on {found[0].n} test images"
    lines = [[title, *heads], ["---", *["--:"] * len(heads)]]
    lines += [[place, *(row.get(attack, "") for attack in heads)] for place, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def dry_run(plan: Plan) -> str:
    """The plan, its cost in forwards per image, and how long it will take here."""
    data = chain.open_plan(plan)
    method, batch = chain.first_step(plan, METHODS, data)
    images = chain.training_images(method, data)
    steps = plan.recipe.epochs * chain.steps_per_epoch(plan, images)
    few = Batch(*(part[:_FEW] for part in batch))
    forwards = cost.forwards_per_image(method, few)
    seconds = cost.seconds_per_step(method, few, plan.precision) * len(batch[0]) / len(few[0])
    if seconds < _PATIENCE:
        seconds = cost.seconds_per_step(method, batch, plan.precision)
    lines = [f"{key}: {_shown(value)}" for key, value in asdict(plan).items() if key != "flags"]
    lines += [f"settings: {_shown(asdict(method.settings))}"]
    lines += [f"neither as released nor as in the paper: {line}" for line in method.ours]
    if method.after:
        lines.append(f"before it: {method.after}, for its clusters (not in what follows)")
    lines += [
        f"cost: {forwards:.1f} F per image and step, F one forward through the encoder",
        f"time: {steps} steps of {seconds:.2f} s, {steps * seconds / 60:.1f} minutes of "
        "pretraining; finetuning and attacks come on top",
    ]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def reproduce_table(options: argparse.Namespace, command: str) -> str:
    """A paper's table with our numbers beside the printed ones."""
    data = options.data.partition(":")[0]
    table = tables.lookup(options.table, data)
    plans = {}  # all of them first: what cannot be run is refused before any work
    for row in table.rows:
        if row.unavailable or row.method is None:
            continue
        asked = argparse.Namespace(**{**vars(options), "mode": row.mode or options.mode})
        plan = plan_of(row.method, asked, row.flags, row.recipe)
        plan = replace(plan, protocols=row.protocols, branches="own")
        if options.preset == "paper":
            plan = replace(
                plan,
                backbone=options.backbone or row.backbone or plan.backbone,
                preset=options.probe or table.probe or plan.preset,
            )
        for protocol in plan.protocols:
            probes.protocol(plan.preset, protocol)
        plans[row.label] = plan
    if options.dry_run:
        return "\n\n".join(f"{label}\n{dry_run(plan)}" for label, plan in plans.items())
    ours = {label: run(plan, options, command)["found"] for label, plan in plans.items()}
    return tables.render(table, ours, data, options.mode)


def listing() -> str:
    """Every method with its paper and the tables it is in."""
    lines = []
    for name, method in METHODS.items():
        ids = ", ".join(t.id for t in tables.tables_of(name)) or "none"
        lines.append(f"{name:11} {method.title}: {method.paper}; tables: {ids}")
    presets = (f"--preset {name}: {preset.what}" for name, preset in PRESETS.items())
    return "\n".join([*lines, "", *presets])


def plan_of(
    name: str, options: argparse.Namespace, flags: Mapping[str, Any], own: Recipe | None = None
) -> Plan:
    """What the options ask of a method, the preset's word where they are silent.

    ``own`` is the recipe for a preset without one, if not the method's.
    """
    method, of = METHODS[name], METHODS[name].settings_type
    preset = PRESETS[options.preset or ("quick" if options.data == "digits" else "look")]
    recipe = preset.recipe or own or method.recipe
    recipe = replace(
        recipe,
        epochs=recipe.epochs if options.epochs is None else options.epochs,
        batch_size=options.batch_size or recipe.batch_size,
    )
    backbone = options.backbone or preset.backbone
    if options.width:
        if not backbone.startswith("cifar:"):
            raise ValueError(f"--width is of a cifar:resnet18, got --backbone {backbone}")
        backbone = f"cifar:{backbone.split(':')[1]}:{options.width}"
    plan = Plan(
        method=name,
        mode=options.mode,
        flags={**(preset.flags or {}), **(of.where("short") if preset.short else {}), **flags},
        data=options.data,
        image_size=options.image_size or preset.image_size,
        limit=preset.limit if options.limit is None else options.limit or None,
        backbone=backbone,
        recipe=recipe,
        seed=options.seed,
        precision=options.precision or preset.precision,
        protocols=tuple(options.protocol.split(",")),
        preset=options.probe or preset.probe or method.probe,
        attacked=tuple(word for word in options.attacks.split(",") if word),
        num_images=preset.num_images if options.num_images is None else options.num_images,
    )
    of.of(plan.mode, **plan.flags)  # wrong ones are refused before any work
    for protocol in plan.protocols:
        probes.protocol(plan.preset, protocol)
    return plan


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options, with the settings of the method that is named as flags."""
    parser = _Parser(
        prog=SCRIPT,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("method", nargs="?", choices=sorted(METHODS), metavar="METHOD", help=", ".join(METHODS))
    add("--list", action="store_true", help="every method with its paper and tables, and presets")
    add("--table", metavar="ID", help="run the rows of a table, such as advcl-4")
    add("--dry-run", action="store_true", help="the plan, its cost in F, and a time estimate")
    add("--data", default="digits", help="digits, cifar10, cifar100, stl10 (:ROOT), folder:PATH")
    add("--preset", choices=sorted(PRESETS), help="default: quick on digits, look elsewhere")
    add("--mode", default="released", choices=["released", "paper"])
    add("--seed", type=_at_least(0), default=0)
    add("--epochs", type=_at_least(0), help="0 measures random weights")
    add("--batch-size", type=_at_least(2), help="over all devices")
    add("--backbone", help="cifar:resnet18, cifar:wrn34_10, cifar:resnet20, timm:NAME")
    add("--width", type=_at_least(1), help="channels of the first stage of a cifar:resnet18")
    add("--image-size", type=_at_least(1))
    add("--limit", type=_at_least(0), help="training images, class-balanced; 0 is all")
    add("--memory-gb", type=float, default=4.0, help="larger training sets are streamed")
    add("--protocol", default="slf", help="slf, alf, aff, fsf, several with commas")
    add("--probe", choices=sorted(probes.PRESETS), help="whose finetuning settings")
    add("--attacks", default="pgd", help=f"of {', '.join(chain.ATTACKS)}, several with commas")
    add("--num-images", type=_at_least(0), help="test images that are attacked; 0 is all")
    add("--precision", choices=["32-true", "bf16-mixed"], help="of pretraining")
    add("--compile", action="store_true", help="torch.compile the encoder")
    add("--devices", type=_at_least(1), default=1, help="processes, with DDP from two on")
    add("--time-budget", type=float, metavar="SECONDS", help=f"of pretraining; {_GOES_ON}")
    add("--out", type=Path, default=Path("runs/papers"))
    name = next((word for word in words if word in METHODS), None)
    if name:
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
            own.add_argument(flag, default=argparse.SUPPRESS, help=_told(setting, kind), **how)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        whose = f"{SCRIPT} {name} --help" if name else f"{SCRIPT} --help"
        parser.error(f"unknown: {' '.join(unknown)}; {whose} lists what there is")
    if sum(map(bool, (options.method, options.table, options.list))) != 1:
        parser.error("name one of METHOD, --table ID and --list")
    if options.table and options.devices > 1:
        parser.error("a table runs on one device; name its methods one by one")
    there = torch.cuda.device_count() if torch.cuda.is_available() else options.devices
    if options.devices > there:
        parser.error(f"there are {there} devices here, got --devices {options.devices}")
    budget = options.time_budget
    options.deadline = None if budget is None else time.monotonic() + budget
    return options


def _told(setting: Field[Any], kind: Any) -> str:
    """What a setting is, what it may be and is, and where released code and paper differ."""
    told, is_one_of = setting.metadata, get_origin(kind) is Literal
    words = [told["what"], " | ".join(get_args(kind)) if is_one_of else ""]
    if "paper" in told:
        words.append(f"released {setting.default}, paper {told['paper']} ({told['why']})")
    else:
        words.append(f"default {setting.default}")
    if "short" in told:
        words.append(f"in short runs {told['short']}")
    return "; ".join(filter(None, words))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the whole usage before it."""
        self.exit(2, f"{SCRIPT}: {message}\n")


def _at_least(low: int) -> Callable[[str], int]:
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


def _without_place(word: str) -> str:
    """A word of the command without where on this machine something lies."""
    return re.sub(r"(^|[=:])/(?:.*/)?([^/]+)/?$", r"\1\2", word)


def _json(content: Any) -> Any:
    return json.loads(json.dumps(content))


def given(options: argparse.Namespace, method: type[Method]) -> dict[str, Any]:
    """Of a method's settings, those that were named."""
    names = [f.name for f in fields(method.settings_type)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


if __name__ == "__main__":
    main()
