"""What a package page shows of README.md, where its links into the repository would be dead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


class Readme(MetadataHookInterface):
    """The one place for the repository's address is ``Repository`` of ``[project.urls]``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Hatchling's call: the README joins what pyproject.toml says of the project."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        address = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": for_package_page(text, address),
        }


def for_package_page(text: str, address: str | None) -> str:
    """Links into the repository made absolute; without an address, their words with the path."""

    def shown(link: re.Match[str]) -> str:
        image, words, path = link.groups()
        if address:
            return f"{image}[{words}]({address}/{'raw' if image else 'blob'}/HEAD/{path})"
        if image:
            return f"*{words} ({path})*"
        return words if words.strip("`") == path else f"{words} ({path})"

    parts = _FENCED.split(text)  # every other one is code
    return "".join(p if p.startswith("```") else _LINK.sub(shown, p) for p in parts)
