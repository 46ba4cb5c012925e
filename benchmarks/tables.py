"""Write the README's tables from the records in benchmarks/results/, so that no number is typed.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
import runpy
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def quickstart() -> str:
    record = json.loads((RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    example = runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="quickstart")
    table = example["make_table"](record).strip()
    return f"{table}\n\n{_verdict(record)}\n\n{provenance(record, 'quickstart.json')}"


def _verdict(record: dict[str, Any]) -> str:
    """Whether the GSA terms change robustness beyond the noise between seeds, in a sentence."""
    _, host, stack = record["methods"]
    pairs = zip(host["pgd"]["values"], stack["pgd"]["values"], strict=True)
    gains = [100 * (b - a) for a, b in pairs]
    mean, half = fmean(gains), _T_95[len(gains)] * stdev(gains) / sqrt(len(gains))
    verdict = "a difference" if abs(mean) > half else "no difference that this short run can show"
    return (
        f"{stack['name']} against {host['name']} alone, on the same {len(gains)} seeds: "
        f"{mean:+.1f} points of PGD accuracy, 95 % interval {mean - half:+.1f} to "
        f"{mean + half:+.1f}: {verdict}."
    )


def provenance(record: dict[str, Any], file: str) -> str:
    """Where a number came from, in a line."""
    machine = record["machine"]
    spent = sum(sum(phase) for m in record["methods"] for phase in m["seconds"].values())
    return (
        f"Record: [`benchmarks/results/{file}`](benchmarks/results/{file}). "
        f"`{record['command']}`, seeds {record['seeds']}, commit {record['commit'][:10]}, "
        f"{spent / 60:.0f} minutes of one core, beside other work, on {machine['cpu']}, "
        f"torch {machine['torch']}."
    )


# Student's t, 97.5 %, for the mean of so many differences.
_T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}

TABLES = {"quickstart": quickstart}


def filled(text: str) -> str:
    """``text`` with every ``<!-- table: name -->`` ... ``<!-- end -->`` filled anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
