"""Whether every link of the built pages leads to a file and an anchor that are there.

python docs/check_links.py docs/_build
"""

from __future__ import annotations

import sys
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


if __name__ == "__main__":
    lines = dead(Path(sys.argv[1]))
    sys.exit("\n".join(["dead links:", *lines]) if lines else 0)
