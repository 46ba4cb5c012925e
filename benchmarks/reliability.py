"""How much is held, on purpose: benchmarks/results/reliability.json.

    python benchmarks/reliability.py                         # all pieces
    python benchmarks/reliability.py --pieces training --kills 10

Processes are killed at random moments of a training and of an evaluation, the same command is
given again, and what it ends with is compared with a run that nobody touched: weights bit for bit,
reports byte for byte. Kills add up over calls, so a large number may be made in pieces. Wrong calls
of the library are the tests' catalogue; those of the command line, and several processes,
are counted by the tests that make them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "papers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from advssl.evaluation import records
from advssl.evaluation.identity import fingerprint_of
from advssl.evaluation.provenance import replacing

ROOT = Path(__file__).parents[1]
# Its state has all there is: SAM, critic, clusters, BatchNorm branches, schedules.
TRAINING = [
    *("gsa_advcl", "--width", "2", "--image-size", "8", "--limit", "40", "--batch-size", "20"),
    *("--epochs", "3", "--supervision", "simclr-10", "--steps", "4"),
]
EVALUATION = [
    *("evaluate", "--backbone", "cifar:resnet18:2", "--data", "digits", "--image-size", "8"),
    *("--preset", "ascl23", "--protocol", "slf,alf", "--attacks", "pgd,mpgd"),
    *("--num-images", "20", "--no-doubts", "--no-figures", "--out", "report"),
]
TESTS = {
    "commands": ["test_cli_mistakes.py"],
    "processes": [
        "test_distributed.py",
        "test_whole_step.py",
        "test_components.py::test_works_under_ddp",
    ],
}
SAVED_EVERY = 0.05  # seconds, so that kills meet checkpoints that are being written
PROCESSES = multiprocessing.get_context("forkserver")  # of which each has its imports already
PROCESSES.set_forkserver_preload(["pytorch_lightning", "advssl.cli", "sklearn.datasets", "timm"])


def training(folder: Path) -> None:
    """A method's pretraining, that of its clusters included, and what its weights are."""
    from harness import chain
    from harness.options import given, parse
    from harness.presets import plan_of
    from methods import METHODS

    options = parse(TRAINING)
    plan = plan_of(TRAINING[0], options, given(options, METHODS[TRAINING[0]]))
    data = chain.open_plan(plan)
    found = chain.pretrained(plan, METHODS, data, folder, save_every=SAVED_EVERY)
    assert found is not None
    ended(folder, fingerprint_of(found.method.state_dict()))


def evaluation(folder: Path) -> None:
    """The command, its probes trained for few epochs, and what its report is."""
    from toys import brief_evaluation

    from advssl import cli

    brief_evaluation(pytest.MonkeyPatch())
    os.chdir(folder)  # so that the command is the same, and says no place
    cli.main(EVALUATION)
    pages = [Path("report", name).read_bytes() for name in ("record.json", "report.md")]
    ended(folder, fingerprint_of(pages))


def nothing(_: Path) -> None:
    """Begin, and end."""


def ended(folder: Path, found: str) -> None:
    with replacing(folder / "ended") as part:
        part.write_text(found, encoding="utf-8")


def alone(work: Callable[[Path], None], folder: Path) -> Any:
    """A process of its own, silent, in a session that dies with this one."""
    process = PROCESSES.Process(target=quietly, args=(work, folder), daemon=True)
    process.start()
    return process


def quietly(work: Callable[[Path], None], folder: Path) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    work(folder)


def killed(
    work: Callable[[Path], None], kills: int, place: Path, seed: int
) -> Iterator[dict[str, int]]:
    """Runs that are killed at random moments until so many kills are made: what each adds."""
    whole, draw = place / "whole", random.Random(seed)
    whole.mkdir(parents=True)
    alone(nothing, whole).join()  # the first process waits for all imports
    started = time.monotonic()
    process = alone(work, whole)
    process.join()
    if process.exitcode:
        raise SystemExit(f"the run that nobody touches ended with {process.exitcode}")
    seconds, expected = time.monotonic() - started, (whole / "ended").read_text(encoding="utf-8")
    for number in count():
        folder = place / f"run{number}"
        folder.mkdir()
        found = {"kills": 0, "survived": 0, "runs": 1, "processes": 0}
        while not (folder / "ended").exists():
            process = alone(work, folder)
            found["processes"] += 1
            # Anywhere in a whole run's time; the last start goes on to the end.
            process.join(draw.uniform(0, seconds) if found["kills"] < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
                found["kills"] += 1
            elif process.exitcode:
                break  # it could not go on
        end = folder / "ended"
        if end.exists() and end.read_text(encoding="utf-8") == expected:
            found["survived"] = found["kills"]
        kills -= found["kills"]
        yield found
        if kills <= 0:
            return


class Count:
    """A plugin of pytest's that counts."""

    def __init__(self) -> None:
        self.found = {"tried": 0, "passed": 0}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call":
            self.found["tried"] += 1
            self.found["passed"] += report.passed


def called() -> dict[str, int]:
    """How many wrong calls of the library there are, and how many are answered."""
    from wrong_calls import WRONG, fault

    return {"tried": len(WRONG), "passed": sum(fault(wrong) is None for wrong in WRONG)}


def tested(paths: Sequence[str]) -> dict[str, int]:
    """How many tests there are in these files, and how many pass."""
    counted = Count()
    places = [str(ROOT / "tests" / path) for path in paths]
    pytest.main(["-q", "-m", "", "-n", "0", "-p", "no:cacheprovider", *places], plugins=[counted])
    return counted.found


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the pieces that are asked for, and write the record after each."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pieces", default="training,evaluation,calls,commands,processes")
    add("--kills", type=int, help="50 of a training and 20 of an evaluation")
    add("--record", type=Path, default=ROOT / "benchmarks" / "results" / "reliability.json")
    o = parser.parse_args(words)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = shlex.join(["python", "benchmarks/reliability.py", *words])
    for piece in o.pieces.split(","):
        if piece == "calls":
            write(o.record, piece, called(), command)
        elif piece in TESTS:
            write(o.record, piece, tested(TESTS[piece]), command)
        else:
            work, most = {"training": (training, 50), "evaluation": (evaluation, 20)}[piece]
            seed = read(o.record).get(piece, {}).get("kills", 0)
            with tempfile.TemporaryDirectory() as place:
                for found in killed(work, o.kills or most, Path(place), seed):
                    before = read(o.record).get(piece, {})
                    row = {name: before.get(name, 0) + value for name, value in found.items()}
                    write(o.record, piece, row, command)


def read(record: Path) -> dict[str, Any]:
    """The pieces that there are."""
    return json.loads(record.read_text(encoding="utf-8"))["rows"] if record.exists() else {}


def write(record: Path, piece: str, row: dict[str, int], command: str) -> None:
    """A piece in its place."""
    told = {"command": command, "commit": records.commit(), "machine": records.machine()}
    rows = {**read(record), piece: {**row, **told}}
    with replacing(record) as part:
        text = json.dumps({"name": "reliability", "rows": rows}, indent=1)
        part.write_text(text + "\n", encoding="utf-8")
    print(piece, row, flush=True)


if __name__ == "__main__":
    main()
