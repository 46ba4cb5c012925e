"""Tables hold what is printed, every row is a command that runs, and ours stand beside theirs."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import reproduce
from advssl import Linf
from advssl.evaluation import attacks, probes
from advssl.evaluation.records import Measurement
from advssl.integrations.timm import backbone
from harness import figures, tables
from harness.listing import asked_of, command, listing, whole
from harness.method import Method
from harness.options import given, parse
from harness.presets import plan_of
from harness.tables import MEASURES, OWN, Ours, Row, Table, said_of
from reproduce import METHODS

from . import tiny

ALL = tables.everything()
each_table = pytest.mark.parametrize("table", ALL, ids=lambda table: f"{table.id} {table.data}")


def planned(words) -> reproduce.Plan:
    options = parse(words)
    return plan_of(options.method, options, given(options, METHODS[options.method]))


def flags(row: Row) -> dict:
    """The settings that a row's words name."""
    return given(parse(row.run), METHODS[row.run[0]])


@cache
def exists(spec: str) -> None:
    with torch.device("meta"):
        backbone(spec)


# --- the data -------------------------------------------------------------------------------------


def test_ids_and_labels_are_unique():
    assert sorted(tables.ids()) == [
        *(f"advcl-{n}" for n in range(1, 6)),
        *(f"ascl-{n}" for n in range(2, 8)),
        *(f"ascl23-{n}" for n in range(1, 9)),
        *(f"gsa-{n}" for n in range(1, 5)),
    ]
    assert {table.id for table in ALL} == {*tables.ids()}
    for table in ALL:
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels) > 1


@each_table
def test_a_row_has_a_number_or_none_for_each_metric(table):
    to = {f"to {row.label}" for row in table.rows}
    assert set(table.metrics.values()) <= {*MEASURES, *to}
    for row in table.rows:
        assert row.published
        for values in row.published.values():
            assert len(values) == len(table.metrics)
            assert all(0 <= v <= 100 for v in values if v is not None)
            assert any(v is not None for v in values)


@each_table
def test_a_row_is_a_command_or_quoted(table, plans, tmp_path, monkeypatch):
    """What is wrong with a word raises; the table runs what its rows' commands run."""
    monkeypatch.chdir(tmp_path)
    asked = []
    for row in table.rows:
        assert bool(row.run) != bool(row.quoted)
        if row.quoted:
            continue
        plan = planned(command(table, row))
        method = METHODS[plan.method]
        assert (",".join(plan.protocols) or OWN) == row.protocols
        assert plan.attacked == table.attacks or (table.black_box and plan.attacked == ("pgd",))
        for name in plan.protocols:
            probes.protocol(plan.preset, name)
        if OWN in row.published:
            assert method.classifier is not Method.classifier
        exists(plan.backbone)
        small = asked_of(table, row, ["--preset", "quick"], "digits", paper=False)
        assert planned(small).flags.items() >= flags(row).items()
        asked.append(replace(plan, branches="own"))
        for file in row.brought:
            Path(file).touch()
    if not table.black_box:
        reproduce.main(whole(table))
        assert plans == asked


@pytest.mark.heavy
@each_table
def test_a_row_has_a_dry_form(table, tmp_path):
    for row in (row for row in table.rows if row.run):
        few = [*tiny.SMALL, "--limit", "500", *row.run[1:]]
        words = asked_of(table, row, [*few, "--out", str(tmp_path)], "digits", paper=False)
        said = reproduce.dry_run(planned(words))
        assert "forward through the encoder" in said


def test_the_list_prints_what_runs():
    told = [line for line in listing("reproduce.py").splitlines() if ": reproduce.py " in line]
    lines = [line for line in told if not line.startswith("figure:")]
    drawn = [figure.id for figure in figures.everything() if not figure.missing]
    assert [line.split(",")[0] for line in told if line not in lines] == [
        f"figure:{name}" for name in drawn
    ]
    words = [shlex.split(line.rpartition(": reproduce.py ")[2]) for line in lines]
    rows = [planned(word) for word in words if word[0] != "--table"]
    assert len(rows) == sum(bool(row.run) for table in ALL for row in table.rows)
    assert [word[1] for word in words if word[0] == "--table"] == [table.id for table in ALL]


@pytest.mark.parametrize(
    ("table_id", "data", "label", "protocol", "printed"),
    [
        ("gsa-1", "cifar10", "GSA-RSL", "slf", (85.08, 41.69, 56.34, 38.60)),
        ("gsa-1", "cifar10", "AdvCL + GSA-RSL", "alf", (87.81, 48.46, 61.18, 42.85)),
        ("gsa-1", "cifar100", "RoCL", "alf", (32.29, 19.15, 23.86, 14.07)),
        ("gsa-1", "cifar100", "GSA-RSL", "slf", (54.21, 18.58, 27.05, 14.37)),
        ("gsa-2", "cifar10", "ACL-DS", "slf", (76.63, 36.61, 52.00, 34.40)),
        ("gsa-2", "cifar10", "ACL-DS + GSA-RSL", "alf", (73.85, 43.16, 54.92, 38.94)),
        ("gsa-2", "cifar10", "Dyn-AIR + GSA-RSL", "slf", (78.59, 45.62, 58.07, 42.96)),
        ("gsa-3", "cifar10 to stl10", "AdvCL", "slf", (69.01, 28.67, 39.99, 24.06)),
        ("gsa-3", "cifar10 to stl10", "GSA-RSL", "alf", (64.64, 34.01, 43.66, 28.24)),
        ("gsa-4", "cifar10", "SimCLR", "slf", (84.44, 40.91)),
        ("gsa-4", "cifar10", "Only SAM", "alf", (81.35, 45.37)),
        ("gsa-4", "cifar10", "Only Discr.", "slf", (84.41, 41.51)),
        ("advcl-1", "cifar10", "Supervised", "slf", (42.22, 44.4, 79.77)),
        ("advcl-1", "cifar10", "ACL", "aff", (49.27, 52.82, 82.19)),
        ("advcl-1", "cifar100", "AdvCL", "slf", (19.78, 27.67, 48.34)),
        ("advcl-1", "cifar100", "AP-DPE", "aff", (22.53, 26.89, 55.27)),
        ("advcl-2", "cifar10 to stl10", "AdvCL", "slf", (25.74, 35.80, 63.73)),
        ("advcl-2", "cifar100 to stl10", "ACL", "aff", (28.68, 32.41, 57.16)),
        ("advcl-3", "cifar10", "AdvCL", "alf", (52.01, 79.39)),
        ("advcl-3", "cifar10", "Supervised", "alf", (46.75, 79.06)),
        ("advcl-4", "cifar10", "τ1(x)+δ1, τ2(x)+δ2", "slf", (42.48, 73.12)),
        ("advcl-4", "cifar10", "x+δ, τ1(x), τ2(x), high", "slf", (50.45, 80.85)),
        ("advcl-5", "cifar10", "without", "slf", (48.89, 77.73)),
        ("advcl-5", "cifar10", "CIFAR-10 SimCLR, 10", "slf", (50.10, 80.34)),
        ("advcl-5", "cifar10", "ImageNet SimCLR, 500", "slf", (49.03, 78.96)),
        ("ascl-2", "cifar10", "TRADES", OWN, (76.1, 51.9, 38.2, 36.3)),
        ("ascl-2", "cifar100", "Leaked-ASCL", OWN, (59.0, 42.5, 31.1, 31.9)),
        ("ascl-3", "cifar10", "Leaked-ASCL, WideResNet", OWN, (87.70, 52.80, 54.05)),
        ("ascl-3", "cifar10", "ACL-DS, ResNet-18", "aff", (82.19, None, 52.82)),
        ("ascl-4", "cifar10", "Hard-ASCL", OWN, (75.5, 53.1, 41.0, 41.3)),
        ("ascl-5", "cifar10", "Leaked-ASCL with p1", OWN, (76.5, 54.1, 42.3)),
        ("ascl-6", "cifar10", "orgSCL, ResNet-18", "slf", (93.80, 0.0, 0.0)),
        ("ascl-6", "cifar10", "ADV+VAT, WideResNet", OWN, (85.96, 54.76, 51.87)),
        ("ascl-7", "cifar10", "λ_SCL = 4, λ_VAT = 0", OWN, (79.2, 45.6, 34.3)),
        ("ascl-7", "cifar10", "λ_SCL = 0, λ_VAT = 3", OWN, (73.3, 54.4, None)),
        ("ascl23-1", "cifar10", "TRADES", OWN, (51.41, 45.41, 82.2)),
        ("ascl23-1", "cifar10", "RoCL + rLE", "alf", (47.69, None, 80.43)),
        ("ascl23-1", "cifar10", "ASCL", "alf", (53.09, 45.7, 81.67)),
        ("ascl23-2", "cifar10", "ACL", "aff", (52.98, None, 51.61, 50.78)),
        ("ascl23-2", "cifar10", "ASCL", "alf", (62.16, 67.32, 62.86, None)),
        ("ascl23-3", "cifar10 to stl10", "ASCL", "alf", (37.85, 65.75)),
        ("ascl23-3", "cifar10 to cifar100", "ACL", "slf", (18.69, 47.13)),
        ("ascl23-4", "cifar10", "RoCL", "alf", (80.43, 47.69)),
        ("ascl23-4", "cifar10", "Selfie", "slf", (78.93, 6.3)),
        ("ascl23-5", "cifar10", "AT + Self-sup CL", "alf", (76.97, 48.1, 42.52)),
        ("ascl23-6", "cifar10", "Label-independent", "alf", (80.12, 50.93, 21.81)),
        ("ascl23-7", "cifar10", "FSF", "fsf", (92.06, 0.21, 0.0)),
        ("ascl23-8", "cifar10", "ACL, same BN", "aff", (35.6, 75.15)),
    ],
)
def test_numbers_are_the_printed_ones(table_id, data, label, protocol, printed):
    table = tables.lookup(table_id, *data.split(" to "))
    (row,) = (row for row in table.rows if row.label == label)
    assert table.data == data
    assert row.published[protocol] == printed


def test_rows_of_an_ablation_differ_in_what_they_run():
    """The paper's rows are different experiments, so no two may run the same one here."""
    for table in ALL:
        runs = [(*row.run, *row.scale, row.protocols) for row in table.rows if row.run]
        assert len(set(runs)) == len(runs), table.id


def test_words_say_the_row():
    for row in tables.lookup("advcl-4").rows:
        views = flags(row)["views"]
        assert views.count(",") == row.label.count(",")
        assert views.count("d") == row.label.count("δ")
    selections = [flags(row)["selection"] for row in tables.lookup("ascl-4").rows]
    assert selections == ["global", "hard", "soft", "leaked"]
    for row in tables.lookup("ascl-7").rows:
        found = flags(row)
        assert row.label == f"λ_SCL = {found['scl']:.0f}, λ_VAT = {found['vat']:.0f}"


def test_ascl_s_rows_are_in_the_units_of_its_text(plans):
    """Table 3 leaves out natural cross-entropy and VAT, Table 6 the first; the others have both."""
    asked = {2: (1, 1, 2), 3: (0, 1, 0), 4: (1, 1, 2), 5: (1, 1, 2), 6: (0, None, None), 7: (1,)}
    for number, weights in asked.items():
        plans.clear()
        reproduce.main(["--table", f"ascl-{number}"])
        for plan in plans:
            assert plan.mode == "paper"
            if plan.method == "ascl_local":
                s = METHODS[plan.method].settings_type.of(plan.mode, **plan.flags)
                assert (s.keep_twin, s.anchor_mean, s.class_mean) == (True, False, False)
                for found, weight in zip((s.natural, s.scl, s.vat), weights, strict=False):
                    assert weight is None or found == weight
    reproduce.main(["--table", "gsa-4", "--mode", "paper"])
    assert plans[-1].mode == "paper"  # where a table does not say


def test_how_a_table_s_rows_are_trained():
    """Bui et al.: by Adam with ResNet-20, else by SGD, the baselines too; what is quoted, not."""

    def rates(recipe):
        return [recipe.schedule(epoch, 1, 200) for epoch in (0, 79, 80, 100, 120, 150, 160)]

    def own(row):
        return planned([*row.run, *row.scale, "--preset", "paper"]).recipe

    for table_id in ("ascl-2", "ascl-4", "ascl-5", "ascl-7"):
        for row in (row for row in tables.lookup(table_id).rows if row.run):
            assert (own(row).optimizer, own(row).epochs) == ("adam", 200)
            assert rates(own(row)) == pytest.approx([1e-3] * 2 + [1e-4] * 2 + [1e-5] * 2 + [1e-6])
    for row in tables.lookup("ascl-6").rows:
        if row.run[0] != "supcon":
            assert (own(row).optimizer, own(row).epochs) == ("sgd", 200)
            assert own(row).weight_decay == 5e-4
            assert rates(own(row)) == pytest.approx([0.1] * 3 + [0.01] * 2 + [0.001] * 2)
    assert not any("--recipe" in row.scale for row in tables.lookup("ascl-3").rows)


# --- looking up -----------------------------------------------------------------------------------


def test_a_column_is_said_in_words_of_its_own():
    columns = {key for table in ALL for key in table.metrics.values()}
    words = {key: said_of(key) for key in columns}
    assert len({*words.values()}) == len(columns)
    for key in columns - {*MEASURES}:
        assert words[key].startswith(f"{key.removeprefix('to ')}'s network")


def test_lookup():
    assert tables.lookup("advcl-1").data == "cifar10"
    assert tables.lookup("advcl-1", "cifar100").data == "cifar100"
    assert tables.lookup("advcl-1", "digits").data == "cifar10"  # what there is
    assert tables.lookup("ascl23-3", "cifar10").data == "cifar10 to stl10"
    assert tables.lookup("ascl23-3", "cifar10", "cifar100").data == "cifar10 to cifar100"
    assert tables.lookup("advcl-2", "cifar100", "stl10").data == "cifar100 to stl10"
    for row in (row for row in tables.lookup("ascl-2", "cifar100").rows if row.run):
        assert flags(row)["radius"] * flags(row)["relative_step"] == 0.001
    assert tables.lookup("ascl-2", "cifar100").metrics["PGD"] == "pgd-250/10"
    assert "--radius" not in tables.lookup("ascl-2").rows[0].run
    assert tables.lookup("ascl-2").metrics["PGD"] == "pgd-250/4"
    with pytest.raises(ValueError, match=r"no table 'advcl-9'; there are gsa-1, .*, ascl23-8"):
        tables.lookup("advcl-9")


def test_tables_of():
    assert tables.tables_of("gsa_rsl") == ["gsa-1", "gsa-3", "gsa-4"]
    assert tables.tables_of("gsa_acl") == ["gsa-2"]
    assert tables.tables_of("gsa_on_advcl") == []


# --- beside each other ----------------------------------------------------------------------------


def measured(place: str, attack: attacks.Attack, right: int) -> Measurement:
    """What a chain writes down, with ``right`` of 8 images."""
    return Measurement(
        name=f"{place}: {attack.name}",
        correct=(True,) * right + (False,) * (8 - right),
        seed=0,
        settings=attack.settings,
        dataset="0",
        commit=None,
        machine={},
    )


BALL = Linf(0.1)
QUARTER, TENTH = attacks.PGD(BALL, 20, 0.1 / 4), attacks.PGD(BALL, 20, 0.1 / 10)
FOUND = [
    measured("slf adversarial", attacks.Clean(), 6),
    measured("slf adversarial", QUARTER, 2),
    measured("slf adversarial", TENTH, 3),
    measured("slf adversarial, best on validation", attacks.Clean(), 8),
    measured("alf adversarial", attacks.Clean(), 5),
    measured("own head", attacks.MultiTargetedPGD(BALL, 20, 0.1 / 4), 1),
]


def test_ours_beside_theirs():
    table = Table(
        id="x-1",
        paper="Somebody",
        caption="a comparison",
        data="cifar10",
        metrics={"SA": "clean", "RA": "pgd/10", "PGD": "pgd-250/4"},
        rows=(
            Row("one", {"slf": (80.5, 40.25, 1.0), OWN: (70.0, None, 2.0)}, ("x",)),
            Row("two", {"slf": (60.0, None, 3.0), "aff": (1.0, 2.0, 3.0)}, (), quoted="another"),
        ),
        note="Theirs trained longer.",
    )
    text = tables.render(table, {"one": Ours("paper", tables.values_of(FOUND, BALL))}, "digits")
    assert text == (
        "**x-1** Somebody: a comparison. Per cent; theirs on cifar10, ours on digits.\n"
        "\n"
        "|  | finetuning | settings | SA | ours | RA | ours | PGD | ours |\n"
        "|---|---|---|--:|--:|--:|--:|--:|--:|\n"
        "| one | slf | paper | 80.50 | 75.0 | 40.25 | 37.5 | 1.00 | 25.0 |\n"
        "| one | own head | paper | 70.00 | – | – | – | 2.00 | – |\n"
        "\n"
        "- SA: without attack.\n"
        "- RA: under PGD-20 with steps of a tenth of the radius.\n"
        "- PGD: under PGD-250 with steps of a quarter of the radius; ours under PGD-20 with steps "
        "of a quarter of the radius, unless --attacks pgd-250.\n"
        "- two, which the paper quotes from another: slf 60, –, 3; aff 1, 2, 3.\n"
        "- Theirs trained longer."
    )


@pytest.mark.parametrize("ball", [Linf(8 / 255), Linf(0.01)])
@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_every_attack_of_the_chain_finds_its_column(name, ball):
    found = [
        tables.measure_of(measured("slf", attack, 4), ball)
        for attack in attacks.ATTACKS[name](ball)
    ]
    assert found == [key for key in MEASURES if key.partition("/")[0] == name]
    of_three = measured("slf", attacks.AutoAttack(ball, classes=3), 4)
    assert tables.measure_of(of_three, ball) == "aa"


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def plans(monkeypatch):
    """Instead of running them."""
    kept = []

    def run(plan, *_):
        kept.append(plan)
        return {"found": FOUND, "settings": {"radius": 0.1}}

    monkeypatch.setattr(reproduce, "run", run)
    return kept


def test_a_table_runs_its_rows(plans, capsys):
    reproduce.main(["--table", "gsa-1", "--seed", "3"])
    rows = [row for row in tables.lookup("gsa-1").rows if row.run]
    assert [plan.method for plan in plans] == [row.run[0] for row in rows]
    assert {(plan.protocols, plan.seed) for plan in plans} == {(("slf", "alf"), 3)}
    alone = {"sam": False, "critic": False, "benign_weight": 0.0}
    by_label = dict(zip((row.label for row in rows), plans, strict=True))
    assert {k: by_label["AdvCL"].flags[k] for k in alone} == alone
    assert "| GSA-RSL | slf | released | 85.08 | 75.0 | 41.69 | 37.5 |" in capsys.readouterr().out


def test_the_papers_preset_takes_its_backbone_and_finetuning(plans):
    reproduce.main(["--table", "ascl-2", "--data", "cifar100:somewhere", "--preset", "paper"])
    assert {plan.backbone for plan in plans} == {"cifar:resnet20"}
    assert {plan.flags["radius"] for plan in plans} == {0.01}
    assert {plan.recipe.optimizer for plan in plans} == {"adam"}
    plans.clear()
    reproduce.main(["--table", "ascl-2", "--preset", "paper", "--epochs", "7"])
    assert {(plan.recipe.optimizer, plan.recipe.epochs) for plan in plans} == {("adam", 7)}
    plans.clear()
    reproduce.main(["--table", "ascl-2"])
    assert {plan.recipe for plan in plans} == {reproduce.PRESETS["quick"].recipe}
    plans.clear()
    reproduce.main(["--table", "ascl-2", "--data", "cifar100:somewhere", "--preset", "paper"])
    assert {plan.protocols for plan in plans} == {()}
    plans.clear()
    reproduce.main(["--table", "advcl-3", "--preset", "paper"])
    assert {plan.preset for plan in plans} == {"advcl"}  # for all rows, ACL's among them


def test_what_cannot_run_is_refused_before_any_work(plans):
    with pytest.raises(SystemExit, match="no table 'advcl-9'; there are"):
        reproduce.main(["--table", "advcl-9"])
    with pytest.raises(SystemExit, match=r"preset 'gsa' has protocols .*, got 'aff'"):
        reproduce.main(["--table", "advcl-1", "--probe", "gsa"])
    assert plans == []


def test_a_transfer_is_from_some_digits_to_others_or_as_in_the_paper(plans):
    reproduce.main(["--table", "gsa-3"])
    assert {(plan.data, plan.finetune_data) for plan in plans} == {("digits@0-4", "digits@5-9")}
    plans.clear()
    reproduce.main(["--table", "gsa-3", "--data", "cifar10:there"])
    assert {(plan.data, plan.finetune_data) for plan in plans} == {("cifar10:there", "stl10:there")}
    plans.clear()
    reproduce.main(["--table", "ascl23-3", "--data", "cifar10", "--finetune-data", "cifar100:b"])
    assert {(plan.data, plan.finetune_data) for plan in plans} == {("cifar10", "cifar100:b")}
