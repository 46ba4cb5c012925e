"""Three files, each whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from advssl.evaluation.report import (
    read,
    write,
)
from evaluation.report.samples import (
    bare,
    report,
    without_pixels,
)


class TestWriting:
    def test_gives_the_paths_and_leaves_nothing_else(self, folder):
        paths = write(report(bare()), folder / "deep" / "er")
        assert {kind: path.name for kind, path in paths.items()} == {
            "record": "record.json",
            "markdown": "report.md",
            "html": "report.html",
        }
        assert sorted(os.listdir(folder / "deep" / "er")) == sorted(p.name for p in paths.values())

    def test_takes_a_folder_as_text(self, tmp_path):
        assert write(report(bare()), str(tmp_path))["record"] == tmp_path / "record.json"

    def test_replaces_what_was_there(self, folder):
        write(report(bare(), title="first"), folder)
        paths = write(report(bare(), title="second"), folder)
        assert all("second" in p.read_text(encoding="utf-8") for p in paths.values())

    def test_whoever_reads_meanwhile_finds_the_old_or_the_new(self, folder, monkeypatch):
        record = write(report(bare(), title="first"), folder)["record"]
        seen = []
        replace = os.replace

        def watched(source, target):
            seen.append((read(record).title, Path(source).parent == record.parent))
            return replace(source, target)

        monkeypatch.setattr(os, "replace", watched)
        write(report(bare(), title="second"), folder)
        assert seen == [("first", True), ("second", True), ("second", True)]

    def test_a_failure_leaves_the_old_file_and_no_rest(self, folder, monkeypatch):
        record = write(report(bare(), title="first"), folder)["record"]

        def full(_):
            raise OSError("no space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            write(report(bare(), title="second"), folder)
        assert read(record).title == "first"
        assert sorted(os.listdir(folder)) == ["record.json", "report.html", "report.md"]

    def test_without_matplotlib_the_numbers_are_safe_and_the_error_says_what_to_do(
        self, folder, monkeypatch
    ):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r'pip install "advssl\[eval\]"'):
            write(report(), folder)
        assert read(folder / "record.json") == without_pixels(report())
        assert (folder / "report.md").exists()

    def test_the_files_are_utf_8_with_unix_lines(self, written):
        for name in ("record.json", "report.md", "report.html"):
            content = (written / name).read_bytes()
            assert b"\r" not in content
            assert content.endswith(b"\n")
            assert "ℓ∞" in content.decode("utf-8")
