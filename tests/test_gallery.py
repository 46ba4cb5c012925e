"""The gallery's columns are what the step sees, and one PNG is written without a screen."""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from borrowed import Trace
from torch import nn
from toys import blobs

from advssl import AdversarialViewGenerator, HighFreqView, Linf, LowFreqView, cli
from advssl.evaluation import theory
from advssl.gallery import columns, gallery
from advssl.pixels import IMAGENET


def step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return model, lambda views: -nn.functional.cosine_similarity(model(views[0]), model(views[1]))


def views(channels: int = 3, count: int = 2) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [0.2 + 0.6 * torch.rand(4, channels, 8, 8, generator=draw) for _ in range(count)]


def test_the_columns_are_what_the_step_sees():
    _, run = step()
    batch = views()
    found = columns(run, batch, images=3)
    titles = ["view 1", "view 2", "view 1, attacked"]
    assert [one.title for one in found][:3] == titles
    one, two, hard, apart, low, high = (c.pictures for c in found)
    assert torch.equal(one, batch[0][:3])
    assert torch.equal(two, batch[1][:3])
    assert 0.9 * 8 / 255 < (hard - one).abs().max() <= 8 / 255 + 1e-6
    factor = float(found[3].title.split("×")[1])
    torch.testing.assert_close(apart, 0.5 + factor * (hard - one), atol=0.02, rtol=0)
    assert apart.amax() > 0.99 or apart.amin() < 0.01
    torch.testing.assert_close(low, LowFreqView(0.25, unit="pixel")(one).clamp(0, 1))
    torch.testing.assert_close(high, (HighFreqView(0.25, unit="pixel")(one) + 0.5).clamp(0, 1))


def test_another_view_may_be_attacked_and_the_difference_amplified_as_asked():
    _, run = step()
    batch = views()
    _, two, hard, apart, low, _ = columns(run, batch, view=1, amplify=4)
    assert (hard.title, low.title) == ("view 2, attacked", "view 2, low frequencies")
    torch.testing.assert_close(apart.pictures, 0.5 + 4 * (hard.pictures - two.pictures))


def test_normalised_images_are_shown_as_pixels():
    _, run = step()
    batch = views()
    adversary = AdversarialViewGenerator(Linf(8 / 255), pixels=IMAGENET)
    found = columns(run, [IMAGENET.of(x) for x in batch], adversary)
    torch.testing.assert_close(found[0].pictures, batch[0])
    assert adversary.heights == ()
    with pytest.raises(ValueError, match="images must lie in bounds"):
        columns(run, [IMAGENET.of(x) for x in batch])


def test_pictures_of_images_in_other_bounds_are_the_same():
    _, run = step()
    wanted = columns(run, views(), AdversarialViewGenerator(Linf(0.1)))
    adversary = AdversarialViewGenerator(Linf(0.2), bounds=(-1, 1))
    found = columns(
        lambda batch: run([(x + 1) / 2 for x in batch]), [2 * x - 1 for x in views()], adversary
    )
    for one, two in zip(found, wanted, strict=True):
        assert one.title == two.title
        torch.testing.assert_close(one.pictures, two.pictures, atol=1e-4, rtol=0)


def test_it_leaves_no_trace():
    model, run = step()
    batch, before = views(), [x.clone() for x in views()]
    trace, drawn = Trace(model), torch.get_rng_state()
    columns(run, batch)
    trace.assert_none()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures_of_any_channels_and_of_many_crops(channels):
    pytest.importorskip("matplotlib")
    crops = [*views(channels), *(x[..., :4, :4] for x in views(channels, 4))]
    figure = gallery(lambda v: sum(x.square().mean() for x in v), crops, images=2)
    assert len(figure.axes) == 2 * (4 + 4)
    assert all(axis.images for axis in figure.axes)


def test_the_command_writes_one_png(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    module = ModuleType("advssl_test_gallery")
    module.made = lambda: (step()[1], views())
    module.__spec__ = ModuleSpec("advssl_test_gallery", None)
    monkeypatch.setitem(sys.modules, "advssl_test_gallery", module)
    monkeypatch.chdir(tmp_path)
    cli.main(["gallery", "advssl_test_gallery:made", "--images", "2"])
    assert capsys.readouterr().out == "wrote gallery.png\n"
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"advssl: --out gallery\.svg"):
        cli.main(["gallery", "advssl_test_gallery:made", "--out", "gallery.svg"])


PAGE = (Path(__file__).parents[1] / "docs" / "monitors.md").read_text(encoding="utf-8")


def test_the_page_s_code_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(theory, "_CRITIC_STEPS", 3)
    (images, labels), (bank, known) = (blobs(12, 4, seed, channels=3) for seed in (5, 6))
    model, run = step()
    logged: list = []
    scope = {
        "images": images,
        "labels": labels,
        "bank": bank,
        "bank_labels": known,
        "encoder": model.eval(),
        "step": run,
        "loader": [views()],
        "logger": SimpleNamespace(log=logged.append),
        "pl": SimpleNamespace(Trainer=lambda **settings: settings["callbacks"]),
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, scope)
    (seen,) = logged
    (callback,) = scope["trainer"]
    assert callback.on == "backbone"
    assert (tmp_path / "gallery.png").exists()
    for name in {*seen, "alignment", "branch_accuracy"}:
        assert f"`{name}`" in PAGE
