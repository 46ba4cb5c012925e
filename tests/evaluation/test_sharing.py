"""Two processes give the record of one, and one of them speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import on_two_ranks
from toys import Alone, Mine, blobs, trained

from advssl import Linf
from advssl.evaluation import sharing
from advssl.evaluation.attacks import PGD, Clean, measure, transfer
from advssl.evaluation.sharing import on_all_ranks

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
        assert sharing.of_first_rank(3.5) == 3.5
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


ATTACK = PGD(Linf(0.04), 2, None, restarts=2)


def case():
    x, y = blobs(30, 4)
    return trained(4, steps=20), list(zip(x.split(7), y.split(7), strict=True))


def said(work) -> str:
    try:
        work()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fails(number):
    def progress(_what, done, _total):
        if done == number:
            raise ValueError("it broke")

    return progress


def a_rank(rank: int, folder: str) -> dict:
    model, batches = case()
    seen = []
    hook = model.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0])))
    with hook:
        record = measure(model, ATTACK, batches, seed=3, folder=folder)
    found = {"record": record.to_json(), "forwards": sum(seen)}
    found["stream"] = measure(model, Mine(), iter(batches), seed=3).to_json()
    with hook_counting(model, seen):
        found["again"] = measure(model, ATTACK, batches, seed=3, folder=folder).to_json()
    found["again forwards"] = len(seen)
    zoo = {"a": model, "b": Alone()}
    found["transfer"] = transfer(zoo, batches, ATTACK, seed=2).to_numpy().tolist()
    found["late"] = measure(model, Clean(), batches, deadline=time.monotonic()).to_json()
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    found["said"] = [
        said(lambda: measure(model, ATTACK, batches[rank::2])),
        said(lambda: measure(model, ATTACK, batches[: 4 + rank])),
        said(lambda: measure(model, ATTACK, batches, seed=rank)),
        said(lambda: measure(model, [ATTACK, Clean()][rank], batches)),
        said(lambda: measure(trained(4, steps=rank), ATTACK, batches)),
        said(lambda: measure(wrapped, ATTACK, batches)),
        said(lambda: measure(model, Clean(), batches, progress=fails(2))),
        said(lambda: measure(model, Clean(), [])),
        said(lambda: transfer(zoo, batches[rank:], Clean())),
    ]
    return found


def hook_counting(model, seen):
    seen.clear()
    return model.register_forward_hook(lambda *_: seen.append(1))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    pytest.importorskip("pandas")
    kept = tmp_path_factory.mktemp("kept")
    return on_two_ranks(a_rank, tmp_path_factory.mktemp("ranks"), str(kept)), kept


@pytest.mark.slow
def test_every_rank_has_the_record_of_one_process(found):
    model, batches = case()
    for rank in found[0]:
        assert rank["record"] == measure(model, ATTACK, batches, seed=3).to_json()
        assert rank["stream"] == measure(model, Mine(), iter(batches), seed=3).to_json()
        assert rank["again"] == rank["record"]


@pytest.mark.slow
def test_each_batch_is_computed_once_and_kept(found):
    ranks_of, kept = found
    model, batches = case()
    seen = []
    with model.register_forward_hook(lambda _m, given, _o: seen.append(len(given[0]))):
        measure(model, ATTACK, batches, seed=3)
    assert sum(rank["forwards"] for rank in ranks_of) == sum(seen)
    assert all(0 < rank["forwards"] < sum(seen) for rank in ranks_of)
    assert [rank["again forwards"] for rank in ranks_of] == [0, 0]
    assert len(list(kept.iterdir())) == len(batches)
    with hook_counting(model, seen):  # one process goes on with what two have kept
        measure(model, ATTACK, batches, seed=3, folder=kept)
    assert seen == []


@pytest.mark.slow
def test_transfer_too(found):
    model, batches = case()
    table = transfer({"a": model, "b": Alone()}, batches, ATTACK, seed=2).to_numpy().tolist()
    assert [rank["transfer"] for rank in found[0]] == [table, table]


@pytest.mark.slow
def test_a_deadline_ends_all_ranks_at_one_batch(found):
    model, batches = case()
    first = measure(model, Clean(), batches[:1]).to_json()
    assert [rank["late"] for rank in found[0]] == [first, first]


WORDS = [
    ["ValueError: all ranks must be given the same batches", "no DistributedSampler"],
    ["ValueError: all ranks must be given the same batches", "rank 0 (4,"],
    ["ValueError: all ranks must be given the same seed, got rank 0 0; rank 1 1"],
    ["ValueError: all ranks must be given the same attack"],
    ["ValueError: all ranks must be given the same classifier"],
    ["ValueError: a DistributedDataParallel waits for all ranks", ".module"],
    ["it broke"],
    ["ValueError: there are no batches to measure on"],
    ["ValueError: all ranks must be given the same batches"],
]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(WORDS)))
def test_what_is_wrong_is_said_on_every_rank(found, number):
    for rank in found[0]:
        assert all(words in rank["said"][number] for words in WORDS[number]), rank["said"][number]


@pytest.mark.slow
def test_a_rank_that_fails_raises_its_own_error_and_the_others_name_it(found):
    failed, others = found[0][1]["said"][6], found[0][0]["said"][6]
    assert failed == "ValueError: it broke"
    assert others == (
        "RuntimeError: rank 1 failed and this one stops with it: ValueError: it broke"
    )


@pytest.fixture
def among(monkeypatch):
    """This process as rank 1 of several; what the others say is given."""

    def among(*others):
        def gather(everyone, own):
            everyone[:] = [others[0], own, *others[1:]]

        def broadcast(held, src):
            held[0] = others[src]

        for name, value in (("world_size", len(others) + 1), ("rank", 1)):
            monkeypatch.setattr(sharing, name, lambda value=value: value)
        monkeypatch.setattr(sharing.dist, "all_gather_object", gather)
        monkeypatch.setattr(sharing.dist, "broadcast_object_list", broadcast)

    return among


def test_ranks_take_turns(among):
    among(None, None)
    assert [sharing.is_mine(number) for number in range(6)] == [False, True, False] * 2


def test_what_the_first_rank_has_is_everybodys(among):
    among("the first's")
    assert sharing.of_first_rank("its own") == "the first's"


def test_all_ranks_are_given_the_same(among):
    among((3, None), (3, None))
    sharing.check_same("seed", lambda: 3)
    among((3, None), (4, None))
    with pytest.raises(ValueError, match="the same seed, got rank 0 3; rank 1 3; rank 2 4"):
        sharing.check_same("seed", lambda: 3)
    among((None, "ValueError: it broke"))
    with pytest.raises(RuntimeError, match="rank 0 failed and this one stops with it: ValueError"):
        on_all_ranks(lambda: 3)


def test_processes_that_torchrun_started_become_a_group_for_the_time(monkeypatch):
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sharing.dist, "init_process_group", lambda kind: seen.append(kind))
    monkeypatch.setattr(sharing.dist, "destroy_process_group", lambda: seen.append("ended"))
    with sharing.joined():
        assert len(seen) == 1
        assert "gloo" in seen[0]
    assert seen[1:] == ["ended"]
    monkeypatch.delenv("WORLD_SIZE")
    with sharing.joined():
        pass
    assert len(seen) == 2


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.setattr(sharing.dist, "all_gather_object", None)
    assert on_all_ranks(lambda: 3) == [3]
    sharing.check_same("anything", lambda: pytest.fail("asked for nothing"))
