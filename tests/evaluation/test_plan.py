"""A plan says what will be done and what it takes; what does not fit is refused with what does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advssl import Linf
from advssl.evaluation import attacks, costs, plan
from advssl.evaluation.data import open_data
from advssl.evaluation.evaluate import Evaluation, chosen_attacks, ways
from advssl.evaluation.protocols import Way, protocol
from advssl.pixels import Pixels

BALL = Linf(8 / 255)


class Held(nn.Module):
    """Whose backward to its input holds two tensors of 8 x 8 floats per image and channel."""

    def forward(self, images):
        return images.sin().exp().flatten(1)


def asked(**more) -> Evaluation:
    data = open_data("digits", image_size=8)
    fields = {
        "modules": {None: nn.Sequential(nn.Flatten(), nn.Linear(192, 16))},
        "data": data,
        "ball": BALL,
        "attacks": chosen_attacks(["pgd", "aa"], BALL),
        "ways": ways("standardised", data),
        "pixels": Pixels(),
        "images": 200,
        "doubts": True,
        "curves": True,
        "with_beside": True,
        "seed": 0,
        "attack_seed": 0,
        "batch_size": 100,
        "budget": None,
        "model": None,
    }
    return Evaluation(**{**fields, **more})


def test_memory_is_what_a_backward_holds():
    found = plan.measured_forward(Held(), torch.rand(4, 3, 8, 8))
    one = 4 * 3 * 8 * 8
    assert 2 * one <= found.held <= 4 * one
    assert found.layer == one
    assert found.seconds > 0


def test_more_memory_than_at_hand_is_an_error_with_the_batch_that_fits():
    forward = plan.Measured(0.1, 10 * 2**20, 2**20)
    cpu = torch.device("cpu")
    assert plan.check_memory(forward, 10, cpu, there=150 * 2**20) == 150 * 2**20
    with pytest.raises(ValueError, match="take a batch size of 10"):
        plan.check_memory(forward, 11, cpu, there=150 * 2**20)
    with pytest.raises(ValueError, match="smaller network"):
        plan.check_memory(forward, 11, cpu, there=2**20)


@pytest.mark.parametrize(
    ("name", "each"),
    [("slf", 2 * 2**20), ("alf", 15 * 2**20), ("fsf", 15 * 2**20), ("aff", 30 * 2**20)],
)
def test_a_probe_trains_in_batches_of_its_own(name, each):
    forward, cpu = plan.Measured(0.1, 10 * 2**20, 2**20), torch.device("cpu")
    way = Way("advcl", protocol("advcl", name))
    count = way.how.batch_size
    assert plan.check_probe(forward, way, 10**6, cpu, there=count * each) == count * each
    assert plan.check_probe(forward, way, 3, cpu, there=2**30) == 3 * each
    with pytest.raises(ValueError, match=rf"{name} .advcl.* batch_size of {count - 1},"):
        plan.check_probe(forward, way, 10**6, cpu, there=count * each - 1)
    assert plan.check_probe(forward, Way("own", None), 10**6, cpu, there=0) == 0


def test_the_plan_counts_the_batches_that_there_are(monkeypatch):
    monkeypatch.setattr(plan, "in_use", lambda: 0)
    few = asked(images=20).plan()
    assert few.batch_size == 20
    large = replace(protocol("standardised", "alf"), batch_size=400)
    found = asked(images=20, ways=ways(large, asked().data), with_beside=False).plan()
    assert found.memory == int(1.5 * found.forward.held) * 400
    monkeypatch.setattr(plan, "at_hand", lambda _: found.memory - 1)
    with pytest.raises(ValueError, match=r"trainings of alf .* 399,"):
        asked(images=20, ways=ways(large, asked().data)).plan()


def test_the_time_is_the_least_of_several(monkeypatch):
    now, took = [0.0], iter([0.4, 0.1])  # other work held the first one up
    monkeypatch.setattr(plan.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(plan.time, "process_time", lambda: 1e6 * now[0])

    def work():
        now[0] += next(took)

    assert plan._timed(work, torch.device("cpu")) == pytest.approx(0.1)


def test_all_work_is_in_it_once():
    found = asked().plan("report")
    whats = [job.what for job in found.jobs]
    assert whats[:4] == [
        "probe slf (standardised)",
        "clean",
        *(a.name for a in attacks.ATTACKS["pgd"].of(BALL)),
    ]
    assert whats[4].startswith("AutoAttack")
    assert whats[5:] == [
        "doubts",
        "figures, 13 points",
        "its best epoch",
        "probe slf (advcl)",
        "its accuracy",
    ]
    clean, pgd = (next(j for j in found.jobs if j.what.startswith(w)) for w in ("clean", "PGD-20"))
    assert clean.forwards == (200, 200)
    assert pgd.forwards == (200, 200 * 43)
    assert found.forwards == costs.sum_of(job.forwards for job in found.jobs)
    assert found.seconds == tuple(n * found.forward.seconds for n in found.forwards)
    text = str(found)
    for said in (
        "digits, 10 classes",
        "8 x 8 pixels",
        "linf, radius 8/255",
        "200 of the test",
        "GB",
    ):
        assert said in text, said
    assert all(len(line) < 110 for line in text.splitlines())


@pytest.mark.parametrize(("radius", "shown"), [(0.1, "0.1"), (8 / 255, "8/255"), (0.25, "0.25")])
def test_a_radius_is_written_as_people_give_it(radius, shown):
    assert f"linf, radius {shown} of [0, 1]\n" in str(asked(ball=Linf(radius)).plan())


def test_what_was_not_asked_for_is_not_in_it():
    found = asked(attacks=chosen_attacks(["clean"], BALL), doubts=False, curves=False).plan()
    assert [job.what for job in found.jobs] == [
        "probe slf (standardised)",
        "clean",
        "its best epoch",
    ]
    assert ("results", "nowhere") in found.facts


def test_an_attack_by_others_is_named_as_not_known():
    class Mine:
        name, settings, ball = "mine", {}, None

        def __call__(self, _, images, *__, **___):
            return images

    found = asked(attacks=(attacks.Clean(), Mine())).plan()
    assert "and mine, of which nothing is known" in str(found)


def test_the_time_is_that_of_a_forward_on_this_machine(monkeypatch):
    monkeypatch.setattr(plan, "_timed", lambda *_: 3.2)
    found = plan.measured_forward(Held(), torch.rand(20, 3, 8, 8))
    assert found.seconds == pytest.approx(3.2 / (2 * 16))


def test_other_work_on_the_machine_does_not_count(monkeypatch):
    """Half of the time another process has the core; two threads share what is left."""
    wall, computed = [0.0], [0.0]
    monkeypatch.setattr(plan.time, "perf_counter", lambda: wall[0])
    monkeypatch.setattr(plan.time, "process_time", lambda: computed[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def work():
        wall[0] += 4.0
        computed[0] += 4.0  # of 8, by both

    assert plan._timed(work, torch.device("cpu")) == 2.0


def test_what_an_f_is_stands_before_the_work():
    text = str(asked().plan())
    assert "an F" in text
    assert "one image through the network, or back; " in text
    assert text.index("an F") < text.index("probe slf")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (45, "45 s"), (600, "10 min"), (7200, "2 h"), (10**6, "12 days")],
)
def test_times_as_people_say_them(seconds, said):
    assert plan.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        ((7, 7), "7 F"),
        ((999, 1234), "999 to 1.23 thousand F"),
        ((2_500_000, 10**9), "2.5 million to 1 billion F"),
        (None, "as many forwards as it takes"),
    ],
)
def test_forwards_as_people_say_them(count, said):
    assert plan._forwards(count) == said


def test_a_budget_that_the_default_probe_would_eat_takes_the_other(monkeypatch):
    said = []
    photographs = open_data("digits", image_size=8)
    object.__setattr__(photographs, "natural", True)
    monkeypatch.setattr(plan, "_timed", lambda *_: 1.0)
    cheap = asked(data=photographs, ways=ways(None, photographs), budget=60.0)
    assert cheap.ways[0].preset == "advcl"
    assert cheap.affordable(said.append).ways[0].preset == "standardised"
    assert "the probe is slf (standardised)" in said[0]
    rich = asked(data=photographs, ways=ways(None, photographs), budget=1e7)
    assert rich.affordable(said.append) is rich
    assert asked().affordable(said.append).ways == asked().ways
