"""Records of version 0.1 are read, and say as fields what their command said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advssl.evaluation import earlier, records, report
from advssl.evaluation.protocols import preset_name
from advssl.evaluation.records import Measurement, Model, Probe, Source, Threat
from advssl.evaluation.report import read

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
LINF = {"norm": "Linf", "radius": 8 / 255}
COMMAND = (
    "advssl evaluate --backbone cifar:resnet18 --data folder:cifar --image-size 32 --unknown x "
    "--preset=plain --val 'held out' --eps 8/255"
)


def measured(name: str, flags: str, settings: dict, **fields) -> dict:
    return {
        "kind": "advssl measurement",
        "version": 1,
        "value": flags.count("1") / len(flags),
        "n": len(flags),
        "name": name,
        "correct": flags,
        "seed": 3,
        "settings": settings,
        "dataset": "0123456789abcdef",
        "commit": None,
        "machine": {"cores": 2},
        **fields,
    }


PGD = measured("PGD-20 l_inf 8/255", "1000", {"attack": "PGD", "ball": LINF, "seed": 7})


def document(**fields) -> dict:
    clean = measured("clean", "1101", {"attack": "clean", "seed": 7})
    section = {
        "protocol": "slf",
        "branch": None,
        "selected": None,
        "encoder": None,
        "classifier": "0123456789abcdef",
        "measurements": [clean, PGD],
        "checks": [{"name": "a", "verdict": "fail", "evidence": "seen", "numbers": {}}],
        "by_radius": [[0.0, 0.75]],
        "by_steps": [[1, 0.5]],
    }
    return {
        "version": 2,
        "title": "Robustness",
        "model": {
            "backbone": "cifar:resnet18",
            "checkpoint": "last.ckpt",
            "format": "advssl",
            "mean": [0.5],
            "std": [0.25],
        },
        "data": {
            "name": "cifar",
            "classes": 2,
            "train": 20,
            "validation": 4,
            "test": 9,
            "measured on": 4,
        },
        "command": COMMAND,
        "sections": [section],
        "tables": [],
        **fields,
    }


@pytest.fixture
def opened(tmp_path):
    def opened(**fields):
        path = tmp_path / "record.json"
        path.write_text(json.dumps(document(**fields)), encoding="utf-8")
        return read(path)

    return opened


class TestMeasurement:
    def test_the_threat_model_is_that_of_the_ball(self):
        found = Measurement.from_plain(PGD)
        assert found.threat == Threat("linf", 8 / 255)
        assert (found.attack_seed, found.seed, found.value) == (7, 3, 0.25)
        assert Measurement.from_json(found.to_json()) == found

    @pytest.mark.parametrize(
        ("parts", "threat"),
        [
            ([LINF, LINF], Threat("linf", 8 / 255)),
            ([LINF, {"norm": "L2", "radius": 0.5}], None),
            ([LINF, None], None),
        ],
    )
    def test_of_a_worst_case_it_is_what_all_share(self, parts, threat):
        of = [{"name": "a", "value": 1.0, "settings": {"ball": ball}} for ball in parts]
        assert Measurement.from_plain(measured("w", "1", {"worst_case_of": of})).threat == threat

    @pytest.mark.parametrize("settings", [{}, {"ball": "x"}, {"ball": {"norm": 3}}, {"seed": True}])
    def test_what_is_not_said_is_not_known(self, settings):
        found = Measurement.from_plain(measured("a", "1", settings))
        assert found.threat is found.attack_seed is None

    def test_damage_is_damage(self):
        with pytest.raises(ValueError, match="its flags say"):
            Measurement.from_plain(PGD | {"value": 0.5})
        with pytest.raises(ValueError, match=r"\['threat'\] are unknown"):
            Measurement.from_plain(PGD | {"threat": None})

    def test_all_kept_results_are_read(self):
        for path in RESULTS.glob("p*_*.json"):
            runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
            found = [Measurement.from_plain(m) for run in runs for m in run["measurements"]]
            assert found
            assert all((m.threat is None) == m.name.endswith("clean") for m in found)


class TestReport:
    def test_says_as_fields_what_it_held_and_what_its_command_said(self, opened):
        found = opened()
        assert found.model == Model(
            backbone="cifar:resnet18",
            checkpoint="last.ckpt",
            format="advssl",
            mean=(0.5,),
            std=(0.25,),
        )
        assert found.data == Source(
            spec="folder:cifar",
            image_size=32,
            fingerprint="0123456789abcdef",
            images=4,
            population=9,
            classes=2,
            train=20,
            validation=4,
            test=9,
            folders={"val": "held out"},
        )
        (section,) = found.sections
        assert section.probe == Probe(preset="standardised", protocol="slf", seed=3)
        assert section.threat == Threat("linf", 8 / 255)
        assert section.checks[0].verdict == "fail"

    @pytest.mark.parametrize("command", ["", "reproduce.py --preset advcl", "advssl evaluate 'x"])
    def test_another_command_says_nothing(self, opened, command):
        found = opened(command=command)
        assert found.sections[0].probe is None
        assert found.data.spec == "cifar"
        assert found.data.image_size is None

    def test_mappings_of_another_kind_stay_as_they_were(self, opened):
        found = opened(model={"a": {"backbone": "x"}}, data={"name": "digits"})
        assert (found.model, found.data) == ({"a": {"backbone": "x"}}, {"name": "digits"})

    @pytest.mark.parametrize("name", [n for n in document() if n != "version"])
    @pytest.mark.parametrize("value", [None, 3, "x", [], [None], [{}], {"a": 1}], ids=repr)
    def test_damage_is_refused_by_the_file_and_the_field(self, opened, name, value):
        said = f"record.json {name}"
        try:
            opened(**{name: value})
        except ValueError as error:
            said = str(error)
        assert "record.json" in said
        assert name.rstrip("s") in said

    def test_presets_have_the_names_of_today(self, opened):
        for preset in ("plain", "advcl", "gsa"):
            found = opened(command=f"advssl evaluate --preset {preset}").sections[0].probe
            assert found.preset == preset_name(preset)

    def test_versions_follow_each_other(self):
        assert earlier.MEASUREMENT + 1 == records.VERSION
        assert earlier.REPORT + 1 == report.VERSION
