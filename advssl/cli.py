"""The command line: a checkpoint's robustness report, a comparison of reports, a step's doctor."""

from __future__ import annotations

import inspect
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advssl.evaluation.places import without_place
from advssl.extras import check
from advssl.options import OWN, Compared, Costed, Examined, Options, Pictured, parse
from advssl.stopping import stopping

_UNNORMALISED = "The input was not normalised"

# Torch takes seconds to import, so what needs it is imported where the work begins.
if TYPE_CHECKING:
    from advssl.balls import Ball
    from advssl.evaluation.evaluate import Evaluation


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a mistake in what was asked for ends it with one line, before any work.

    So do Ctrl-C and SIGTERM, at any moment.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it lacks ends no work
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["advssl", *map(without_place, words)])
    try:
        with stopping():
            asked = parse(words)
            check(asked.needs, f"advssl {words[0]}")
            if isinstance(asked, Options):
                written = evaluate(asked, command)
            elif isinstance(asked, Compared):
                written = compare(asked, command)
            else:
                written = look_at_step(asked)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"advssl: {error}") from error
    except KeyboardInterrupt:
        on = "; the same command goes on where it was" if words[:1] == ["evaluate"] else ""
        raise SystemExit(f"advssl: interrupted{on}") from None
    for path in written.values():
        print(f"wrote {path}")


def evaluate(options: Options, command: str) -> dict[str, Path]:
    """Probes, attacks, doubts and the report. Repeated after a kill, it goes on where it was."""
    from advssl.evaluation import report
    from advssl.evaluation.progress import progress_bars
    from advssl.evaluation.sharing import joined

    with joined() as speaks:
        say = print if speaks else _silent
        asked, read = prepared(options)
        say(*read, asked.plan(options.out), sep="\n")
        if options.dry_run:
            return {}
        with progress_bars() as progress:
            found = asked.run(
                Path(options.out) / "work",
                progress=progress if speaks else _silent,
                say=say,
                command=command,
            )
        say(f"\n{report.terminal(found)}")
        return report.write(found, options.out) if speaks else {}


def _silent(*_: Any, **__: Any) -> None:
    """Another process speaks."""


def prepared(options: Options) -> tuple[Evaluation, list[str]]:
    """What was asked for, loaded and checked, all images too; and what was read from files."""
    import torch

    from advssl.balls import BALLS
    from advssl.evaluation import loading
    from advssl.evaluation.data import open_data, targets
    from advssl.evaluation.datasets import shape_of
    from advssl.evaluation.evaluate import Evaluation, Way, chosen_attacks
    from advssl.evaluation.protocols import default_preset, protocol
    from advssl.evaluation.report import Table
    from advssl.integrations.timm import backbone
    from advssl.pixels import Pixels

    own, read = options.protocol == [OWN], list[str]()
    ball = BALLS[options.norm](options.eps)
    _check_radius(ball)
    if options.preset:  # refused before anything is read
        for name in options.protocol:
            protocol(options.preset, name)
    pixels = Pixels(options.mean, options.std)
    torch.manual_seed(options.seed)  # of a backbone without checkpoint
    network = backbone(options.backbone).eval() if options.backbone else None
    data = open_data(
        options.data,
        image_size=options.image_size,
        train=options.train,
        validation=options.val,
        test=options.test,
    )
    there = len(targets(data.test))
    if options.num_images is not None and options.num_images > there:
        raise ValueError(
            f"--num-images {options.num_images}: there are {there} test images; 0 is all"
        )
    _check_radius(ball, shape_of(data.test))
    file = {k: getattr(options, k) for k in ("format", "prefix", "allow_partial")}
    given = options.backbone, network, options.checkpoint, options.bn_branch, pixels
    tell = lambda told: read.append(str(told))  # noqa: E731
    found = (
        loading.classifiers(*given, data, say=tell, **file)
        if own
        else loading.encoders(*given, say=tell, **file)
    )
    preset = options.preset or default_preset(data)
    asked = Evaluation(
        modules=found.modules,
        data=data,
        ball=ball,
        attacks=chosen_attacks(options.attacks, ball),
        ways=tuple(
            Way(OWN, None) if own else Way(preset, protocol(preset, name))
            for name in options.protocol
        ),
        pixels=Pixels() if own else found.pixels,
        images=options.num_images,
        doubts=options.more if options.doubts is None else options.doubts,
        curves=options.more if options.figures is None else options.figures,
        with_beside=True,
        seed=options.seed,
        attack_seed=options.seed,
        batch_size=options.batch_size,
        budget=options.budget,
        model=found.model,
        measures=options.measures,
        tables=[Table(_UNNORMALISED, (), (), told) for told in [found.unnormalised] if told],
    )
    if options.preset is None and options.protocol == ["slf"]:
        asked = asked.affordable(read.append)
    asked.checked(None if options.dry_run else Path(options.out) / "work")
    return asked, read


def _check_radius(ball: Ball, shape: Sequence[int] | None = None) -> None:
    from advssl.balls import check_radius

    try:
        check_radius(ball, shape)
    except ValueError as error:
        raise ValueError(f"--eps: {error}") from error


def compare(options: Compared, command: str) -> dict[str, Path]:
    """The differences of earlier reports from the first, and how their attacks transfer."""
    from advssl.evaluation import comparison, report
    from advssl.evaluation.progress import progress_bars
    from advssl.evaluation.reopened import Earlier, transfer

    groups = [[Earlier.opened(Path(place)) for place in group] for group in options.reports]
    earlier = [one for group in groups for one in group]
    if Path(options.out).resolve() in [one.folder.resolve() for one in earlier]:
        raise ValueError(f"--out: {options.out} is a report that is compared; name another folder")
    short = {one.folder: one.folder.resolve().name for one in earlier}
    if len(set(short.values())) < len(short):
        short = {folder: str(folder) for folder in short}
    encoders = {
        ", ".join(short[one.folder] for one in group): [one.written for one in group]
        for group in groups
    }
    page = comparison.compared(encoders, command)
    with progress_bars() as progress:
        table = transfer({short[one.folder]: one for one in earlier}, options.data, progress)
    page = replace(page, tables=(*page.tables, table))
    for section, doubt in report.failed(page):
        print(f"doubt: {section.label}: {doubt.evidence}")
    for one in page.tables:
        print(one)
    return report.write(page, options.out)


def look_at_step(options: Examined | Costed | Pictured) -> dict[str, Path]:
    """What would spoil an attack on a training step, with exit status 1 if anything would; what
    each component would add to it; or what it sees.
    """
    given = _given_by(options.step)
    if isinstance(options, Pictured):
        from advssl import gallery

        figure = gallery.gallery(*given, images=options.images)
        return {"png": gallery.write(figure, Path(options.out))}
    from advssl import doctor

    if isinstance(options, Costed):
        print(doctor.table(doctor.costs(*given)))
        return {}
    checks = doctor.examine(*given)
    print(doctor.told(checks))
    if any(check.verdict == "fail" for check in checks):
        raise SystemExit(1)
    return {}


def _given_by(place: str) -> tuple[Any, ...]:
    """What a user's function returns: a step and a batch, and perhaps what attacks it."""
    module, _, name = place.partition(":")
    made = getattr(import_module(module), name, None)
    if not callable(made):
        raise ValueError(f"{module} has no function {name}")
    try:
        inspect.signature(made).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place} must be a function without arguments: {error}") from error
    given = made()
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        kind = f"{len(given)} things" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise ValueError(
            f"{place} must return a step and a batch, and perhaps an AdversarialViewGenerator, "
            f"got {kind}"
        )
    return given


if __name__ == "__main__":
    main()
