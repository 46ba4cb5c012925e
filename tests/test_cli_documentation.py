"""The pages about the command say what it does, and their commands work on files of each layout."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import torch
from evaluation import layouts
from torch import nn

from advssl import Linf, options
from advssl.evaluation import corruptions, diagnostics, evaluate, loading, probes
from advssl.evaluation.attacks import ATTACKS, attacks_of
from advssl.evaluation.beyond import MEASURES
from advssl.evaluation.checkpoints import FORMATS
from advssl.integrations import timm as backbones
from advssl.options import Compared, Options, parse
from advssl.pixels import Pixels

pytest.importorskip("timm")

DOCS = Path(__file__).parents[1] / "docs"
EVALUATE = (DOCS / "evaluate.md").read_text(encoding="utf-8")
PUBLISHED = (DOCS / "published_checkpoints.md").read_text(encoding="utf-8")
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")

LAYOUTS = {
    "epoch_1000.ckpt": layouts.advcl,
    "acl.pt": layouts.acl,
    "air.pt": layouts.acl,
    "model_encoder_k.pt": layouts.dynacl,
    "gsa.pt": layouts.gsa,
    "encoder.pt": layouts.plain,
}


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("advssl ")]


def table(page: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is ``first``, by their code or text there."""
    lines = page[page.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0].strip("| `"): row[1:] for row in rows}


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture
def narrow():
    """The names of the papers' networks, an eighth as wide: they save in no time."""

    def backbone(spec: str) -> nn.Module:
        return backbones.backbone(f"{spec}:8" if spec.count(":") == 1 else spec)

    return backbone


@pytest.mark.slow
@pytest.mark.parametrize("line", commands(PUBLISHED))
def test_the_command_for_a_published_file_loads_its_layout(line, narrow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked_for = parse(shlex.split(line)[1:])
    make = LAYOUTS[asked_for.checkpoint]
    net = narrow(asked_for.backbone)
    content, _, _ = make(net, net.state_dict())
    if "state_dict" in content or "model" in content:
        tensors = content.get("state_dict", content.get("model"))
        for name in [n for n in tensors if n.endswith(("normalize.mean", "normalize.std"))]:
            tensors[name] = torch.rand(3) + 0.1  # of three channels
    torch.save(content, asked_for.checkpoint)

    how = {k: getattr(asked_for, k) for k in ("format", "prefix", "allow_partial")}
    read = loading.encoders(
        asked_for.backbone,
        narrow(asked_for.backbone),
        asked_for.checkpoint,
        asked_for.bn_branch,
        Pixels(asked_for.mean, asked_for.std),
        say=str,
        **how,
    )
    asked = asked_for.bn_branch or [None]
    assert list(read.modules) == asked
    assert read.model.format in (asked_for.format, "plain", "acl")
    for i, encoder in enumerate(read.modules.values()):
        sets = {"normal": 0, "clean": 0, "pgd": 1, "adversarial": 1}
        expected = net.state_dict()
        if asked[i] is not None:
            expected = layouts.of_set(net, sets[asked[i]])
        assert layouts.same(encoder, expected)
    has_input_layer = asked_for.format in ("acl", "dynacl", "gsa")
    assert (read.pixels.mean is not None) == has_input_layer

    for name in asked_for.protocol:
        probes.protocol(asked_for.preset or "advcl", name)
    assert len(attacks_of(asked_for.attacks, Linf(asked_for.eps))) > 1
    assert asked_for.num_images == 0


def test_every_published_format_has_its_command():
    found = {parse(shlex.split(c)[1:]).format for c in commands(PUBLISHED)}
    assert found == {"auto", *(f.name for f in FORMATS if f.branches)}


def test_published_rows_name_sections_of_the_report():
    for line in PUBLISHED.splitlines():
        if re.match(r"\| (CIFAR|STL|DynACL|ACL|linear|full)", line) and "as printed" not in line:
            told = codes(line)
            ours = {name for preset in probes.PRESETS.values() for name in preset}
            assert (set(told) - {"--data cifar100"} <= ours) or "likewise" in line, line


@pytest.mark.parametrize("line", [*commands(EVALUATE), *commands(README)])
def test_commands_of_the_pages_are_commands(line):
    assert isinstance(parse(shlex.split(line)[1:]), Options | Compared)


def test_the_formats_are_those_there_are():
    told = table(EVALUATE, "`--format`")
    assert list(told) == [f.name for f in FORMATS]
    for form in FORMATS:
        places, prefixes, whose = told[form.name]
        assert [p or "itself" for p in form.places] == [
            "itself" if part.startswith("the file") else codes(part)[0]
            for part in places.split(", ")
        ]
        assert [p or "none" for p in form.prefixes] == [
            "none" if part == "none" else codes(part)[0] for part in prefixes.split(", ")
        ]
        assert ("branches" in whose) == bool(form.branches)


def test_the_checks_are_those_there_are():
    told = {name: row[0].removesuffix(" |") for name, row in table(EVALUATE, "check").items()}
    assert told == {name: doubt.fails for name, doubt in diagnostics.DOUBTS.items()}


def test_the_presets_are_those_there_are():
    told = table(EVALUATE, "preset")
    assert {name: codes(row[0]) for name, row in told.items()} == {
        name: list(family) for name, family in probes.PRESETS.items()
    }
    assert list(table(EVALUATE, "protocol")) == list(probes.PRESETS["plain"])


def test_the_attacks_are_those_there_are():
    assert list(table(EVALUATE, "name")) == list(ATTACKS)


def test_the_measures_are_those_there_are():
    assert list(table(EVALUATE, "measure")) == list(MEASURES)


def test_every_option_on_the_page_exists_and_none_is_forgotten():
    told = set(re.findall(r"`(--[a-z-]+)", EVALUATE))
    with_arguments = options._parser()._subparsers._group_actions[0].choices["evaluate"]._actions
    real = {option for action in with_arguments for option in action.option_strings}
    assert told <= real
    # Named where the folder is, and where reports are written to.
    assert real - told == {"-h", "--help", "--train", "--val", "--test", "--out"}


@pytest.mark.parametrize("page", ["evaluate.md", "published_checkpoints.md"])
def test_links_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            titles = [re.sub(r"[^a-z ]", "", t.lower()) for t in re.findall(r"\n#+ (.*)", text)]
            assert target[1:] in [title.replace(" ", "-") for title in titles]
        elif not target.startswith("http"):
            assert (DOCS / target).exists(), target


@pytest.mark.slow
def test_the_pages_python_runs(tmp_path, monkeypatch, capsys):
    """On a smaller network and fewer, smaller images."""
    block, *_ = re.findall(r"```python\n(.*?)```", EVALUATE, flags=re.DOTALL)
    for old, new in {
        'open_data("cifar10")': 'open_data("digits", image_size=8), doubts=False, curves=False',
        "images=200": "images=20",
        '["pgd", "mpgd"]': '["pgd"]',
    }.items():
        assert old in block
        block = block.replace(old, new)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbones, "backbone", lambda _: encoder)
    torch.save(encoder.state_dict(), "encoder.pt")
    exec(block, {})
    printed = capsys.readouterr().out
    assert "2 tensors loaded" in printed
    assert "slf (standardised): clean " in printed
    assert Path("report/report.html").exists()


@pytest.mark.slow
def test_the_pages_measures_of_an_encoder_run(capsys, monkeypatch):
    _, *blocks = re.findall(r"```python\n(.*?)```", EVALUATE, flags=re.DOTALL)
    assert len(blocks) == 4
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images, labels = torch.rand(8, 3, 2, 2), torch.arange(8) % 2
    few = {name: corruptions.CORRUPTIONS[name] for name in ("fog", "contrast")}
    monkeypatch.setattr(corruptions, "CORRUPTIONS", few)
    known = {
        "encoder": encoder,
        "classifier": probes.Classifier(encoder, 4, 2).eval(),
        "other": probes.Classifier(encoder, 4, 2).eval(),
        "images": images,
        "labels": labels,
        "batches": [(images, labels)],
    }
    for block in blocks:
        exec(block, known)
    assert known["found"].relative > 0
    assert set(known["plain"].accuracy) == {"fog", "contrast"}
    assert list(known["figures"]) == ["accuracy-under-corruptions"]
    assert known["around"].rise > 0
    assert known["maps"].maps.shape == (2, 3, 3, 2, 2)
    assert "second bound" in capsys.readouterr().out


@pytest.mark.heavy
def test_the_page_of_pictures_draws_what_it_says(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "pictures.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    images, labels = torch.rand(8, 3, 2, 2), torch.arange(8) % 2
    known = {"images": images, "labels": labels, "batches": [(images, labels)]}
    known |= {name: probes.Classifier(encoder, 4, 2).eval() for name in ("plain", "robust")}
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, known)
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == {"t-sne", "inversion", "surfaces", "fisher", "strength", "training"}


def test_the_functions_arguments_are_those_there_are():
    told = {name for row in table(EVALUATE, "the command").values() for name in codes(row[0])}
    named = {re.match(r"[a-z_]*", name)[0] for name in told}
    real = {*inspect.signature(evaluate).parameters}
    assert named - {"", "open_data"} <= real
    assert real - named == {"beside", "folder", "progress", "model", "command", "say"}
