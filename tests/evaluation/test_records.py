"""Records come back unchanged, or are refused by the field that is wrong."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from ranks import PROCESSES

from advssl.evaluation.records import (
    Measurement,
    Model,
    Probe,
    Source,
    Threat,
    worst_case,
)


def measured(flags, *, seed=0, name="PGD-20", dataset="0123456789abcdef", **other) -> Measurement:
    fields = {"settings": {}, "commit": None, "machine": {}, **other}
    correct = tuple(bool(f) for f in flags)
    return Measurement(name=name, correct=correct, seed=seed, dataset=dataset, **fields)


# --- one measurement ------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=8,
)
mappings = st.dictionaries(st.text(), plain, max_size=4)
measurements = st.builds(
    Measurement,
    name=st.text(min_size=1),
    correct=st.lists(st.booleans(), min_size=1, max_size=40).map(tuple),
    seed=st.integers(-(2**63), 2**64 - 1),
    settings=mappings,
    dataset=st.text(min_size=1),
    commit=st.none() | st.text(),
    machine=mappings,
)

SOURCE = Source(
    spec="folder:cifar10",
    split="test, seed 0",
    image_size=32,
    fingerprint="0123456789abcdef",
    images=4,
    population=9,
    classes=2,
    train=20,
    validation=0,
    test=9,
    folders={"val": "held-out"},
)
FULL = measured(
    [1, 0, 1, 1],
    seed=3,
    settings={"eps": 8 / 255, "steps": 20, "norm": "Linf"},
    commit="abc-dirty",
    machine={"cpu": "x", "cores": 2, "gpu": None},
    threat=Threat("linf", 8 / 255),
    model=Model(
        backbone="cifar:resnet18",
        checkpoint="last.ckpt",
        format="lightly",
        branch="pgd",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        fingerprint="feed",
    ),
    probe=Probe(
        preset="advcl", protocol="slf", selected="epoch 3", seed=5, settings={"epochs": 25}
    ),
    attack_seed=7,
    versions={"torch": "2.15.0"},
)


class TestThereAndBack:
    @given(measurement=measurements)
    @settings(max_examples=30)
    def test_json_gives_an_equal_object(self, measurement):
        assert Measurement.from_json(measurement.to_json()) == measurement

    @given(measurement=measurements)
    @settings(max_examples=30)
    def test_twice_is_the_same_text(self, measurement):
        text = measurement.to_json()
        assert Measurement.from_json(text).to_json() == text

    def test_with_a_source(self):
        whole = replace(FULL, source=SOURCE)
        assert Measurement.from_json(whole.to_json()) == whole

    def test_a_file_gives_an_equal_object(self, tmp_path):
        FULL.save(tmp_path / "record.json")
        assert Measurement.load(tmp_path / "record.json") == FULL
        assert Measurement.load(str(tmp_path / "record.json")) == FULL

    def test_the_text_is_for_readers_and_small(self):
        text = measured([True] * 10_000).to_json()
        assert "1" * 10_000 in text
        assert len(text) < 10_400
        record = json.loads(FULL.to_json())
        assert record["correct"] == "1011"
        assert (record["value"], record["n"], record["version"]) == (0.75, 4, 2)

    def test_replace(self):
        assert replace(FULL, seed=4).seed == 4
        assert replace(FULL) == FULL


def save_and_be_killed(within: str, path: Path) -> None:
    """In the process that calls it."""
    record = Measurement.load(path)
    setattr(os, within, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    replace(record, seed=9).save(path)


def deep(levels: int):
    inside: object = 1
    for _ in range(levels):
        inside = [inside]
    return inside


class TestMeasurement:
    def test_value_and_n(self):
        assert (FULL.value, FULL.n) == (0.75, 4)
        assert measured([0]).value == 0.0
        assert measured([1]).value == 1.0

    @pytest.mark.parametrize("make", [list, np.array, torch.tensor])
    def test_flags_of_other_kinds_become_a_tuple_of_bool(self, make):
        flags = make([True, False])
        made = replace(FULL, correct=flags)
        assert made.correct == (True, False)
        assert all(type(c) is bool for c in made.correct)

    @pytest.mark.parametrize(
        "flags", [(), (1, 0), (0.5,), torch.tensor([0.9]), torch.ones(2, 2) > 0, (True, None), True]
    )
    def test_other_flags_are_refused(self, flags):
        with pytest.raises(ValueError, match=r"one bool per example.*predictions == labels"):
            replace(FULL, correct=flags)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", ""),
            ("name", 3),
            ("dataset", None),
            ("dataset", ""),
            ("seed", True),
            ("seed", 1.0),
            ("seed", np.float32(1)),
            ("seed", np.bool_(True)),
            ("seed", np.array([1, 2])),
            ("seed", torch.tensor([1, 2])),
            ("seed", "0"),
            ("correct", [[True], [True, False]]),
            ("commit", 7),
            ("settings", [1]),
            ("machine", None),
        ],
    )
    def test_other_types_are_refused_by_name(self, field, value):
        with pytest.raises(ValueError, match=f"^{field} must be .*got "):
            replace(FULL, **{field: value})

    @pytest.mark.parametrize(
        ("value", "where"),
        [
            ({"eps": math.nan}, r"settings\['eps'\]"),
            ({"a": [1, {"b": math.inf}]}, r"settings\['a'\]\[1\]\['b'\]"),
            ({"eps": torch.tensor([0.1, 0.2])}, r"settings\['eps'\].*Tensor.*\.tolist\(\)"),
            ({"eps": np.array([0.1])}, r"settings\['eps'\].*ndarray.*\.tolist\(\)"),
            ({"eps": np.float32("nan")}, r"settings\['eps'\].*nan"),
            ({"eps": torch.tensor(math.inf)}, r"settings\['eps'\].*inf"),
            ({"eps": np.longdouble(1)}, r"settings\['eps'\].*longdouble"),
            ({"eps": np.complex64(1j)}, r"settings\['eps'\].*complex"),
            ({"a": deep(100)}, r"settings.*nested more than 64 deep"),
            ({"worst_case_of": "all"}, r"settings\['worst_case_of'\] must be measurements"),
            (
                {"worst_case_of": [{"value": 1}]},
                r"settings\['worst_case_of'\] must be measurements",
            ),
            ({"path": Path("x")}, r"settings\['path'\].*str\(\)"),
            ({"a": {1: 2}}, r"settings\['a'\].*string keys"),
            ({"a": {1, 2}}, r"settings\['a'\].*set"),
        ],
    )
    def test_what_json_would_change_is_refused_with_its_place(self, value, where):
        with pytest.raises(ValueError, match=where):
            replace(FULL, settings=value)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            *((kind(3), 3) for kind in (np.int64, np.uint8, np.int32, torch.tensor, np.array)),
            *((kind(0.5), 0.5) for kind in (np.float16, np.float32, np.float64, torch.tensor)),
            (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
            (torch.tensor(0.5, requires_grad=True), 0.5),
            (np.bool_(True), True),
            (torch.tensor(False), False),
            (np.str_("linf"), "linf"),
        ],
    )
    def test_single_numbers_of_numpy_and_torch_become_plain(self, value, expected):
        settings = {"a": value, "b": [{"c": value}]}
        made = replace(FULL, settings=settings, machine=settings)
        plain = {"a": expected, "b": [{"c": expected}]}
        assert made.settings == made.machine == plain
        assert type(made.settings["a"]) is type(made.settings["b"][0]["c"]) is type(expected)
        assert Measurement.from_json(made.to_json()) == made
        if type(expected) is int:
            assert type(replace(FULL, seed=value).seed) is int

    def test_settings_are_a_copy(self):
        mine = {"sizes": [1, 2], "pair": (1, 2)}
        made = replace(FULL, settings=mine)
        mine["sizes"].append(3)
        assert made.settings == {"sizes": [1, 2], "pair": [1, 2]}
        assert mine["pair"] == (1, 2)

    def test_is_frozen(self):
        with pytest.raises(AttributeError):
            FULL.seed = 4


# What a field of a record may hold in place of what belongs there.
STRANGE = [None, True, -1, 0.5, 10**30, math.inf, math.nan, "", "x", "../../x", [], {}, [None]]
STRANGE += [[[]], {"x": None}, deep(80)]


class TestDamage:
    @pytest.mark.parametrize(
        "text", ["", "{", "nonsense", "[1]", "3", "null", '"x"', "[" * 100_000, '{"a": 1, "a": 2}']
    )
    def test_other_text_is_refused(self, text):
        with pytest.raises(ValueError, match=r"damaged measurement|not a measurement"):
            Measurement.from_json(text)

    @given(cut=st.integers(0, len(FULL.to_json()) - 1))
    @settings(max_examples=50)
    def test_every_truncation_is_refused(self, cut):
        with pytest.raises(ValueError, match="damaged measurement"):
            Measurement.from_json(FULL.to_json()[:cut])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kind": "something"}, "\"kind\" is 'something'"),
            ({"version": 3}, "version 3, this advssl reads 2 and 1"),
            ({"version": True}, "version True"),
            ({"version": None}, "version None"),
            ({"extra": 1}, r"\['extra'\] are unknown"),
            ({"correct": "10x1"}, "string of 0 and 1"),
            ({"correct": [True]}, "string of 0 and 1"),
            ({"correct": ""}, "at least one"),
            ({"correct": "1111"}, "its flags say 1.0 over 4"),
            ({"n": 5}, "over n 5 examples"),
            ({"value": 0.7}, "it says value 0.7"),
            ({"seed": "3"}, r"Expected `int`, got `str` - at `\$\.seed`"),
            ({"settings": 3}, r"Expected `object`, got `int` - at `\$\.settings`"),
        ],
    )
    def test_every_change_is_refused(self, change, message):
        record = {**json.loads(FULL.to_json()), **change}
        with pytest.raises(ValueError, match=message):
            Measurement.from_json(json.dumps(record))

    @pytest.mark.parametrize("key", sorted(json.loads(FULL.to_json())))
    def test_every_key_is_needed(self, key):
        record = json.loads(FULL.to_json())
        del record[key]
        with pytest.raises(ValueError, match=f"{key}"):
            Measurement.from_json(json.dumps(record))

    def test_not_a_number_is_refused(self):
        text = FULL.to_json().replace('"steps": 20', '"steps": NaN')
        with pytest.raises(ValueError, match=r"settings\['steps'\]"):
            Measurement.from_json(text)

    @pytest.mark.parametrize("key", sorted(json.loads(FULL.to_json())))
    @pytest.mark.parametrize("value", STRANGE, ids=repr)
    def test_a_field_of_another_kind_is_read_as_it_is_or_refused_by_name(
        self, key, value, tmp_path
    ):
        record = {**json.loads(FULL.to_json()), key: value}
        path = tmp_path / "record.json"
        path.write_text(json.dumps(record).replace("Infinity", "1e400"), encoding="utf-8")
        refusal = f"record.json {key}"
        try:
            assert json.loads(Measurement.load(path).to_json()) == record
        except ValueError as error:
            refusal = str(error)
        assert "record.json" in refusal
        assert key in refusal

    def test_a_byte_order_mark_is_no_damage(self, tmp_path):
        path = tmp_path / "record.json"
        path.write_text(FULL.to_json(), encoding="utf-8-sig")
        assert Measurement.load(path) == FULL

    def test_a_damaged_file_is_named(self, tmp_path):
        path = tmp_path / "record.json"
        for content in (b"{", b"\xff\xfe\x00"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"record\.json: "):
                Measurement.load(path)
        with pytest.raises(FileNotFoundError):
            Measurement.load(tmp_path / "none.json")


class TestSave:
    def test_replaces_and_leaves_nothing_beside(self, tmp_path):
        path = tmp_path / "record.json"
        for seed in (1, 2):
            replace(FULL, seed=seed).save(path)
        assert Measurement.load(path).seed == 2
        assert os.listdir(tmp_path) == ["record.json"]

    @pytest.mark.parametrize("fails", ["fsync", "replace"])
    def test_a_failure_leaves_the_old_record(self, fails, tmp_path, monkeypatch):
        path = tmp_path / "record.json"
        FULL.save(path)

        def full_disk(*_):
            raise OSError("no space left")

        monkeypatch.setattr(os, fails, full_disk)
        with pytest.raises(OSError, match="no space left"):
            replace(FULL, seed=9).save(path)
        assert Measurement.load(path) == FULL
        assert os.listdir(tmp_path) == ["record.json"]

    @pytest.mark.slow
    @pytest.mark.parametrize("killed_in", ["fsync", "replace"])
    def test_killed_between_writing_and_replacing(self, killed_in, tmp_path):
        """SIGKILL runs no finally: the old record is whole nevertheless, and saving goes on."""
        path = tmp_path / "record.json"
        FULL.save(path)
        process = PROCESSES.Process(target=save_and_be_killed, args=(killed_in, path))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert Measurement.load(path) == FULL
        replace(FULL, seed=5).save(path)
        assert Measurement.load(path).seed == 5

    @pytest.mark.skipif(os.name != "posix", reason="umask")
    def test_the_file_has_ordinary_rights(self, tmp_path):
        before = os.umask(0o022)
        try:
            FULL.save(tmp_path / "record.json")
        finally:
            os.umask(before)
        assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o644


class TestWorstCase:
    def test_correct_only_if_correct_in_all(self):
        a = measured([1, 1, 0, 0], name="PGD", settings={"steps": 20}, commit="c")
        b = measured([1, 0, 1, 0], name="APGD", commit="c")
        worst = worst_case([a, b])
        assert worst.correct == (True, False, False, False)
        assert worst.name == "worst case"
        assert worst.commit == "c"
        assert worst.settings["worst_case_of"][0] == {
            "name": "PGD",
            "value": 0.5,
            "settings": {"steps": 20},
        }
        assert Measurement.from_json(worst.to_json()) == worst

    @given(flags=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
    def test_is_below_each_and_idempotent(self, flags):
        worst = worst_case([measured(f) for f in flags], name="all")
        assert all(worst.value <= measured(f).value for f in flags)
        assert worst_case([worst, worst]).correct == worst.correct
        assert worst.name == "all"

    def test_a_commit_or_machine_that_differs_is_left_out(self):
        worst = worst_case([FULL, replace(FULL, commit="d", machine={"cores": 9})])
        assert worst.commit is None
        assert worst.machine == {}
        assert worst_case([FULL]).machine == FULL.machine

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dataset": "other"}, "got dataset 0123456789abcdef, other"),
            ({"correct": (True,)}, "got n 1, 4"),
            ({"seed": 8}, r"got seeds \[3, 8\]"),
        ],
    )
    def test_others_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            worst_case([FULL, replace(FULL, **change)])

    def test_none_is_refused(self):
        with pytest.raises(ValueError, match="no measurement given"):
            worst_case([])
