"""What happens to kept files between two calls, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def flipped(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def swapped(path: Path) -> None:
    """With another's of its kind, or else with any other's."""
    others = sorted(p for p in path.parent.iterdir() if p != path and p.is_file())
    same = [p for p in others if p.suffix == path.suffix] or others
    other = same[0] if same else path
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "below").mkdir(parents=True)
    (path / "below" / "mine.txt").write_text("kept")


def unreadable(path: Path) -> None:
    """A link that leads to itself: nobody reads it, whatever his rights."""
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 9),
    "a bit flipped in its middle": lambda path: flipped(path, 0.5),
    "a bit flipped at its end": lambda path: flipped(path, 0.97),
    "swapped": swapped,
    "something else": lambda path: path.write_text('{"history": []}'),
    "a folder": a_folder,
    "unreadable": unreadable,
}
