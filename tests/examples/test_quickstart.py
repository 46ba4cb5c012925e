"""The quickstart's record, table and figure say the same, and its split is a proper one."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from toys import queries_of_square

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
SHORT = ["--epochs", "1", "--pgd-steps", "1", "--aa-images", "10", "--workers", "1"]
ACCURACIES = ("clean", "pgd", "pgd_same_images", "autoattack")


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "quickstart", module)  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def out(quickstart, tmp_path_factory):
    @dataclass(frozen=True)
    class TwoRadii(quickstart.Evaluation):
        radii: tuple[float, ...] = (0.05, 0.1)

    @dataclass(frozen=True)
    class OneStep(quickstart.Training):
        steps: int = 1

    folder = tmp_path_factory.mktemp("quickstart") / "new"
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.random.fork_rng(),
        queries_of_square(50, steps=10),
    ):
        patch.setattr(quickstart, "Evaluation", TwoRadii)
        patch.setattr(quickstart, "Training", OneStep)
        threads = torch.get_num_threads()
        quickstart.main([*SHORT, "--out", str(folder)])
        torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def record(out):
    return json.loads((out / "record.json").read_text())


@pytest.mark.slow
def test_writes_three_files(out):
    assert {path.name for path in out.iterdir()} == {"record.json", "table.md", "quickstart.png"}
    height, width, _ = imread(out / "quickstart.png").shape
    assert height > width > 600  # a phone is held upright


@pytest.mark.slow
def test_record_says_what_it_takes_to_get_it_again(record, out):
    assert set(record) == {
        *("name", "methods", "seeds", "dataset", "schedule", "attack"),
        *("command", "commit", "dirty", "machine"),
    }
    assert record["seeds"] == [0]
    assert record["schedule"]["epochs"] == 1
    assert record["attack"]["radius"] == record["schedule"]["radius"] == 0.1
    assert record["dataset"]["train"] == 1297
    assert record["dataset"]["test"] == 500
    assert re.fullmatch("[0-9a-f]{64}", record["dataset"]["sha256"])
    assert record["command"] == f"python examples/quickstart.py {' '.join(SHORT)} --out new"
    assert {"cpu", "cores", "torch"} <= set(record["machine"])
    written = json.dumps(record)
    assert json.loads(written) == record
    assert str(out) not in written
    assert str(SCRIPT.parent) not in written


@pytest.mark.slow
def test_record_has_every_accuracy_of_every_method(record):
    assert [m["name"] for m in record["methods"]] == [
        "SimCLR",
        "adversarial view",
        "GSA-RSL stack",
    ]
    for method in record["methods"]:
        for kind, n in zip(ACCURACIES, (500, 500, 10, 10), strict=True):
            assert method[kind]["n"] == n
            assert method[kind]["mean"] == method[kind]["values"][0]
            assert method[kind]["std"] is None
            assert 0 <= method[kind]["mean"] <= 1
        assert method["autoattack"]["mean"] <= method["pgd_same_images"]["mean"]
        assert method["clean"]["mean"] > 0.5  # an epoch is enough to beat chance by far
        (curve,) = method["curve"]["values"]
        assert len(curve) == len(method["curve"]["radii"])
        assert all(0 <= value <= 1 for value in curve)
        assert curve[0] == method["clean"]["mean"]
        assert curve[method["curve"]["radii"].index(0.1)] == method["pgd"]["mean"]
        assert set(method["seconds"]) == {"pretraining", "linear probe", "PGD", "AutoAttack"}


class Brightness(torch.nn.Module):
    """Bright images are of class 1, dark ones of class 0."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        brightness = images.mean(dim=(1, 2, 3)) - 0.5
        others = torch.full((len(images), 8), -9.0)
        return torch.cat([-brightness[:, None], brightness[:, None], others], dim=1)


def test_every_point_of_a_curve_is_of_its_radius(quickstart):
    values = torch.tensor([0.485, 0.515, 0.465, 0.535, 0.42, 0.58, 0.37, 0.63, 0.1, 0.9])
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    data = quickstart.Digits(images, (values > 0.5).long(), images, (values > 0.5).long(), {})
    evaluation = quickstart.Evaluation(autoattack_images=0)
    reporter = quickstart.Reporter(lambda **_: None)
    reached = quickstart.measure(Brightness(), data, evaluation, 0, reporter)
    expected = [sum(abs(values - 0.5) > radius).item() / 10 for radius in evaluation.radii]
    assert reached["curve"] == pytest.approx(expected)
    assert reached["pgd"] == pytest.approx(0.4)
    assert reached["clean"] == 1.0


@pytest.mark.slow
def test_table_has_the_numbers_of_the_record(record, out):
    lines = (out / "table.md").read_text().splitlines()
    assert "PGD-1 | PGD-1, n = 10 |" in lines[0]
    assert "AA standard, n = 10" in lines[0]
    for line, method in zip(lines[2:5], record["methods"], strict=True):
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert name == method["name"]
        assert cells == [f"{100 * method[kind]['mean']:.1f}" for kind in ACCURACIES]


@pytest.mark.slow
def test_several_seeds_and_no_autoattack_are_said(quickstart, record):
    runs = [
        {"clean": c, "pgd": 0.5, "curve": [0.5] * 6, "seconds": {"pretraining": 1.0}}
        for c in (0.7, 0.8, 0.9)
    ]
    evaluation = quickstart.Evaluation(autoattack_images=0)
    data = quickstart.load()
    several = quickstart.make_record(
        {"SimCLR": runs}, data, quickstart.Training(), evaluation, "python", 1
    )
    (method,) = several["methods"]
    assert several["seeds"] == [0, 1, 2]
    assert method["clean"]["mean"] == pytest.approx(0.8)
    assert method["clean"]["std"] == pytest.approx(0.1)
    assert method["autoattack"] is None
    table = quickstart.make_table(several)
    assert "| SimCLR | 80.0 ± 10.0 | 50.0 ± 0.0 | skipped |" in table
    assert "3 seeds" in table
    assert several["dataset"] == record["dataset"]  # the same split every time


@pytest.mark.parametrize("validate", [False, True])
def test_split_is_disjoint_and_stratified(quickstart, validate):
    data = quickstart.load(validate=validate)
    assert data.train.shape == ((1037 if validate else 1297), 1, 16, 16)
    assert len(data.test) == (260 if validate else 500)
    for images in (data.train, data.test):
        assert images.min() >= 0
        assert images.max() <= 1
    train, test = ({image.numpy().tobytes() for image in part} for part in (data.train, data.test))
    assert not train & test
    shares = [labels.bincount() / len(labels) for labels in (data.train_labels, data.test_labels)]
    torch.testing.assert_close(*shares, atol=0.005, rtol=0)


def test_validation_images_are_not_test_images(quickstart):
    held_out, test = (
        {image.numpy().tobytes() for image in quickstart.load(validate=v).test}
        for v in (True, False)
    )
    assert not held_out & test


def test_autoattack_gets_as_many_images_of_each_class(quickstart):
    labels = quickstart.load().test_labels
    picked = quickstart.class_balanced(labels, 40)
    assert len(picked.unique()) == 40
    assert labels[picked].bincount().tolist() == [4] * 10
