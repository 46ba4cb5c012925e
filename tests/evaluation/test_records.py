"""Records come back unchanged; comparisons agree with the closed forms and cover what they say."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advssl.evaluation import records
from advssl.evaluation.records import (
    Comparison,
    Fingerprint,
    Measurement,
    commit,
    compare,
    fingerprint,
    machine,
    worst_case,
)

stats = pytest.importorskip("scipy.stats")


def measured(flags, *, seed=0, name="PGD-20", dataset="0123456789abcdef", **other) -> Measurement:
    fields = {"settings": {}, "commit": None, "machine": {}, **other}
    correct = tuple(bool(f) for f in flags)
    return Measurement(name=name, correct=correct, seed=seed, dataset=dataset, **fields)


def table(both: int, only_a: int, only_b: int, neither: int) -> tuple[Measurement, Measurement]:
    """Two measurements from the four cells of McNemar's table."""
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return measured(a), measured(b)


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
    seed=st.integers(),
    settings=mappings,
    dataset=st.text(min_size=1),
    commit=st.none() | st.text(),
    machine=mappings,
)

FULL = measured(
    [1, 0, 1, 1],
    seed=3,
    settings={"eps": 8 / 255, "steps": 20, "norm": "Linf"},
    commit="abc-dirty",
    machine={"cpu": "x", "cores": 2, "gpu": None},
)


class TestThereAndBack:
    @given(measurement=measurements)
    def test_json_gives_an_equal_object(self, measurement):
        assert Measurement.from_json(measurement.to_json()) == measurement

    @given(measurement=measurements)
    @settings(max_examples=30)
    def test_twice_is_the_same_text(self, measurement):
        text = measurement.to_json()
        assert Measurement.from_json(text).to_json() == text

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
        assert (record["value"], record["n"], record["version"]) == (0.75, 4, 1)

    def test_pickle_copy_and_replace(self):
        assert dataclasses.replace(FULL, seed=4).seed == 4
        assert dataclasses.replace(FULL) == FULL


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
        made = dataclasses.replace(FULL, correct=flags)
        assert made.correct == (True, False)
        assert all(type(c) is bool for c in made.correct)

    @pytest.mark.parametrize(
        "flags", [(), (1, 0), (0.5,), torch.tensor([0.9]), torch.ones(2, 2) > 0, (True, None), True]
    )
    def test_other_flags_are_refused(self, flags):
        with pytest.raises(ValueError, match=r"one bool per example.*predictions == labels"):
            dataclasses.replace(FULL, correct=flags)

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
            ("seed", np.array([1])),
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
            dataclasses.replace(FULL, **{field: value})

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
            dataclasses.replace(FULL, settings=value)

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
        made = dataclasses.replace(FULL, settings=settings, machine=settings)
        plain = {"a": expected, "b": [{"c": expected}]}
        assert made.settings == made.machine == plain
        assert type(made.settings["a"]) is type(made.settings["b"][0]["c"]) is type(expected)
        assert Measurement.from_json(made.to_json()) == made
        if type(expected) is int:
            assert type(dataclasses.replace(FULL, seed=value).seed) is int

    def test_settings_are_a_copy(self):
        mine = {"sizes": [1, 2], "pair": (1, 2)}
        made = dataclasses.replace(FULL, settings=mine)
        mine["sizes"].append(3)
        assert made.settings == {"sizes": [1, 2], "pair": [1, 2]}
        assert mine["pair"] == (1, 2)

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
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
            ({"version": 2}, "version 2, this advssl reads 1"),
            ({"version": True}, "version True"),
            ({"version": None}, "version None"),
            ({"extra": 1}, r"\['extra'\] are unknown"),
            ({"correct": "10x1"}, "string of 0 and 1"),
            ({"correct": [True]}, "string of 0 and 1"),
            ({"correct": ""}, "at least one"),
            ({"correct": "1111"}, "its flags say 1.0 over 4"),
            ({"n": 5}, "over 5 examples"),
            ({"value": 0.7}, "it says value 0.7"),
            ({"seed": "3"}, "seed must be an int"),
            ({"settings": 3}, "settings must be a mapping"),
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
            dataclasses.replace(FULL, seed=seed).save(path)
        assert Measurement.load(path).seed == 2
        assert os.listdir(tmp_path) == ["record.json"]

    @pytest.mark.parametrize("fails", ["fsync", "replace"])
    def test_a_failure_leaves_the_old_record(self, fails, tmp_path, monkeypatch):
        path = tmp_path / "record.json"
        FULL.save(path)

        def full_disk(*_):
            raise OSError("no space left")

        monkeypatch.setattr(records.os, fails, full_disk)
        with pytest.raises(OSError, match="no space left"):
            dataclasses.replace(FULL, seed=9).save(path)
        assert Measurement.load(path) == FULL
        assert os.listdir(tmp_path) == ["record.json"]

    @pytest.mark.parametrize("killed_in", ["fsync", "replace"])
    def test_killed_between_writing_and_replacing(self, killed_in, tmp_path):
        """SIGKILL runs no finally: the old record is whole nevertheless, and saving goes on."""
        path = tmp_path / "record.json"
        FULL.save(path)
        code = (
            "import os, signal, sys, dataclasses\n"
            "from advssl.evaluation.records import Measurement\n"
            "m = Measurement.load(sys.argv[1])\n"
            f"os.{killed_in} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "dataclasses.replace(m, seed=9).save(sys.argv[1])\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
        assert done.returncode == -9
        assert Measurement.load(path) == FULL
        dataclasses.replace(FULL, seed=5).save(path)
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
        worst = worst_case([FULL, dataclasses.replace(FULL, commit="d", machine={"cores": 9})])
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
            worst_case([FULL, dataclasses.replace(FULL, **change)])

    def test_none_is_refused(self):
        with pytest.raises(ValueError, match="no measurement given"):
            worst_case([])


# --- what it was measured on, and where -----------------------------------------------------------


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


class TestFingerprint:
    def test_is_sixteen_hex_digits_and_stays(self):
        """A fingerprint written today is compared with one of next year."""
        images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
        digits = fingerprint(images, torch.tensor([0, 1]))
        assert re.fullmatch("[0-9a-f]{16}", digits)
        assert digits == "256dcfa737563c5e"

    def test_device_layout_and_type_do_not_matter(self, images, labels, device):
        images = (images * 255).round() / 255
        digits = fingerprint(images, labels)
        assert fingerprint(images.to(device), labels.to(device)) == digits
        assert fingerprint(images.to(memory_format=torch.channels_last), labels) == digits
        assert fingerprint(images.double(), labels) == digits
        assert fingerprint((images * 255).round().byte(), labels) == digits
        assert fingerprint(images.requires_grad_(), labels.int()) == digits

    @given(cuts=st.sets(st.integers(1, 299)))
    @settings(max_examples=20)
    def test_the_split_into_batches_does_not_matter(self, cuts):
        images = torch.rand(300, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(300)
        content = Fingerprint()
        ends = [0, *sorted(cuts), 300]
        for start, end in itertools.pairwise(ends):
            content.update(images[start:end], labels[start:end])
        assert str(content) == str(content) == fingerprint(images, labels)

    def test_anything_else_matters(self, images, labels):
        pixel, label = images.clone(), labels.clone()
        pixel[3, 1, 2, 2] = (pixel[3, 1, 2, 2] + 0.5) % 1
        label[-1] += 1
        order = torch.arange(8).flip(0)
        seen = {
            fingerprint(images, labels),
            fingerprint(pixel, labels),
            fingerprint(images, label),
            fingerprint(images[order], labels[order]),
            fingerprint(images[order], labels),
            fingerprint(images.transpose(2, 3), labels),
            fingerprint(images.reshape(8, 3, 4, 16), labels),
            fingerprint(images.reshape(8, 12, 4, 4), labels),
            fingerprint(images[:7], labels[:7]),
        }
        assert len(seen) == 9

    def test_changes_below_a_grey_level_do_not_matter(self, images, labels):
        images = (images * 255).round() / 255
        noisy = (images + 1e-4 * torch.randn_like(images)).clamp(0, 1)
        assert fingerprint(noisy, labels) == fingerprint(images, labels)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x * 2 - 1, r"must lie in \[0, 1\].*before they are normalised"),
            (lambda x: x * torch.nan, r"must lie in \[0, 1\]"),
            (lambda x: x[0], r"must be \(B, C, H, W\)"),
            (lambda x: x.long(), r"must be .*uint8, got torch.int64"),
        ],
    )
    def test_other_images_are_refused(self, change, message, images, labels):
        with pytest.raises(ValueError, match=message):
            fingerprint(change(images), labels)

    def test_other_labels_are_refused(self, images, labels):
        for wrong in (labels[:3], labels.float(), labels[:, None]):
            with pytest.raises(ValueError, match="labels must be 8 integers"):
                fingerprint(images, wrong)

    def test_a_refused_batch_leaves_no_part_behind(self, images, labels):
        content = Fingerprint()
        content.update(images, labels)
        bad = images.repeat(50, 1, 1, 1)
        bad[-1] = 2  # in a later chunk than the first
        for wrong in (bad, images.repeat(50, 1, 1, 2)):
            with pytest.raises(ValueError, match=r"\[0, 1\]|shape"):
                content.update(wrong, labels.repeat(50))
        assert str(content) == fingerprint(images, labels)

    def test_nothing_has_none(self):
        with pytest.raises(ValueError, match="no image to fingerprint"):
            str(Fingerprint())


def git(*arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


class TestCommit:
    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where a hook runs this
            monkeypatch.delenv(name, raising=False)

    def test_clean_dirty_and_untracked(self, tmp_path, monkeypatch):
        git("init", "-q")
        (tmp_path / "a").write_text("1")
        git("add", "a")
        git("commit", "-q", "-m", "first")
        git("tag", "-a", "v1", "-m", "v1")
        head = git("rev-parse", "HEAD")
        assert commit() == head
        (tmp_path / "output").write_text("untracked")
        assert commit() == head
        (tmp_path / "a").write_text("2")
        assert commit() == head + "-dirty"
        (tmp_path / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "sub")
        assert commit() == head + "-dirty"

    def test_none_outside_and_before_the_first(self):
        assert commit() is None
        git("init", "-q")
        assert commit() is None

    def test_none_without_git(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert commit() is None


class TestMachine:
    def test_says_what_a_number_may_depend_on(self):
        said = machine()
        assert {"cpu", "cores", "gpu", "python", "torch"} <= set(said)
        assert said["torch"] == torch.__version__
        assert said["cores"] == os.cpu_count()
        assert said["cpu"]
        assert dataclasses.replace(FULL, machine=said).machine == said  # plain JSON

    def test_says_nothing_of_host_user_or_path(self):
        text = json.dumps(machine())
        for private in (os.uname().nodename, os.environ.get("USER"), str(Path.home()), os.getcwd()):
            assert len(private or "") < 4 or private not in text

    def test_a_package_that_lacks_is_left_out(self, monkeypatch):
        def lacks(package):
            raise records.metadata.PackageNotFoundError(package)

        monkeypatch.setattr(records.metadata, "version", lacks)
        assert set(machine()) == {"cpu", "cores", "gpu", "python", "torch"}

    def test_without_cpuinfo(self, monkeypatch):
        monkeypatch.setattr(records.Path, "exists", lambda _: False)
        assert machine()["cpu"]


# --- do two differ --------------------------------------------------------------------------------


class TestStudent:
    @pytest.mark.parametrize(
        ("freedom", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)]
    )
    def test_the_tables_in_books(self, freedom, printed):
        assert records.student_quantile(0.975, freedom) == pytest.approx(printed, abs=6e-4)

    @given(
        probability=st.floats(0.5, 0.9999),
        freedom=st.floats(1, 9e3) | st.integers(1, 50).map(float),
    )
    @settings(max_examples=60)
    def test_agrees_with_scipy(self, probability, freedom):
        expected = stats.t.ppf(probability, freedom)
        assert records.student_quantile(probability, freedom) == pytest.approx(expected, 2e-6)

    def test_ends_in_the_normal_distribution(self):
        assert records.student_quantile(0.975, 1e9) == pytest.approx(1.959964, abs=1e-6)

    @pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0.5)])
    def test_other_arguments_are_refused(self, probability, freedom):
        with pytest.raises(ValueError, match=r"need 0\.5"):
            records.student_quantile(probability, freedom)


class TestOneSeed:
    @pytest.mark.parametrize(
        ("only_a", "only_b", "p"),
        [
            # By hand: twice the tail of Binomial(m, 1/2).
            (0, 5, 2 / 32),
            (0, 6, 2 / 64),
            (1, 5, 2 * (1 + 6) / 64),
            (2, 8, 2 * (1 + 10 + 45) / 1024),
            (3, 3, 1.0),
            (0, 0, 1.0),
        ],
    )
    def test_mcnemars_exact_p(self, only_a, only_b, p):
        found = compare(*table(10, only_a, only_b, 10))
        assert found.p_value == pytest.approx(p, rel=1e-12)

    @given(only_a=st.integers(0, 60), only_b=st.integers(0, 60))
    def test_mcnemar_agrees_with_scipy(self, only_a, only_b):
        p = stats.binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert compare(*table(1, only_a, only_b, 1)).p_value == pytest.approx(p, abs=1e-12)

    def test_bonett_and_prices_interval(self):
        """(n12, n21, n) = (1, 9, 28): 8/30 ± 1.96 √((12/30 − (8/30)²) / 30) by hand."""
        low, high = compare(*table(10, 1, 9, 8)).image_interval
        middle, half = 8 / 30, 1.959964 * math.sqrt((12 / 30 - (8 / 30) ** 2) / 30)
        assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-6)

    @pytest.mark.parametrize("right", [0, 10])
    def test_ten_images_all_alike(self, right):
        """At 0 % and 100 % a plain Wald or bootstrap interval would be empty: nothing to know."""
        found = compare(*table(right, 0, 0, 10 - right))
        low, high = found.image_interval
        assert low == -high
        assert 0.2 < high < 0.3
        assert found.p_value == 1.0
        assert not found.differs
        assert "level with" in str(found)

    @pytest.mark.parametrize(("gained", "differs"), [(4, False), (5, False), (6, True), (10, True)])
    def test_ten_images_from_nothing(self, gained, differs):
        """McNemar: five of five exchanges alike have p = 0.0625, six of six 0.031."""
        assert compare(*table(0, 0, gained, 10 - gained)).differs is differs

    def test_the_interval_stays_within_what_is_possible(self):
        assert compare(*table(0, 0, 1, 0)).image_interval[1] <= 1
        assert compare(*table(0, 1, 0, 0)).image_interval[0] >= -1

    @given(cells=st.tuples(*[st.integers(0, 30)] * 4).filter(any))
    def test_exchanging_a_and_b_turns_the_sign(self, cells):
        a, b = table(*cells)
        one, other = compare(a, b), compare(b, a)
        assert other.difference == -one.difference
        assert other.p_value == one.p_value
        assert other.differs == one.differs
        assert other.image_interval == pytest.approx([-e for e in reversed(one.image_interval)])
        low, high = one.image_interval
        assert low <= one.difference <= high
        assert one.difference == pytest.approx(b.value - a.value)

    @given(cells=st.tuples(*[st.integers(0, 30)] * 4).filter(any), order=st.randoms())
    @settings(max_examples=30)
    def test_the_order_of_images_does_not_matter(self, cells, order):
        a, b = table(*cells)
        rows = list(range(a.n))
        order.shuffle(rows)
        mixed = (measured([m.correct[i] for i in rows]) for m in (a, b))
        assert compare(*mixed) == compare(a, b)

    def test_pairs_see_what_unpaired_accuracies_cannot(self):
        """Two points in 1000: nothing where nearly all examples change, clear if b only gains."""
        assert not compare(*table(0, 500, 520, 0)).differs
        assert compare(*table(500, 0, 20, 480)).differs

    def test_there_is_no_seed_interval(self):
        a, b = table(5, 1, 9, 5)
        assert compare(a, b).seed_interval is None
        assert compare([a], [b]) == compare(a, b)
        several = [measured(b.correct, seed=s) for s in range(3)]
        assert compare(a, several).seed_interval is None


def replicas(values, *, n=100, first=0) -> list[Measurement]:
    """One measurement per value, with that many of n right."""
    rows = [[i < v for i in range(n)] for v in values]
    return [measured(row, seed=first + s) for s, row in enumerate(rows)]


class TestSeveralSeeds:
    def test_paired_t_interval(self):
        """Differences 4, 6, 8 %: mean 6, s = 2, so 6 ± 4.303 · 2 / √3."""
        found = compare(replicas([50, 52, 54]), replicas([54, 58, 62]))
        half = 4.302653 * 0.02 / math.sqrt(3)
        assert found.seed_interval == pytest.approx((0.06 - half, 0.06 + half), abs=1e-6)
        assert found.difference == pytest.approx(0.06)
        assert found.seeds == (3, 3)

    def test_paired_by_seed_and_not_by_place(self):
        a, b = replicas([50, 52, 54]), replicas([54, 58, 62])
        assert compare(a, b[::-1]) == compare(a, b)

    def test_welchs_interval_for_other_seeds(self):
        a, b = replicas([50, 52, 57]), replicas([54, 58, 61, 70], first=10)
        expected = stats.ttest_ind(
            [m.value for m in b], [m.value for m in a], equal_var=False
        ).confidence_interval()
        assert compare(a, b).seed_interval == pytest.approx(tuple(expected), abs=1e-7)

    @given(
        a=st.lists(st.integers(0, 100), min_size=2, max_size=6),
        b=st.lists(st.integers(0, 100), min_size=2, max_size=6),
    )
    @settings(max_examples=40)
    @pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # SciPy's, on equal values
    def test_agree_with_scipy(self, a, b):
        found = compare(replicas(a), replicas(b)).seed_interval
        if len(a) == len(b):
            d = np.subtract(b, a) / 100
            if d.std() < 1e-9:
                assert found == pytest.approx((d[0], d[0]))
                return
            expected = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
        elif np.std(a) + np.std(b) < 1e-9:
            assert found == pytest.approx(((b[0] - a[0]) / 100,) * 2)
            return
        else:
            test = stats.ttest_ind(np.divide(b, 100), np.divide(a, 100), equal_var=False)
            expected = test.confidence_interval()
        assert found == pytest.approx(tuple(expected), abs=1e-6)

    def test_seeds_that_scatter_take_a_difference_back(self):
        """Clear over images, since each training is far off; but the trainings disagree."""
        a, b = replicas([50, 50, 50], n=400), replicas([250, 150, 20], n=400)
        found = compare(a, b)
        assert found.p_value < 1e-9
        assert found.image_interval[0] > 0
        assert found.seed_interval[0] < 0
        assert not found.differs

    def test_images_that_are_few_take_a_difference_back(self):
        a, b = replicas([5, 5, 5], n=10), replicas([7, 7, 7], n=10)
        found = compare(a, b)
        assert found.seed_interval == pytest.approx((0.2, 0.2))
        assert not found.differs

    def test_both_exceeded(self):
        found = compare(replicas([50, 51, 52], n=400), replicas([90, 91, 92], n=400))
        assert found.differs
        assert "over 3 seeds +10.00 to +10.00" in str(found)

    def test_the_exchange_test_by_counting(self):
        """All 2ⁿ exchanges of five images, two seeds each."""
        a = [measured(f, seed=s) for s, f in enumerate(([1, 0, 0, 1, 0], [0, 0, 0, 1, 0]))]
        b = [measured(f, seed=s) for s, f in enumerate(([1, 1, 1, 0, 1], [1, 1, 0, 1, 1]))]
        d = np.sum([m.correct for m in b], 0) - np.sum([m.correct for m in a], 0, dtype=int)
        signs = 1 - 2 * ((np.arange(32)[:, None] >> np.arange(5)) & 1)
        expected = np.mean(np.abs(signs @ d) >= abs(d.sum()))
        assert compare(a, b).p_value == pytest.approx(expected)

    @given(data=st.data())
    @settings(max_examples=40)
    def test_the_exchange_test_for_any_numbers(self, data):
        steps = np.array(data.draw(st.lists(st.integers(-6, 6), min_size=1, max_size=9)))
        signs = 1 - 2 * ((np.arange(2 ** len(steps))[:, None] >> np.arange(len(steps))) & 1)
        expected = np.mean(np.abs(signs @ steps) >= abs(steps.sum()))
        assert records._exchange_test(steps) == pytest.approx(expected, abs=1e-12)

    def test_unequal_numbers_of_seeds(self):
        a, b = replicas([50, 52]), replicas([60, 62, 64], first=5)
        found = compare(a, b)
        assert found.difference == pytest.approx(0.11)
        assert found.seeds == (2, 3)
        assert "over 2 and 3 seeds" in str(found)

    def test_the_same_training_again_adds_nothing(self):
        """Image uncertainty is of the images: copies of one training do not narrow it."""
        a, b = table(100, 10, 30, 100)
        thrice = [[measured(m.correct, seed=s) for s in range(3)] for m in (a, b)]
        one, three = compare(a, b), compare(*thrice)
        assert three.image_interval == pytest.approx(one.image_interval)
        assert three.p_value == pytest.approx(one.p_value)


class TestCoverage:
    """95 % intervals cover about 95 %, fixed seed: 2000 draws have a standard error of 0.5 %."""

    @pytest.mark.parametrize("n", [10, 50, 1000])
    @pytest.mark.parametrize(
        "cells",  # both, only a, only b, neither
        [
            (0.4, 0.1, 0.1, 0.4),
            (0.3, 0.05, 0.25, 0.4),
            (0.0, 0.0, 0.02, 0.98),
            (0.9, 0.0, 0.1, 0.0),
        ],
    )
    def test_of_images(self, n, cells):
        rng = np.random.default_rng(0)
        truth, covered = cells[2] - cells[1], 0
        for counts in rng.multinomial(n, cells, size=2000):
            d = np.repeat([0.0, -1.0, 1.0], [n - counts[1] - counts[2], counts[1], counts[2]])
            low, high = records._adjusted_wald(d)
            covered += low <= truth <= high
        assert 0.93 <= covered / 2000 <= 1.0
        if n == 1000 and cells[0] in (0.4, 0.3):
            assert covered / 2000 <= 0.97  # not by being too wide

    @pytest.mark.parametrize(("n", "most"), [(10, 0.05), (200, 0.05)])
    def test_equal_models_differ_at_most_so_often(self, n, most):
        """The exact test errs on the safe side at every n."""
        rng = np.random.default_rng(1)
        draws = rng.multinomial(n, (0.35, 0.15, 0.15, 0.35), size=1500)
        wrong = sum(compare(*table(*counts)).differs for counts in draws)
        assert wrong / 1500 <= most + 0.01

    @pytest.mark.parametrize("size", [3, 5])
    def test_of_seeds(self, size):
        rng = np.random.default_rng(2)
        n, covered = 10_000, 0
        for draw in rng.normal(0.5, 0.01, size=(400, size)):
            shared = rng.normal(0, 0.05, size=size)  # what the seed does to both
            of_a = dict(enumerate(0.4 + shared))
            of_b = dict(enumerate(draw + shared))
            a, b = ([_Valued(s, v, n) for s, v in of.items()] for of in (of_a, of_b))
            low, high = records._seed_interval(a, b)
            covered += low <= 0.1 <= high
        assert 0.92 <= covered / 400 <= 0.98


@dataclasses.dataclass
class _Valued:
    """As much of a measurement as the seed interval reads, of any accuracy."""

    seed: int
    value: float
    n: int


class TestWords:
    def test_one_plain_sentence(self):
        a, b = table(400, 10, 40, 550)
        named = dataclasses.replace(a, name="SLF"), dataclasses.replace(b, name="ALF")
        found = compare(*named)
        assert re.fullmatch(
            r"ALF is 3\.00 points above SLF \(95 % intervals: over 1000 images \+1\.6\d to "
            r"\+4\.3\d, exact p = 2\.4e-05; no seed interval, as there is one seed\): "
            r"they differ\.",
            str(found),
        )
        assert str(compare(*reversed(named))).startswith("SLF is 3.00 points below ALF (95 %")

    def test_noise_is_called_noise(self):
        assert str(compare(*table(40, 3, 5, 40))).endswith(": no difference beyond noise.")

    def test_equal_names_are_a_and_b(self):
        assert str(compare(*table(4, 0, 1, 4))).startswith("b is 11.11 points above a (")

    def test_rounding_is_not_printed_as_a_p_value(self):
        assert "exact p < 1e-9" in str(compare(*table(0, 0, 500, 0)))

    def test_is_a_value(self):
        found = compare(*table(4, 0, 1, 4))
        assert found == compare(*table(4, 0, 1, 4))
        assert isinstance(found, Comparison)
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.n = 3


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"dataset": "other"}, "got dataset 0123456789abcdef, other; measure all on the same"),
            ({"correct": (True, False)}, "got n 2, 4; measure all on the same"),
        ],
    )
    def test_other_examples(self, change, message):
        with pytest.raises(ValueError, match=message):
            compare(FULL, dataclasses.replace(FULL, **change))

    def test_a_seed_twice(self):
        with pytest.raises(ValueError, match=r"b holds a seed twice, \[3, 3\]"):
            compare(FULL, [FULL, FULL])

    def test_other_names_within_one_side(self):
        other = dataclasses.replace(FULL, name="AA", seed=4)
        with pytest.raises(ValueError, match=r"a must be one measurement .* \['AA', 'PGD-20'\]"):
            compare([FULL, other], FULL)

    def test_nothing(self):
        with pytest.raises(ValueError, match="a holds no measurement"):
            compare([], FULL)
        with pytest.raises(ValueError, match="b holds no measurement"):
            compare(FULL, [])
