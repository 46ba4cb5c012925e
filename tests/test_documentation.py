"""Every example in a docstring and every Python block in the README runs."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import re
import shlex
import statistics
from functools import partial
from pathlib import Path

import pytest
import torch
from test_architecture import ORDER
from torch import nn
from toys import brief_evaluation

import advssl
import tables
from advssl import cli
from advssl.evaluation.records import Measurement
from shown import claimed, reading

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]


def names() -> dict:
    return {"torch": torch, "nn": nn, **{name: getattr(advssl, name) for name in advssl.__all__}}


@pytest.mark.parametrize("module", ORDER)
def test_docstrings(module):
    module = importlib.import_module(f"advssl.{module}")
    ran = doctest.testmod(module, extraglobs=names(), optionflags=doctest.ELLIPSIS)
    assert ran.failed == 0


def test_every_section_of_troubleshooting_is_named_by_an_error_and_every_name_is_a_section():
    sections = re.split(r"^## ", page("troubleshooting.md"), flags=re.MULTILINE)[1:]
    for section in sections:
        for part in ("**You see**", "**Why.**", "**Do.**"):
            assert part in section, (section.splitlines()[0], part)
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "advssl").rglob("*.py"))
    assert {s.splitlines()[0] for s in sections} == {*re.findall(r'\bsee\("([^"]+)"\)', source)}


@pytest.mark.parametrize("name", ["AdversarialViewGenerator", "SAMWrapper", "HighFreqView"])
def test_there_are_examples_to_run(name):
    assert ">>>" in getattr(advssl, name).__doc__


def test_the_readmes_lines_and_the_stack_on_top_of_them_run_in_order():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16))
    views = torch.rand(2, 8, 3, 8, 8)
    before = model[1].weight.detach().clone()
    scope = {
        "torch": torch,
        "model": model,
        "loader": [views],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    (lines,), (stack,) = code("python"), code("python", page("components/index.md"))
    exec(lines, scope)
    assert not torch.equal(model[1].weight, before)
    t1, t2 = views
    scope |= {"t1": t1, "t2": t2, "z1": model(t1), "z2": model(t2), "z_hard": model(scope["hard"])}
    model.zero_grad()
    exec(stack, scope)
    assert model[1].weight.grad.abs().max() > 0


def test_ten_lines_keep_an_encoder_s_embeddings_under_attack():
    (ten,) = code("python", page("robustify.md"))
    assert sum(map(bool, ten.splitlines())) == 10
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    scope = {**names(), "encoder": encoder, "unlabelled": torch.rand(3, 8, 3, 8, 8)}
    exec(ten, scope)
    moved = {n for n, value in encoder.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n, _ in encoder.named_parameters()}  # and no BatchNorm statistics
    assert all(torch.equal(p, before[n]) for n, p in scope["original"].named_parameters())


def test_one_step_attacks_run_as_the_page_on_costs_says():
    loop, carried = code("python", page("costs.md"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    before = model[1].weight.detach().clone()
    images = torch.rand(4, 3, 4, 4)
    scope = {
        **names(),
        "model": model,
        "epochs": 4,
        "images": images,
        "loader": [(images, images.flip(3))],
        "nt_xent": advssl.MultiViewNTXentLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    exec(loop, scope)
    assert not torch.equal(model[1].weight, before)
    assert scope["adversary"].radius == 8 / 255
    exec(carried, scope)
    assert (scope["kept"].abs().amax((1, 2, 3)) > 0).all()


def test_the_hosts_loops_run_and_only_the_student_learns_by_gradient():
    blocks = code("python", page("hosts.md"))
    assert len(blocks) == 3
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8))
    scope = {
        **names(),
        "student": encoder,
        "encoder": encoder,
        "predictor": nn.Linear(8, 8),
        "z_dim": 8,
        "epochs": 1,
        "loader": [torch.rand(4, 3, 8, 8)],
        "augment": lambda images: images.flip(3),
    }
    for block in blocks:
        before = encoder[2].weight.detach().clone()
        exec(block, scope)
        assert not torch.equal(encoder[2].weight, before)
    assert scope["queue"].shape == (256, 8)
    assert scope["teacher"][2].weight.grad is None


def test_the_page_on_many_gpus_trains_in_one_process(monkeypatch):
    (script,) = code("python", (ROOT / "docs" / "many_gpus.md").read_text(encoding="utf-8"))
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
    before = encoder[1].weight.detach().clone()
    exec(script, {"encoder": encoder, "loader": [torch.rand(2, 4, 3, 4, 4)]})
    assert not torch.equal(encoder[1].weight, before)


def test_a_link_of_the_built_pages_that_leads_nowhere_is_found(tmp_path):
    check = {"__name__": "check_links"}
    exec((ROOT / "docs" / "check_links.py").read_text(encoding="utf-8"), check)
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there"></a><a href="#here">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html"></a><a href="https://x.y/z">')
    assert check["dead"](tmp_path) == []
    (tmp_path / "b.html").write_text('<a href="c.html"></a>')
    assert check["dead"](tmp_path) == ["a.html: b.html#there", "b.html: c.html"]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def code(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(many workers|LeafSpec|logging interval|TensorBoard)")
def test_ten_lines_make_a_robust_simclr(monkeypatch, tmp_path):
    ten = page("start.md").split("## Ten lines")[1].split("\n## ")[0]
    (install, evaluate), (script,) = code("console", ten), code("python", ten)
    typed = [line for line in (script + evaluate).splitlines() if line]
    assert install.startswith("pip install")
    assert len(typed) + 1 <= 10

    monkeypatch.syspath_prepend(str(ROOT))  # as python does with the folder it is started in
    monkeypatch.chdir(tmp_path)
    lightning = importlib.import_module("pytorch_lightning")
    quick = partial(lightning.Trainer, limit_train_batches=2, enable_progress_bar=False)
    monkeypatch.setattr(lightning, "Trainer", lambda **asked: quick(**{**asked, "max_epochs": 1}))
    example = importlib.import_module("examples.lightning_callback")
    monkeypatch.setattr(example, "digits", partial(example.digits, batch_size=8))
    timm = importlib.import_module("timm")
    narrow = partial(timm.create_model, channels=(16, 32, 64, 512))
    for module in (timm, example):
        monkeypatch.setattr(module, "create_model", narrow)
    brief_evaluation(monkeypatch)
    exec(script, {})
    cli.main([*shlex.split(evaluate)[1:], "--num-images", "2"])
    assert "PGD-20" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_the_readme_marks_five_lines():
    (lines,) = code("python")
    assert sum("  # +" in line for line in lines.splitlines()) == 5


def test_the_readme_is_short_and_is_cited_as_the_citation_file_says():
    assert len(README.split()) < 900
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (bibtex,) = code("bibtex")
    for key in ("title", "version"):
        (told,) = re.findall(rf"(?m)^{key}: \"?(.*?)\"?$", citation)
        assert f"{key} = {{{told}}}" in bibtex
    assert f"year = {{{re.findall(r'date-released: ([0-9]{4})', citation)[0]}}}" in bibtex


def links() -> list[tuple[Path, str]]:
    """Every link of a page into the repository."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [(page, link) for link in re.findall(r"\]\(((?!http|#)[^)#]+)[^)]*\)", text)]
    return found


@pytest.mark.parametrize(("where", "link"), links(), ids=str)
def test_links_lead_somewhere(where, link):
    assert (where.parent / link).exists()


@pytest.fixture(scope="module")
def drawings():
    spec = importlib.util.spec_from_file_location("drawings", ROOT / "docs" / "figures.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    return drawings


def test_figures_of_photographs_stand_beside_their_record(drawings):
    """All are shown, in words too, on a page that names the record; together they are small."""
    drawn = {name for name in drawings.FIGURES if name.startswith("photographs_")}
    shown = set()
    for where in PAGES:
        text = where.read_text(encoding="utf-8")
        here = re.findall(r"!\[([^\]]+)\]\(figures/(photographs_\w+)\.svg\)", text)
        assert not here or "results/photographs.json" in text, where
        assert all(len(words) > 40 for words, _ in here), where
        shown |= {name for _, name in here}
    assert shown == drawn
    files = [drawings.FOLDER / f"{name}.svg" for name in sorted(drawn)]
    assert sum(file.stat().st_size for file in files) < 600_000
    assert {str(s.encoder) for s in drawings.compared().sections} == {"plain", "robust"}
    half_hour = json.loads((drawings.RESULTS / "speedrun_half_hour.json").read_text("utf-8"))
    published = half_hour["runs"][0]["measurements"][0]["model"]["fingerprint"]
    assert drawings.compared().model["robust"]["fingerprint"] == published
    for file in files:
        assert {"plain", "robust"} <= words_of(file.read_text(encoding="utf-8")), file


def words_of(picture: str) -> set[str]:
    return {text.strip() for text in re.findall(r">([^<]+)</(?:text|tspan)>", picture)}


@pytest.mark.heavy
def test_figures_of_photographs_are_those_of_the_record(drawings):
    for name, draw in drawings.FIGURES.items():
        if name.startswith("photographs_"):
            kept = (drawings.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
            assert words_of(drawings.svg(draw(), name)) == words_of(kept), name


def test_a_papers_page_compares_only_what_had_its_data_network_and_schedule(monkeypatch):
    kept = reading.read("papers_systems")
    runs = [run for run in kept["runs"] if run["row"] == "ASCL"]
    monkeypatch.setattr(reading, "read", lambda _: {**kept, "runs": runs})
    assert "nothing is compared" in claimed.beside("ascl_local")
    for run in runs:
        run["plan"] |= {"data": "cifar10", "backbone": "cifar:resnet18"}
        run["plan"]["recipe"]["epochs"] = 200
        run["presentations"] = 200 * 50_000
    assert "there to be compared" in claimed.beside("ascl_local")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        ((0.1, 0.12), (0.5, 0.52), "**seen**"),
        ((0.5, 0.52), (0.1, 0.12), "**reversed**"),
        ((0.3, 0.34), (0.32, 0.33), "within noise"),
        ((0.1, 0.5), (0.3, 0.9), "within noise"),  # of trainings
    ],
)
def test_a_claim_is_seen_beyond_the_noise_of_images_and_of_trainings(low, high, word):
    def run(row, seed, share):
        correct = [i < share * 500 for i in range(500)]
        names = {"slf: clean": [True] * 500, "slf: PGD-20": correct}
        found = [
            json.loads(Measurement(name, tuple(c), seed, {"attack": name}, "d", None, {}).to_json())
            for name, c in names.items()
        ]
        return {"row": row, "plan": {"preset": "advcl"}, "measurements": found}

    runs = [run("low", i, share) for i, share in enumerate(low)]
    runs += [run("high", i, share) for i, share in enumerate(high)]
    points, said = claimed._seen(runs, ["low", "high"])
    assert said == word
    assert points.startswith(f"{100 * (sum(high) - sum(low)) / 2:+.1f} (")


@pytest.mark.parametrize("where", PAGES, ids=str)
def test_tables_are_those_of_the_records(where):
    assert "<!-- table: evidence -->" in README
    text = where.read_text(encoding="utf-8")
    assert tables.filled(text) == text


def test_the_costs_of_six_stacks_are_estimated_within_15_percent():
    stacks = reading.read("estimates")["stacks"]
    assert len(stacks) == 6
    for name, row in stacks.items():
        off = [turn["estimated"] / turn["measured"] - 1 for turn in row["turns"]]
        assert len(off) >= 3
        assert off == pytest.approx(row["off_by_turn"], abs=2e-4)
        assert abs(statistics.median(off)) <= 0.15, name
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert tables.filled(page) == page
