"""A run that is killed or stopped ends with the very weights of one that was not."""

from __future__ import annotations

import copy
import csv
import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import PROCESSES

from advssl.evaluation.identity import keep, kept
from harness import chain
from harness.training import LAST, Training
from reproduce import METHODS
from simclr import SimCLR

from . import tiny
from .tiny import never

PAPERS = Path(tiny.chain.__file__).parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two epochs of three steps, without a pause, of a method."""
    found = {}

    def trained(name: str) -> dict[str, torch.Tensor]:
        if name not in found:
            out = tmp_path_factory.mktemp(name)
            found[name] = tiny.weights(tiny.train(tiny.plan(name, "--epochs", "2"), out))
        return found[name]

    return trained


def folder(out: Path) -> Path:
    """Where the only run below keeps its checkpoint."""
    (found,) = (out / "work").iterdir()
    return found


def key(out: Path) -> str:
    """By which its checkpoint is kept."""
    return folder(out).name.rpartition("-")[2]


# --- going on -------------------------------------------------------------------------------------


def killed_after(step: int, name: str, out: Path) -> None:
    """Trained until the optimizer has made so many steps, in the process that calls it."""
    method, done = METHODS[name], itertools.count(1)

    def after_step(_):
        if next(done) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    method.after_step = after_step
    tiny.train(tiny.plan(name, "--epochs", "2"), out, save_every=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsa_rsl", pytest.param("simclr", marks=pytest.mark.heavy)])
def test_a_killed_run_ends_with_the_same_weights(name, whole, tmp_path):
    # After the optimizer's fifth step, the second of the second epoch, and before its checkpoint.
    killed = PROCESSES.Process(target=killed_after, args=(5, name, tmp_path))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert torch.load(folder(tmp_path) / LAST, weights_only=True)["global_step"] == 4
    resumed = tiny.train(tiny.plan(name, "--epochs", "2"), tmp_path)
    assert tiny.same(tiny.weights(resumed), whole(name))


class Momentum(SimCLR):
    """Has what the methods here lack: a momentum encoder, and a schedule of its own."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)
        self.epochs, self.steps = [], 0

    def begin_epoch(self, epoch, epochs):
        self.epochs.append((epoch, epochs))

    def after_step(self):
        self.steps += 1
        for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gsa_rsl", "momentum", pytest.param("advcl", marks=pytest.mark.heavy)]
)
def test_a_run_of_many_starts_ends_with_the_same_weights(name, tmp_path):
    methods = {**METHODS, "momentum": Momentum}
    plan = replace(
        tiny.plan("simclr" if name == "momentum" else name, "--epochs", "2"), method=name
    )
    if plan.method == "advcl":  # its clusters' method is trained beforehand
        tiny.train(replace(plan, method="simclr", flags={"radius": 0.1}), tmp_path)
    expected = tiny.weights(tiny.train(plan, tmp_path / "whole", methods=methods))
    starts, resumed = 0, None
    while resumed is None:
        starts += 1
        # Its time is up at once, but each start makes a step.
        resumed = tiny.train(plan, tmp_path, methods=methods, deadline=time.monotonic())
    assert starts == 6
    assert tiny.same(tiny.weights(resumed), expected)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_its_step_with_a_checkpoint(number, whole, tmp_path, monkeypatch):
    plan, steps = tiny.plan("simclr", "--epochs", "2"), []
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def asked(_):
        steps.append(len(steps))
        if len(steps) == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(METHODS["simclr"], "after_step", asked)
        tiny.train(plan, tmp_path)
    assert kept(folder(tmp_path) / LAST, key(tmp_path))["global_step"] == len(steps) == 2
    assert {s: signal.getsignal(s) for s in handlers} == handlers
    assert tiny.same(tiny.weights(tiny.train(plan, tmp_path)), whole("simclr"))


@pytest.mark.slow
def test_hooks_are_called_once_per_step_and_before_the_first_of_each_start(tmp_path):
    plan, made = tiny.plan("simclr", "--epochs", "2"), []

    class Watched(Momentum):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    methods = {"simclr": Watched}
    for _ in range(4):
        assert tiny.train(plan, tmp_path, methods=methods, deadline=time.monotonic()) is None
    tiny.train(plan, tmp_path, methods=methods)
    assert [m.steps for m in made] == [1, 1, 1, 1, 2]
    assert [m.epochs for m in made] == [[(0, 2)]] * 3 + [[(1, 2)]] * 2
    whole = tiny.train(plan, tmp_path / "whole", methods=methods)
    assert (whole.method.steps, whole.method.epochs) == (6, [(0, 2), (1, 2)])


def test_the_index_stays_on_the_cpu():
    plan = tiny.plan("simclr")
    method, batch = chain.first_step(plan, METHODS, chain.open_plan(plan))
    training = Training(method, plan.recipe, None, 3, 0)
    moved = training.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert [part.device.type for part in moved] == ["meta", "meta", "cpu"]
    assert torch.equal(moved.index, batch.index)


def test_seconds_are_those_of_all_starts(tmp_path):
    plan = tiny.plan("simclr", "--epochs", "2")
    assert tiny.train(plan, tmp_path, deadline=time.monotonic()) is None
    path = folder(tmp_path) / LAST
    checkpoint = kept(path, key(tmp_path))
    assert 0 < checkpoint["seconds"] < 60
    keep(path, key(tmp_path), {**checkpoint, "seconds": 1000.0})
    assert 1000 < tiny.train(plan, tmp_path).told["seconds"] < 1060


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_trains_nothing_more(tmp_path, monkeypatch):
    plan = tiny.plan("gsa_rsl")
    expected = tiny.weights(tiny.train(plan, tmp_path))
    (folder(tmp_path) / "method.pt").unlink()
    monkeypatch.setattr(METHODS["gsa_rsl"], "forward", None)
    assert tiny.same(tiny.weights(tiny.train(plan, tmp_path)), expected)


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    plan, save, written = tiny.plan("simclr"), torch.save, []

    def torn(state, path):
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise MemoryError
        save(state, path)

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(MemoryError):
        tiny.train(plan, tmp_path, save_every=0)
    assert kept(folder(tmp_path) / LAST, key(tmp_path))["global_step"] == 1
    whole = tiny.weights(tiny.train(plan, tmp_path / "whole"))
    assert tiny.same(tiny.weights(tiny.train(plan, tmp_path)), whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_computed_again(tmp_path):
    plan = tiny.plan("simclr", "--limit", "20")  # one step
    expected = tiny.weights(tiny.train(plan, tmp_path))
    path, name = folder(tmp_path) / LAST, key(tmp_path)
    whole = path.read_bytes()
    damages = [b"", b"text", whole[:-500], bytes(100).join((whole[:2000], whole[2100:]))]
    moved = kept(path, name)
    next(iter(moved["state_dict"].values())).add_(1)
    keep(path, "another run", moved)
    for content in (*damages, path.read_bytes()):
        (path.parent / "method.pt").unlink()
        path.write_bytes(content)
        assert tiny.same(tiny.weights(tiny.train(plan, tmp_path)), expected)
        assert kept(path, name)["global_step"] == 1


# --- what else it can do --------------------------------------------------------------------------


@pytest.mark.slow
def test_half_precision_keeps_whole_weights(whole, tmp_path):
    trained = tiny.train(
        tiny.plan("gsa_rsl", "--epochs", "2", "--precision", "bf16-mixed"), tmp_path
    )
    found = tiny.weights(trained)
    assert {v.dtype for v in found.values()} == {torch.float32, torch.int64}
    assert all(v.isfinite().all() for v in found.values())
    assert not tiny.same(found, whole("gsa_rsl"))


@pytest.fixture
def photos(tmp_path):
    """A folder of a few images per class."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for c in range(2):
            place = tmp_path / "photos" / part / f"class{c}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.slow
def test_streamed_images_train_the_same_weights(photos, tmp_path):
    plan = tiny.plan("gsa_rsl", "--data", f"folder:{photos}", "--limit", "0", "--epochs", "2")
    plan = replace(plan, recipe=replace(plan.recipe, batch_size=8))
    held, streamed = (
        tiny.weights(tiny.train(plan, tmp_path / str(gb), memory_gb=gb)) for gb in (1.0, 0.0)
    )
    assert tiny.same(held, streamed)


def logged(place: Path, start: int = 0) -> list[dict[str, str]]:
    with (place / "csv" / f"version_{start}" / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_critics_rate_follows_the_encoders(tmp_path):
    plan = tiny.plan("gsa_rsl", "--epochs", "2")
    trained = tiny.train(plan, tmp_path)
    critic, peak = trained.method.optimizers()["critic"]
    share = plan.recipe.schedule(5, 3, 2) / plan.recipe.schedule.peak
    assert 0 < share < 0.5
    assert critic.param_groups[0]["lr"] == pytest.approx(peak * share)
    assert float(logged(folder(tmp_path))[-1]["rate"]) / plan.recipe.schedule.peak == pytest.approx(
        share
    )


@pytest.mark.slow
def test_every_start_logs_its_terms_beside_those_before(tmp_path):
    plan = tiny.plan("gsa_rsl", "--limit", "20", "--epochs", "3")
    assert tiny.train(plan, tmp_path, deadline=time.monotonic()) is None
    tiny.train(plan, tmp_path)
    rows = [*logged(folder(tmp_path), 0), *logged(folder(tmp_path), 1)]
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    for row in rows:
        terms = sum(float(row[name]) for name in ("adversarial", "benign", "global"))
        assert float(row["loss"]) == pytest.approx(terms, rel=1e-5)


def test_tensorboard_is_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    tiny.train(tiny.plan("simclr"), tmp_path)
    assert list((folder(tmp_path) / "tensorboard").glob("events.*"))


def test_nothing_is_said_of_a_run_whose_epochs_have_one_step(tmp_path, capfd):
    """Warnings are errors here: of the interval of logs, of workers, of anything."""
    tiny.train(tiny.plan("simclr", "--limit", "20", "--epochs", "25"), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert logged(folder(tmp_path))[-1]["epoch"] == "24"


# --- several processes, compiled ------------------------------------------------------------------

RANKS = """
import sys, time
sys.path[:0] = sys.argv[3:]
from pathlib import Path
import torch
from pytorch_lightning.utilities import rank_zero_only
from tests.examples.papers import tiny

name, out = sys.argv[1], Path(sys.argv[2])
plan = tiny.plan(name, "--epochs", "2")
deadline = None if (out / "work").exists() or not (out / "stop").exists() else time.monotonic()
found = tiny.train(plan, out, devices=2, deadline=deadline)
if found is not None:
    torch.save(found.method.state_dict(), out / f"rank{rank_zero_only.rank}.pt")
"""


def on_two_ranks(name: str, out: Path) -> list[dict[str, torch.Tensor]]:
    """What each rank ends with, if it does."""
    (out / "ranks.py").write_text(RANKS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, out / "ranks.py", name, out, PAPERS, PAPERS.parents[1]],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return [torch.load(path, weights_only=True) for path in sorted(out.glob("rank?.pt"))]


def learned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without BatchNorm's statistics, of which each rank has its own."""
    return {name: v for name, v in state.items() if "running_" not in name}


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["simclr", "acl", "advcl", "gsa_rsl", "gsa_advcl", "ascl_local"])
def test_ranks_learn_the_same_weights_from_all_images(name, whole, tmp_path):
    one, other = on_two_ranks(name, tmp_path)
    assert tiny.same(learned(one), learned(other))
    if name in ("simclr", "gsa_rsl"):
        alone = whole(name)
        assert not tiny.same(learned(one), learned(alone))  # other views are drawn
        assert one.keys() == alone.keys()


@pytest.mark.heavy
def test_ranks_go_on_where_they_were(tmp_path):
    ends = []
    for place in (tmp_path / "whole", tmp_path / "stopped"):
        place.mkdir()
        if place.name == "stopped":
            (place / "stop").touch()
            assert on_two_ranks("gsa_rsl", place) == []
            assert torch.load(folder(place) / LAST, weights_only=True)["global_step"] == 1
        ends.append(on_two_ranks("gsa_rsl", place))
    for rank in range(2):
        assert tiny.same(ends[0][rank], ends[1][rank])


@pytest.mark.heavy
@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="compiling needs a compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["simclr", "gsa_rsl", "advcl"])
def test_a_compiled_encoder_learns_the_same(name, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plan, losses = tiny.plan(name, "--limit", "20", "--epochs", "2"), []
    for compiled in (True, False):
        out = tmp_path / str(compiled)
        trained = tiny.train(plan, out, compiled=compiled)
        (place,) = (out / "work").glob(f"{name}-*")
        losses.append([float(row["loss"]) for row in logged(place)])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    branches = 3 if name == "advcl" else len(trained.method.measured()[1]) or 1
    # Of each branch: to train on, to attack with fixed weights, and without gradient.
    assert 1 <= graphs <= 3 * branches
    # Rounding differs, and Adam's first steps and an attack's look at signs.
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


# --- in half precision ----------------------------------------------------------------------------


@pytest.mark.parametrize(("scales", "steps"), [((8, 4), 0), ((8, 8), 1), ((8, 16), 1)])
def test_averages_stand_still_where_a_scaled_step_is_skipped(scales, steps):
    """A GradScaler halves its scale after a step that overflowed."""
    plan = tiny.plan("simclr")
    method, _ = tiny.opened(plan)
    module, taken, asked = Training(method, plan.recipe, never, 3, 0), [], iter(scales)
    scaler = SimpleNamespace(get_scale=lambda: next(asked))
    module.trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    method.after_step = lambda: taken.append(1)
    module.optimizer_step(0, 0, torch.optim.SGD(method.parameters(), 0.1), lambda: None)
    assert len(taken) == steps
