"""Progress: how far the work is, in a terminal or in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from advssl.evaluation.extras import needed

Progress: TypeAlias = Callable[[str, int, int | None], None]  # what, how many done, of how many


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A ``progress`` that draws bars in the terminal while the block runs.

    Raises:
        ImportError: without rich.
    """
    rich = needed("rich.progress")
    with rich.Progress(*rich.Progress.get_default_columns(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what, total=total)
            bars.update(task, completed=done, visible=done != total)

        yield show


def ignored(what: str, done: int, total: int | None) -> None:
    """No progress."""
