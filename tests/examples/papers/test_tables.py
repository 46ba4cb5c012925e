"""Tables hold what is printed, every row can run or says why not, and ours stand beside theirs."""

from __future__ import annotations

import pytest
import torch

import reproduce
from advssl import Linf
from advssl.evaluation import attacks, probes
from advssl.evaluation.records import Measurement
from advssl.integrations.timm import backbone
from harness import tables
from harness.method import Method
from harness.tables import MEASURES, OWN, Row, Table
from reproduce import METHODS

LOOKED_UP = [tables.lookup(name, data) for data in ("cifar10", "cifar100") for name in tables.ids()]
ALL = list({(table.id, table.data): table for table in LOOKED_UP}.values())
each_table = pytest.mark.parametrize("table", ALL, ids=lambda table: f"{table.id} {table.data}")


# --- the data -------------------------------------------------------------------------------------


def test_ids_and_labels_are_unique():
    assert sorted(tables.ids()) == [
        *(f"advcl-{n}" for n in range(1, 6)),
        *(f"ascl-{n}" for n in range(2, 8)),
        *(f"gsa-{n}" for n in range(1, 5)),
    ]
    for table in ALL:
        labels = [row.label for row in table.rows]
        assert len(set(labels)) == len(labels) > 1


@each_table
def test_a_row_has_a_number_or_none_for_each_metric(table):
    assert set(table.metrics.values()) <= set(MEASURES)
    for row in table.rows:
        assert row.published
        for values in row.published.values():
            assert len(values) == len(table.metrics)
            assert all(0 <= v <= 100 for v in values if v is not None)
            assert any(v is not None for v in values)


@each_table
def test_a_row_can_run_or_says_why_not(table):
    """What is wrong with a flag, a protocol or a backbone raises."""
    for row in table.rows:
        if row.unavailable:
            continue
        method = METHODS[row.method]
        method.settings_type.of(row.mode or "released", **row.flags)
        for name in row.protocols:
            probes.protocol(table.probe or method.probe, name)
        if OWN in row.published:
            assert method.classifier is not Method.classifier
        if row.backbone is not None:
            with torch.device("meta"):
                backbone(row.backbone)


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
    ],
)
def test_numbers_are_the_printed_ones(table_id, data, label, protocol, printed):
    table = tables.lookup(table_id, data.split()[0])
    (row,) = (row for row in table.rows if row.label == label)
    assert table.data == data
    assert row.published[protocol] == printed


def test_rows_of_an_ablation_differ_in_what_they_run():
    """The paper's rows are different experiments, so no two may run the same one here."""
    for table in ALL:
        runs = [
            (row.method, sorted(row.flags.items()), row.backbone)
            for row in table.rows
            if not row.unavailable
        ]
        assert all(runs.count(run) == 1 for run in runs), table.id


def test_flags_say_the_row():
    by_label = {row.label: row.flags for row in tables.lookup("advcl-4").rows}
    for label, flags in by_label.items():
        assert flags["views"].count(",") == label.count(",")
        assert flags["views"].count("d") == label.count("δ")
    selections = [row.flags["selection"] for row in tables.lookup("ascl-4").rows]
    assert selections == ["global", "hard", "soft", "leaked"]
    for row in tables.lookup("ascl-7").rows:
        assert row.label == f"λ_SCL = {row.flags['scl']:.0f}, λ_VAT = {row.flags['vat']:.0f}"


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

    for table_id in ("ascl-2", "ascl-4", "ascl-5", "ascl-7"):
        for row in tables.lookup(table_id).rows:
            assert (row.recipe.optimizer, row.recipe.epochs) == ("adam", 200)
            assert rates(row.recipe) == pytest.approx([1e-3] * 2 + [1e-4] * 2 + [1e-5] * 2 + [1e-6])
    for row in tables.lookup("ascl-6").rows:
        own = row.recipe or METHODS[row.method].recipe
        if row.method != "supcon":
            assert (own.optimizer, own.epochs, own.weight_decay) == ("sgd", 200, 5e-4)
            assert rates(own) == pytest.approx([0.1] * 3 + [0.01] * 2 + [0.001] * 2)
    assert not any(row.recipe for row in tables.lookup("ascl-3").rows)


def test_what_cannot_be_had_says_so():
    for row in tables.lookup("advcl-5").rows:
        assert bool(row.unavailable) == row.label.startswith("ImageNet")
    assert all(row.unavailable for row in tables.lookup("gsa-3").rows)  # another data set


# --- looking up -----------------------------------------------------------------------------------


def test_lookup():
    assert tables.lookup("advcl-1").data == "cifar10"
    assert tables.lookup("advcl-1", "cifar100").data == "cifar100"
    assert tables.lookup("advcl-1", "digits").data == "cifar10"  # what there is
    for row in tables.lookup("ascl-2", "cifar100").rows:
        assert row.flags["radius"] * row.flags["relative_step"] == 0.001
    assert not {"radius", "relative_step"} & tables.lookup("ascl-2").rows[0].flags.keys()
    with pytest.raises(ValueError, match=r"no table 'advcl-9'; there are gsa-1, .*, ascl-7"):
        tables.lookup("advcl-9")


def test_tables_of():
    assert [t.id for t in tables.tables_of("gsa_rsl")] == ["gsa-1", "gsa-4"]
    assert [t.id for t in tables.tables_of("gsa_acl")] == ["gsa-2"]
    assert tables.tables_of("simclr") == []


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
        metrics={"SA": "clean", "RA": "pgd/10", "mPGD": "mpgd"},
        rows=(
            Row(
                "one",
                {"slf": (80.5, 40.25, 1.0), OWN: (70.0, None, 2.0)},
                "x",
                {},
                "paper",
                None,
                None,
                None,
            ),
            Row("two", {"slf": (60.0, 30.0, 3.0)}, None, {}, None, None, None, "nobody knows how"),
        ),
        probe=None,
        note="Theirs trained longer.",
    )
    text = tables.render(table, {"one": FOUND}, "digits")
    assert text == (
        "**x-1** Somebody: a comparison. Per cent; theirs on cifar10, ours on digits.\n"
        "\n"
        "|  | finetuning | settings | SA | ours | RA | ours | mPGD | ours |\n"
        "|---|---|---|--:|--:|--:|--:|--:|--:|\n"
        "| one | slf | paper | 80.50 | 75.0 | 40.25 | 37.5 | 1.00 | – |\n"
        "| one | own head | paper | 70.00 | – | – | – | 2.00 | 12.5 |\n"
        "| two | slf | – | 60.00 | – | 30.00 | – | 3.00 | – |\n"
        "\n"
        "- SA: without attack.\n"
        "- RA: under PGD-20 with steps of a tenth of the radius.\n"
        "- mPGD: under multi-targeted PGD-20, with --attacks mpgd.\n"
        "- two: not reproducible here: nobody knows how.\n"
        "- Theirs trained longer."
    )


@pytest.mark.parametrize(
    ("attack", "measure"),
    [
        (attacks.Clean(), "clean"),
        (attacks.PGD(Linf(8 / 255), 20, 2 / 255), "pgd/4"),
        (attacks.PGD(Linf(0.01), 20, 0.001), "pgd/10"),
        (attacks.MultiTargetedPGD(Linf(8 / 255), 20, 2 / 255), "mpgd"),
        (attacks.AutoAttack(Linf(8 / 255)), "aa"),
        (attacks.AutoAttack(Linf(8 / 255), classes=3), "aa"),
    ],
)
def test_every_attack_of_the_chain_finds_its_column(attack, measure):
    table = Table(
        "x-1",
        "",
        "",
        "",
        {"it": measure},
        (Row("a", {"slf": (1.0,)}, "x", {}, *[None] * 4),),
        *"xy",
    )
    text = tables.render(table, {"a": [measured("slf", attack, 4)]}, "digits")
    assert "| a | slf | released | 1.0 | 50.0 |" in text


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def plans(monkeypatch):
    """Instead of running them."""
    kept = []

    def run(plan, *_):
        kept.append(plan)
        return {"found": FOUND}

    monkeypatch.setattr(reproduce, "run", run)
    return kept


def test_a_table_runs_its_rows(plans, capsys):
    reproduce.main(["--table", "gsa-1"])
    assert [plan.method for plan in plans] == ["gsa_rsl", "gsa_advcl", "gsa_advcl"]
    assert {plan.protocols for plan in plans} == {("slf", "alf")}
    alone = {"sam": False, "critic": False, "benign_weight": 0.0}
    assert {k: plans[1].flags[k] for k in alone} == alone
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


def test_a_table_of_what_cannot_be_had_prints_why(plans, capsys):
    reproduce.main(["--table", "gsa-3"])
    assert plans == []
    assert "not reproducible here: pretrained and finetuned on different data" in (
        capsys.readouterr().out
    )
