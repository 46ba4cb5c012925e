"""Whether every link leads somewhere: of the built pages, or of a package's own page.

python docs/check_links.py docs/_build
python docs/check_links.py dist/advssl-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import sys
import zipfile
from email import message_from_bytes
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links = {""}, set[str]()
        self.feed(text)

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.anchors |= {told[key] or "" for key in ("id", "name") if key in told}
        self.links |= {told[key] or "" for key in ("href", "src") if key in told}


def dead(folder: Path) -> list[str]:
    """The links within the site that lead nowhere, each with its page."""
    folder = folder.resolve()
    pages = {p: _Page(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.html"))}
    found = []
    for page, content in pages.items():
        for link in sorted(content.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                found.append(f"{page.relative_to(folder)}: {link}")
    return found


def dead_on_package_page(description: str) -> list[str]:
    """The links of a Markdown description, as package indexes render it, that lead nowhere."""
    from readme_renderer.markdown import render

    page = _Page(render(description) or "")
    absolute = {link for link in page.links if urlsplit(link).scheme}
    anchors = {f"#{name}" for name in page.anchors}
    return [f"package page: {link}" for link in sorted(page.links - absolute - anchors)]


def description_of(wheel: Path) -> str:
    """The long description in a wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        payload = message_from_bytes(archive.read(name)).get_payload(decode=True)
    return bytes(payload).decode()


if __name__ == "__main__":
    what = Path(sys.argv[1])
    lines = dead(what) if what.is_dir() else dead_on_package_page(description_of(what))
    sys.exit("\n".join(["dead links:", *lines]) if lines else 0)
