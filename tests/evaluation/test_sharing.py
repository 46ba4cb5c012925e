"""Two processes give the record of one, and one of them speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advssl.evaluation import sharing

SCRIPT = """
import sys, torch
from torch import nn
from advssl import Linf
from advssl.evaluation import evaluate, report
from advssl.evaluation.data import open_data
from advssl.evaluation.sharing import joined

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten())
with joined() as speaks:
    found = evaluate(
        net, open_data("digits", image_size=8), ball=Linf(16 / 255), attacks=["pgd"],
        probe="ascl23", images=30, batch_size=10, doubts=False, curves=False, folder=sys.argv[1],
    )
    if speaks:
        open(sys.argv[2], "x").write(report.to_json(found))
"""


def test_alone_it_speaks_and_agrees_with_itself():
    with sharing.joined() as speaks:
        assert speaks
        assert not torch.distributed.is_initialized()
        assert sharing.agreed(3.5) == 3.5
    assert sharing.device_here().type in ("cpu", "cuda")


@pytest.mark.heavy
def test_two_processes_give_the_record_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "script.py", "one", "one.json"]
    subprocess.run(run, cwd=tmp_path, env=here, check=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--master-port=29533", "script.py", "two", "two.json"]
    subprocess.run(torchrun, cwd=tmp_path, env=here, check=True)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
