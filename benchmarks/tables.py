"""Write the tables of README and docs from benchmarks/results/, so that no number is typed.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # where its tests and the figures load it from

from shown import claimed, first, held, methods, photographs, reading, speeds

TABLES = {
    "estimates": speeds.estimates,
    "reliability": held.reliability,
    "mutants": held.mutants,
    "communication": held.communication,
    "evidence": first.evidence,
    "quickstart": first.quickstart,
    "speed": speeds.speed,
    "robustify": photographs.robustify,
    "systems": methods.systems,
    "expectations": first.expectations,
    "published": claimed.published,
    "gsa_hosts": methods.gsa_hosts,
    "claims": claimed.claims,
    "speedrun": photographs.speedrun,
    "speedrun_tried": photographs.speedrun_tried,
    "weights": photographs.weights,
    "photographs": photographs.photographs,
    **{name: partial(methods.papers, name) for name in methods.COMPARED},
    **{f"settings_{name}": partial(claimed.settings, name) for name in claimed.PAPERS},
    **{f"beside_{name}": partial(claimed.beside, name) for name in claimed.PAPERS},
}


def filled(text: str) -> str:
    """``text`` with every ``<!-- table: name -->`` ... ``<!-- end -->`` filled anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    pages = [reading.ROOT / "README.md", reading.ROOT / "benchmarks" / "README.md"]
    for folder in ("docs", "examples"):
        pages += (reading.ROOT / folder).rglob("*.md")
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
