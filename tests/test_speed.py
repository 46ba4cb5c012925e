"""Every row of the speed table runs; its instruments, its opponents and its table are right."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from torch.optim import SGD

import speed
from advssl import ClusterFitHead, losses
from harness.data import Batch
from rows import ROWS, attacks, clusters, growth, measuring, released, steps
from rows.measuring import TINY, Bench, Claim, Disagreement, Row, agree, exponent, installed
from shown import reading, speeds

HERE = {
    "cpu": "a chip",
    "gpu": None,
    "torch": "2.5",
    "device": "cpu",
    "threads": 2,
    "can": [],
    "beside": {},
}


@pytest.fixture
def bench() -> Bench:
    return Bench(TINY, torch.device("cpu"), rounds=3, budget=0)


# --- all of it, as small as can be ----------------------------------------------------------------


# Of one image through the encoder: ours, then the others.
FORWARDS = {"advcl": [35, 50], "gsa_rsl": [34, 56], "sam": [34, 48, 33]}


# Of rows that are one function at several sizes the first; all where time does not matter.
FIRST = {getattr(row, "func", row): name for name, row in reversed(ROWS.items())}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the libraries that are compared with
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FIRST.values() else pytest.mark.heavy)
        for name in ROWS
        if name != "import"
    ],
)
def test_every_row_runs_and_its_record_is_its_table(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "ROWS", {name: ROWS[name]})
    monkeypatch.setattr(measuring, "_TURNS", 1)
    path = tmp_path / "speed.json"
    words = ["--tiny", "--threads", "1", "--rounds", "1", "--budget", "0", "--rows", name]
    speed.main([*words, "--out", str(path)])
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert row["row"] == name
    assert row["machine"]["threads"] == 1
    assert row["sizes"]["width"] == TINY.width
    assert row["claims"]
    for claim in row["claims"]:
        assert claim["note"] or claim["values"], claim
        assert all(math.isfinite(value) for value in claim["values"])
    assert all(row["times"].values())
    if name in FORWARDS:
        counted = list(row["checks"]["forwards per image"].values())
        assert counted == pytest.approx(FORWARDS[name], rel=0.02)
    table = speeds.speed_table([row])
    assert table in capsys.readouterr().out
    assert len(table.splitlines()) == 2 + len(row["claims"])


def test_imports_are_timed_but_for_the_first(bench, monkeypatch):
    told = iter([b"9 8", b"2 0.5", b"3 0.25"])
    run = growth.subprocess.run
    monkeypatch.setattr(growth.subprocess, "run", lambda _, **how: run(["echo", next(told)], **how))
    row = growth.imported(replace(bench, sizes=replace(bench.sizes, imports=2)))
    assert row.times == {"import torch": [2000, 3000], "import advssl": [500, 250]}
    (claim,) = row.claims
    assert [*claim.values] == [0.5, 0.25]
    assert (claim.ours, claim.other) == (375, 2500)


@pytest.mark.heavy
def test_imports_are_timed_in_processes_of_their_own(bench):
    row = growth.imported(bench)
    (more,), (torch_alone,) = row.claims[0].values, row.times["import torch"]
    assert 0 < 1000 * more < torch_alone  # torch's own import is not counted with ours
    assert row.times["import advssl"] == [1000 * more]


def test_a_cpu_is_not_asked_for_the_rows_of_a_gpu():
    cpu, gpu = (list(speed._chosen("", torch.device(d))) for d in ("cpu", "cuda"))
    assert set(gpu) - set(cpu) == {"throughput"}
    assert list(speed._chosen("k_means,import", torch.device("cpu"))) == [
        "k_means10",
        "k_means100",
        "k_means500",
        "import",
    ]


def test_a_name_without_a_row_is_refused(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--rows", "kmeans"])
    assert "no row begins with 'kmeans'; there are pgd5, pgd10" in capsys.readouterr().err


def test_a_row_replaces_itself_and_no_other(tmp_path):
    path = tmp_path / "speed.json"
    first = {"row": "sam", "machine": HERE, "seconds": 1}
    for entry in (
        first,
        {**first, "row": "advcl"},
        {**first, "machine": {**HERE, "cpu": "another"}},
        {**first, "seconds": 2, "machine": {**HERE, "torch": "2.6"}},
    ):
        speed._keep(path, entry)
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    seen = [(r["row"], r["machine"]["cpu"], r["seconds"]) for r in rows]
    assert seen == [("advcl", "a chip", 1), ("sam", "another", 1), ("sam", "a chip", 2)]


@pytest.mark.slow
def test_what_disagrees_is_named_and_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(attacks, "bare_loop", lambda images, *_: images)
    path = tmp_path / "speed.json"
    with pytest.raises(SystemExit, match="pgd5: the bare loop finds another view"):
        speed.main(["--tiny", "--threads", "1", "--rows", "pgd5", "--out", str(path)])
    assert not path.exists()


def test_a_direction_of_nothing_is_refused(bench, monkeypatch):
    monkeypatch.setattr(attacks.nn.init, "ones_", torch.nn.init.zeros_)
    with pytest.raises(Disagreement, match="100% of the gradient is zero"):
        attacks.signs(bench)


def test_memory_is_that_of_nt_xent_in_blocks(bench):
    sizes = replace(bench.sizes, blocked_views=(256, 512, 1024), dim=2)
    (claim,) = growth.nt_xent_blocks(replace(bench, sizes=sizes)).claims
    assert claim.values[0] < 1.05  # of the whole matrix it would be 2
    assert losses._BLOCK == 2**26


def test_a_peer_that_attacks_nothing_is_refused(bench, monkeypatch):
    idle = {"idle": lambda _, images, *__: lambda: images}
    monkeypatch.setattr(attacks, "PEERS", idle)
    monkeypatch.setattr(measuring, "_TURNS", 1)
    with pytest.raises(Disagreement, match="cross-entropy that idle gains: 0, expected"):
        attacks.cross_entropy(replace(bench, rounds=1), 5)


# --- instruments ----------------------------------------------------------------------------------


def test_contestants_take_turns_with_the_same_random_numbers(bench):
    heard = []
    calls = {
        name: partial(lambda n: heard.append((n, torch.rand(()).item())), name) for name in "abc"
    }
    turns = bench.turns({**calls, "absent": None}, once=["c"])
    assert [name for name, _ in heard] == [*"abc", *"ab" * 3]
    assert len({drawn for _, drawn in heard}) == 1
    assert {name: len(times) for name, times in turns.times.items()} == {"a": 3, "b": 3, "c": 1}
    assert len(turns.claim("", "a", "b", 1.0).values) == 3
    assert len(turns.claim("", "a", "c", 1.0).values) == 1
    assert turns.claim("", "a", "absent", 1.0).note == "not installed"


def test_a_ratio_is_taken_within_its_turn():
    turns = measuring.Turns({"a": [1.0, 20.0, 3.0], "b": [2.0, 40.0, 6.0]}, {})
    claim = turns.claim("", "a", "b", None)
    assert claim.values == [0.5, 0.5, 0.5]
    assert (claim.ours, claim.other) == (3.0, 6.0)


def test_turns_end_with_the_budget(bench):
    plenty = replace(bench, rounds=1_000_000, budget=0.05)
    assert 3 <= len(plenty.turns({"a": lambda: None}).times["a"]) < 1_000_000


def test_the_peak_is_of_what_is_held_at_once(bench):
    def call() -> None:
        first = torch.zeros(1000, 1000)
        second = first + 1
        del first
        third = second + 1
        assert third.sum() > 0

    assert bench.peak(call) == pytest.approx(8.0, rel=0.01)


def test_exponents_and_disagreement():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert agree("passes", 50.2, 50, relative=0.02) == 50.2
    for seen in (52, math.nan):
        with pytest.raises(Disagreement, match=r"passes: .* expected 50 within 2.0%"):
            agree("passes", seen, 50, relative=0.02)


def test_what_cannot_be_imported_is_not_installed():
    def make():
        raise ModuleNotFoundError("no such peer")

    assert installed(make) is None
    with pytest.raises(ValueError, match="broken"):
        installed(lambda: exec("raise ValueError('broken')"))


# --- opponents ------------------------------------------------------------------------------------


def views(names: list[str]) -> dict[str, torch.Tensor]:
    """Far enough from black and white that no start is clamped."""
    made = 0.1 + 0.8 * torch.rand(len(names), 4, 3, 16, 16, dtype=torch.float64)
    return dict(zip(names, made, strict=True))


class Given(torch.nn.Module):
    """Instead of an augmentation: these views in turn."""

    def __init__(self, *views):
        super().__init__()
        self.views = [*views]

    def forward(self, _):
        self.views.append(self.views.pop(0))
        return self.views[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "names", "theirs"),
    [
        (steps.AdvCL, ["x", "t1", "t2"], released.advcl_step),
        (steps.GSARSL, ["p", "q"], released.gsa_rsl_step),
    ],
)
def test_the_released_step_moves_the_weights_where_ours_does(bench, of, names, theirs):
    """From the same draws; the critic, which learns from another pass, is kept from learning."""
    made = views(names)
    ours = steps.prepared(bench, of).double()
    ours.weak = Given(*(made[name] for name in ("x", "q") if name in made))
    ours.strong = Given(*(made[name] for name in ("t1", "t2", "p") if name in made))
    for critic, _ in ours.optimizers().values():
        critic.param_groups[0]["lr"] = 0.0
    start = copy.deepcopy(ours.state_dict())
    other = copy.deepcopy(ours)
    batch = Batch(torch.empty(4, 3, 16, 16), torch.arange(4), torch.arange(4))
    for method, step in ((ours, steps.our_step), (other, theirs)):
        torch.manual_seed(5)
        step(method, SGD(method.parameters(), 0.1), batch)
    for (name, seen), expected in zip(other.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(seen, expected, msg=name)
    moved = [not torch.equal(p, start[name]) for name, p in ours.named_parameters()]
    assert sum(moved) > len(moved) / 2


def test_the_released_advcl_moves_batchnorm_at_every_step(bench):
    method = steps.prepared(bench, steps.AdvCL)
    batch = steps.on_device(bench, steps.stored(bench))
    seen = {}
    for name, step in (("ours", steps.our_step), ("released", released.advcl_step)):
        trained = copy.deepcopy(method)
        step(trained, SGD(trained.parameters(), 0.0), batch)
        seen[name] = trained.encoder.bn1["pgd"].num_batches_tracked.item()
    assert seen == {"ours": 1, "released": 6}


@pytest.mark.slow
def test_a_contestant_that_is_to_be_compiled_is(bench):
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    method = steps.prepared(bench, steps.SimCLR)
    steps.ours_quick(bench, method)()
    assert not graphs
    usual = torch._dynamo.config.cache_size_limit
    steps.ours_quick(bench, method, compiler={"backend": backend})()
    assert graphs
    assert torch._dynamo.config.cache_size_limit == usual


def test_inertia_is_that_of_the_definition():
    x, labels = torch.nn.functional.normalize(torch.randn(30, 5), dim=1), torch.arange(30) % 3
    means = torch.stack([x[labels == i].mean(dim=0) for i in range(3)])
    expected = (x - means[labels]).square().sum().item()
    assert clusters.inertia(x, labels, 4) == pytest.approx(expected, rel=1e-5)


def test_k_means_is_held_to_the_fastest_of_equal_inertia(bench, monkeypatch):
    def one_cluster(features: torch.Tensor, _: int):
        return lambda _: torch.zeros(len(features), dtype=torch.int64)

    def twice(features: torch.Tensor, k: int):
        def fit(seed: int) -> torch.Tensor:
            for _ in range(2):
                head = ClusterFitHead(1, (k,))
                head.fit(features, seed=seed)
            return head.pseudo_labels[:, 0]

        return fit

    monkeypatch.setattr(clusters, "PEERS", {"one cluster": one_cluster, "twice": twice})
    row = clusters.k_means(bench, 5)
    goals = {claim.against: claim.goal for claim in row.claims}
    assert goals == {"one cluster": None, "twice": 1.0, "the lowest of the others": 1.01}
    assert row.checks["inertia"]["twice"] == pytest.approx(row.checks["inertia"]["advssl"])


# --- the table ------------------------------------------------------------------------------------


def rendered(**claim) -> list[str]:
    row = asdict(Row([Claim("it", "them", **claim)]))
    (line,) = speeds.speed_table([{**row, "machine": {"can": ["AMX"]}}]).splitlines()[2:]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("claim", "cells"),
    [
        (
            {"values": [0.4, 0.5, 0.6], "goal": 0.5, "ours": 12.3, "other": 2461.0},
            ["≤ 0.5", "0.50", "0.45 to 0.55 (3)", "12.30 ms", "2,461 ms", "yes, within the spread"],
        ),
        (
            {"values": [0.3, 0.4, 0.6], "goal": 0.5},
            ["≤ 0.5", "0.40", "0.35 to 0.50 (3)", "", "", "yes"],
        ),
        (
            {"values": [0.4, 0.6, 0.8], "goal": 0.5},
            ["≤ 0.5", "0.60", "0.50 to 0.70 (3)", "", "", "no, within the spread"],
        ),
        (
            {"values": [0.6, 0.7, 0.8], "goal": 0.5, "needs": "AMX"},
            ["≤ 0.5", "0.70", "0.65 to 0.75 (3)", "", "", "**no**"],
        ),
        (
            {"values": [0.6], "goal": 0.5, "needs": "GPU"},
            ["≤ 0.5", "0.60", "once", "", "", "n/a here: without GPU"],
        ),
        (
            {"values": [0.01], "goal": 0.5, "needs": "GPU"},
            ["≤ 0.5", "0.01", "once", "", "", "yes, even without GPU"],
        ),
        (
            {"values": [0.3, 0.42, 0.46], "goal": 0.4, "at_least": True},
            ["≥ 0.4", "0.42", "0.36 to 0.44 (3)", "", "", "yes, within the spread"],
        ),
        (
            {"values": [0.2, 0.32, 0.38], "goal": 0.4, "at_least": True},
            ["≥ 0.4", "0.32", "0.26 to 0.35 (3)", "", "", "**no**"],
        ),
        ({"values": [12_345.6], "unit": "images/s"}, ["", "12,346 images/s", "once", "", "", ""]),
        ({"values": [], "goal": 1.0, "note": "not installed"}, ["≤ 1", "", "", "", "", ""]),
    ],
)
def test_a_line_says_whether_the_goal_is_met(claim, cells):
    what, against, *rest = rendered(**claim)
    assert what == "it"
    assert against == ("them (not installed)" if "note" in claim else "them")
    assert rest == cells


def test_rows_of_one_machine_stand_together(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "RESULTS", tmp_path)
    assert speeds.speed() == "Nothing is recorded yet: `make bench` measures."
    row = {
        **asdict(Row([Claim("it", "them", [0.5])], {"a": [1.0, 2.0]})),
        "sizes": asdict(TINY),
        "seconds": 90.0,
        "commit": "0123456789abcdef",
    }
    gpu = {**HERE, "gpu": "a card", "device": "cuda"}
    for name, machine in (("sam", gpu), ("advcl", HERE), ("import", HERE)):
        speed._keep(tmp_path / "speed.json", {**row, "row": name, "machine": machine})
    first, second = speeds.speed().split("\n\n**")
    assert first.startswith("**a chip, 2 threads**")
    assert second.startswith("a card**")
    assert first.count("| it |") == 2
    assert second.count("| it |") == 1
    assert "commit 0123456789; torch 2.5" in first
    assert "3 minutes in all." in first


_NO = r"\W*no\b"


def test_every_miss_is_named_with_its_cause():
    readme = (speed.BENCHMARKS / "README.md").read_text(encoding="utf-8")
    table, causes = readme.split("## Misses and their causes")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    missed = {first.split(",")[0] for first, *_, met in filter(None, cells) if re.match(_NO, met)}
    for what in missed:
        assert what in causes, f"{what} misses its goal: say why under {causes.splitlines()[0]}"
