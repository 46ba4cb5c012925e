"""The notebook is the script beside it, runs from a fresh kernel, and shows what it drew."""

from __future__ import annotations

import re
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT, NOTEBOOK = EXAMPLES / "extend_advcl.py", EXAMPLES / "extend_advcl.ipynb"
KINDS = ["AdvCL", "AdvCL + flat", "AdvCL + aligned", "AdvCL + both"]


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def shown(notebook) -> tuple[str, int]:
    """All text that the cells printed, and how many pictures they drew."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    text = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    return text, sum("image/png" in o.get("data", {}) for o in outputs)


def test_notebook_and_script_have_the_same_cells():
    assert cells(NOTEBOOK) == cells(SCRIPT), (
        "write the notebook anew: jupytext --to ipynb --execute examples/extend_advcl.py"
    )


def test_the_committed_notebook_shows_its_results_and_no_machine():
    notebook = jupytext.read(NOTEBOOK)
    text, pictures = shown(notebook)
    assert pictures == 1
    assert all(text.count(f"{kind}, seed 0, epoch") == 6 for kind in KINDS)
    assert text.count("95 % intervals") == 3
    everything = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/home/|/root|/tmp|/Users|Warning|Traceback", everything)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own client
def test_the_script_runs_as_a_notebook(monkeypatch, tmp_path):
    for name, value in {"EPOCHS": "1", "SEEDS": "1", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    notebook = jupytext.read(SCRIPT)
    NotebookClient(
        notebook,
        timeout=500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    text, pictures = shown(notebook)
    assert pictures == 1
    assert re.findall(r"^(.*), seed 0, epoch 1: \d+% clean, \d+% robust$", text, re.M) == KINDS
    assert all(f"\n{kind} " in text for kind in KINDS)  # the table's rows
    assert text.count("95 % intervals") == 3
