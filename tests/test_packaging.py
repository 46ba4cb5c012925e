"""What a release promises: a page without dead links, floors, one version, and what make offers."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

import advssl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def defined(path: str) -> dict:
    """What a script of the repository defines."""
    scope = {"__name__": Path(path).stem}
    exec((ROOT / path).read_text(encoding="utf-8"), scope)
    return scope


class TestPackagePage:
    """hatch_build.py and docs/check_links.py."""

    @pytest.fixture
    def page(self):
        return defined("hatch_build.py")["for_package_page"]

    @pytest.fixture
    def dead(self):
        return defined("docs/check_links.py")["dead_on_package_page"]

    @pytest.mark.parametrize("address", [None, "https://example.org/advssl"])
    def test_the_readme_as_a_page_has_no_dead_link(self, page, dead, address):
        assert dead(page(README, address)) == []
        assert len(dead(README)) > 5  # as the repository reads it

    def test_without_an_address_links_are_words_with_their_path(self, page):
        told = (
            "[Pages](docs/a.md), [`run.py`](run.py) ![A plot](docs/b.png) [x](https://a.b) [y](#c)"
        )
        assert page(told, None) == (
            "Pages (docs/a.md), `run.py` *A plot (docs/b.png)* [x](https://a.b) [y](#c)"
        )

    def test_with_one_they_lead_into_the_repository(self, page):
        assert page("[Pages](docs/a.md) ![A plot](docs/b.png)", "https://e.org/x") == (
            "[Pages](https://e.org/x/blob/HEAD/docs/a.md) "
            "![A plot](https://e.org/x/raw/HEAD/docs/b.png)"
        )

    def test_code_stays_as_it_is(self, page):
        code = "```python\nfound = table[0](row)\n```"
        assert page(code, None) == code

    def test_an_anchor_that_is_not_there_is_dead(self, dead):
        assert len(dead("# Here it is\n\n[here](#here-it-is) [there](#nowhere)")) == 1

    def test_a_wheel_is_asked_for_its_description(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
            wheel.writestr("a-1.dist-info/METADATA", "Name: a\n\n# Title: ℓ∞\n")
        described = defined("docs/check_links.py")["description_of"]
        assert described(tmp_path / "a.whl") == "# Title: ℓ∞\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_every_requirement_has_a_floor_and_no_ceiling():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    assert len(asked) > 30
    for one in asked:
        assert re.fullmatch(r"[\w\[\]-]+>=[\d.]+|advssl\[[\w,]+\]", one), one
    named = {name for one in extras["all"] for name in one[len("advssl[") : -1].split(",")}
    assert named == {*extras} - {"all", "dev", "docs", "bench"}


def test_the_version_is_one_and_the_next_has_its_heading():
    assert f"version: {advssl.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = re.findall(
        r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert headings[:2] == ["Unreleased", advssl.__version__]


def test_help_tells_every_target():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    told = dict(re.findall(r"^([a-z-]+):.*?##  ?(.+)$", MAKEFILE, re.MULTILINE))
    assert list(told) == phony.split()
