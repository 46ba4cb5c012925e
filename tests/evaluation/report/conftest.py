"""A report that is written once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from advssl.evaluation.report import write
from evaluation.report.samples import Page, nasty, page_of, report


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "report"


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """The folder of the realistic report, written once and only read."""
    folder = tmp_path_factory.mktemp("written")
    write(report(), folder)
    return folder


@pytest.fixture(scope="session")
def page(written) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def markdown(written) -> str:
    return (written / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def record(written) -> dict:
    return json.loads((written / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def nasty_page(tmp_path_factory) -> Page:
    return page_of(nasty(), tmp_path_factory.mktemp("nasty"))
