"""Fingerprints change with what matters and nothing else; a machine is told without its name."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advssl.evaluation import provenance
from advssl.evaluation.attacks import (
    AutoAttack,
    Clean,
    measure,
    progress_bars,
    transfer,
)
from advssl.evaluation.provenance import (
    Fingerprint,
    commit,
    fingerprint,
    machine,
    versions,
)
from advssl.evaluation.records import plain


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

    def test_a_command_that_fails_has_said_nothing(self):
        assert provenance._said("sh", "-c", "echo a") == "a"
        assert provenance._said("sh", "-c", "echo a; exit 1") is None

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
        assert plain(said, "machine") == said  # plain JSON

    def test_says_nothing_of_host_user_or_path(self):
        text = json.dumps(machine())
        for private in (os.uname().nodename, os.environ.get("USER"), str(Path.home()), os.getcwd()):
            assert len(private or "") < 4 or private not in text

    def test_a_package_that_lacks_is_left_out(self, monkeypatch):
        def lacks(package):
            raise provenance.metadata.PackageNotFoundError(package)

        monkeypatch.setattr(provenance.metadata, "version", lacks)
        monkeypatch.setattr(provenance, "_version", provenance._version.__wrapped__)
        assert set(machine()) == {"cpu", "cores", "gpu", "python", "torch"}

    def test_without_cpuinfo(self, monkeypatch):
        monkeypatch.setattr(provenance.Path, "exists", lambda _: False)
        assert machine()["cpu"]


class TestVersions:
    def test_are_those_that_are_there(self, monkeypatch):
        import numpy

        said = versions()
        assert said["torch"] == torch.__version__
        assert said["numpy"] == numpy.__version__
        monkeypatch.setattr(provenance, "_version", lambda _: None)
        assert set(versions()) == {"advssl", "python", "torch"}


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("pyautoattack", lambda net, x, y: AutoAttack()(net, x, y, seed=0)),
        ("pyautoattack", lambda net, x, y: measure(net, AutoAttack(), [(x, y)])),
        ("pandas", lambda net, x, y: transfer({"a": net}, [(x, y)], Clean())),
        ("rich.progress", lambda net, x, y: progress_bars().__enter__()),  # noqa: ARG005
    ],
)
def test_a_missing_library_is_named(net, batch, monkeypatch, module, use):
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition(".")[0]
    with pytest.raises(ImportError, match=rf'needs {name}.*pip install "advssl\[eval\]"'):
        use(net, *batch)
