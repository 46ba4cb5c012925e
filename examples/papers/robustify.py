"""Make a pretrained encoder robust, without labels, and show what that costs on clean images.

    python examples/papers/robustify.py --backbone timm:resnet18 --checkpoint model.safetensors \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --data folder:photos --eps 4/255

The encoder is measured as ``advssl evaluate`` measures it, trained to keep the features that it had
(FARE, or DeACL) within ``--eps``, and measured again. In the ``--out`` folder are ``encoder.pt``, a
checkpoint for the same --backbone, and ``report.html``, which says what changed. Killed, the same
command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from advssl.cli import prepared
from advssl.evaluation.places import without_place
from advssl.extras import check
from advssl.options import Options, parse
from advssl.stopping import stopping
from harness.options import NEEDS, Parser, at_least
from harness.schedules import WarmupCosine

_FEW = 4  # images to count forwards of
METHODS = ("deacl", "fare")


def run(own: argparse.Namespace, options: Options, command: str) -> str:
    """Measure, make robust, measure again and compare; what is to be said at the end."""
    if options.norm != "linf":
        raise ValueError(f"training attacks in ℓ∞, got --norm {options.norm}; leave it out")
    check(NEEDS, "robustify.py")
    import torch
    from msgspec import structs

    from advssl.evaluation import report
    from advssl.evaluation.comparison import compared
    from advssl.evaluation.plan import duration
    from advssl.evaluation.progress import progress_bars
    from advssl.evaluation.records import replacing
    from advssl.modes import copied
    from harness.cost import forwards_per_image
    from harness.data import Loader, pixels
    from harness.finetuning import Unlabelled, attacked_in, finetune
    from harness.recording import exported
    from methods import METHODS as known

    out, (asked, read) = Path(options.out), prepared(options)
    if options.protocol == ["own"] or len(asked.modules) > 1:
        raise ValueError("one encoder is made robust: take a probe, and one --bn-branch of several")
    ((branch, encoder),) = asked.modules.items()
    of, mean, std = known[own.method], asked.pixels.mean, asked.pixels.std
    told: dict[str, Any] = {"radius": options.eps}
    if own.steps:
        told |= attacked_in(own.steps)
    settings = of.settings_type(**told)
    images: Any = asked.data.train
    size = images[0][0].shape[-1]
    if own.images:
        images = Unlabelled(Path(own.images), size)
    method = of(copied(encoder), asked.data, size, settings)
    method.pixels = None if mean is None or std is None else (mean, std)
    schedule = of.recipe.schedule
    assert isinstance(schedule, WarmupCosine)
    recipe = replace(
        of.recipe,
        epochs=own.epochs or of.recipe.epochs,
        batch_size=own.images_per_step or of.recipe.batch_size,
        schedule=replace(schedule, peak=own.rate or schedule.peak),
    )
    if recipe.batch_size > len(images):
        raise ValueError(
            f"a step takes {recipe.batch_size} images, there are {len(images)} to train on; take "
            "fewer with --images-per-step"
        )
    few = next(iter(Loader(images, min(_FEW, len(images)), seed=0)))
    forwards = forwards_per_image(method, few._replace(images=pixels(few.images)))
    seconds = forwards * len(images) * recipe.epochs * asked.forward.seconds
    plan = f"{len(images)} images, {forwards:.0f} F per image, {recipe.epochs} epochs"
    print(*read, asked.plan(out), f"training: {plan}, about {duration(seconds)}", sep="\n")
    if options.dry_run:
        return "nothing was done"
    with progress_bars() as progress:
        before = asked.run(out / "work", progress=progress, say=print, command=command)
    took = finetune(
        method,
        images,
        out / "work",
        recipe=recipe,
        seed=options.seed,
        precision=own.precision,
        deadline=None if own.time_budget is None else time.monotonic() + own.time_budget,
    )
    if took is None:
        return "the time budget is spent; the same command goes on"
    with replacing(out / "encoder.pt") as part:
        torch.save(exported(method, method.encoder), part)
    robust = method.encoder.to(asked.device).eval()
    again = replace(
        asked,
        modules={branch: robust},
        model=structs.replace(asked.known, checkpoint="encoder.pt"),
    )
    with progress_bars() as progress:
        after = again.run(out / "work", progress=progress, say=print, command=command)
    page = compared({"before": [before], "after": [after]}, command)
    for found, folder in ((before, out / "before"), (after, out / "after"), (page, out)):
        report.write(found, folder)
    return f"{page.tables[0]}\n{took / 60:.1f} minutes of training; encoder.pt is in {out}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake in what was asked for ends it with one line, before any work."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["robustify.py", *map(without_place, words)])
    shape = argparse.RawDescriptionHelpFormatter
    parser = Parser("robustify.py", description=__doc__, formatter_class=shape, allow_abbrev=False)
    add = parser.add_argument
    add("--method", choices=METHODS, default="fare")
    add("--images", metavar="FOLDER", help="to train on, without labels; --data's training images")
    add("--steps", type=at_least(1), help="of the attack; 10 with fare, 5 with deacl")
    add(
        "--epochs",
        type=at_least(1),
        help="2 with fare, which are its paper's of ImageNet; 100 with deacl",
    )
    add("--images-per-step", type=at_least(1), help="128 with fare, 256 with deacl")
    add("--rate", type=float, help="peak learning rate; 1e-5 of AdamW with fare, 0.5 of SGD")
    add("--precision", choices=["32-true", "bf16-mixed"], help="of training; the fastest here")
    add("--time-budget", type=float, metavar="SECONDS", help="of training")
    parser.epilog = "and all that advssl evaluate takes; --eps is trained for and measured at"
    own, rest = parser.parse_known_args(words)
    try:
        options = parse(["evaluate", *rest])
        assert isinstance(options, Options)
        with stopping():
            print(run(own, options, command))
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"robustify.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("robustify.py: interrupted; the same command goes on") from None


if __name__ == "__main__":
    main()
