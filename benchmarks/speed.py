"""How fast advssl is, beside others: every row of the table in benchmarks/README.md.

    python benchmarks/speed.py                        # on the CPU, in under 15 minutes
    python benchmarks/speed.py --rows advcl,k_means   # those whose names begin so
    python benchmarks/speed.py --device cuda

Contestants take turns, so that whatever else the machine does strikes all of them, and a ratio is
taken within a turn. A row that is finished is written at once, beside those measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = Path(__file__).parent
RECORD = BENCHMARKS / "results" / "speed.json"
BESIDE = (
    "adversarial-robustness-toolbox",
    "faiss-cpu",
    "foolbox",
    "kornia",
    "lightly",
    "pytorch-metric-learning",
    "pytorch_optimizer",
    "scikit-learn",
    "torchattacks",
)
sys.path.insert(0, str(BENCHMARKS.parent / "examples" / "papers"))

from advssl.evaluation.records import commit, machine, replacing  # noqa: E402
from rows import ROWS  # noqa: E402
from rows.measuring import CPU, GPU, TINY, Bench, Disagreement, Sizes  # noqa: E402
from shown.speeds import place, speed_table  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", default="", help=f"beginnings of names, with commas between; of {list(ROWS)}")
    add("--device", default="cpu")
    add("--threads", type=int, default=os.cpu_count())
    add("--rounds", type=int, default=20, help="most turns of a row")
    add("--budget", type=float, default=30.0, help="seconds of a row's turns, 3 at the least")
    add("--batch", type=int, help="images of an attack and of a whole step")
    add("--width", type=int, help="of the ResNet-18's first stage, 64 in full")
    add("--tiny", action="store_true", help="does it run? As small as can be, and not recorded")
    add("--out", type=Path, help=f"the record, {RECORD.relative_to(BENCHMARKS.parent)} by default")
    options = parser.parse_args(arguments)
    if not _chosen(options.rows, torch.device(options.device)):
        parser.error(f"no row begins with {options.rows!r}; there are {', '.join(ROWS)}")
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for libraries that are yet to come
    bench = Bench(_sizes(options, device), device, options.rounds, options.budget)
    where = {
        **machine(),
        "device": device.type,
        "threads": options.threads,
        "can": _able(device),
        "beside": _versions(),
    }
    record = options.out or (None if options.tiny else RECORD)
    failed = {}
    for name in _chosen(options.rows, device):
        begun = time.perf_counter()
        try:
            row = ROWS[name](bench)
        except Disagreement as error:
            failed[name] = str(error)
            continue
        entry = {
            "row": name,
            **asdict(row),
            "sizes": asdict(bench.sizes),
            "seconds": round(time.perf_counter() - begun, 1),
            "commit": commit(),
            "machine": where,
        }
        entry = json.loads(json.dumps(entry), parse_float=lambda text: float(f"{float(text):.5g}"))
        if record:
            _keep(record, entry)
        print(f"{speed_table([entry])}\n", flush=True)
    if failed:
        raise SystemExit("\n".join(f"{name}: {why}" for name, why in failed.items()))


def _sizes(options: argparse.Namespace, device: torch.device) -> Sizes:
    sizes = TINY if options.tiny else GPU if device.type == "cuda" else CPU
    told = {name: getattr(options, name) for name in ("batch", "width")}
    return replace(sizes, **{name: value for name, value in told.items() if value})


def _chosen(beginnings: str, device: torch.device) -> list[str]:
    if beginnings:
        return [name for name in ROWS if name.startswith(tuple(beginnings.split(",")))]
    return [name for name in ROWS if name != "throughput" or device.type == "cuda"]


def _able(device: torch.device) -> list[str]:
    """What goals may presuppose: matrix units for bfloat16, or a GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    can = {
        "AVX512_BF16": "avx512_bf16" in flags,
        "AMX": "amx_bf16" in flags,
        "GPU": device.type == "cuda",
    }
    return [name for name, able in can.items() if able]


def _versions() -> dict[str, str]:
    """Of the libraries that are compared with and installed."""
    found = {}
    for name in BESIDE:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _keep(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a row to the record, in place of the same row of the same machine."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    same = (entry["row"], place(entry["machine"]))
    rows = [r for r in rows if (r["row"], place(r["machine"])) != same]
    rows = sorted([*rows, entry], key=lambda r: list(ROWS).index(r["row"]))
    record = {"name": "speed", "rows": rows}
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
