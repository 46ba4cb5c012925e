"""Progress: how far the work is, in a terminal or in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from advssl.distributed import rank
from advssl.extras import needed

Progress: TypeAlias = Callable[[str, int, int | None], None]  # what, how many done, of how many

_EVERY = 30.0  # seconds between two lines in a log


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A ``progress`` that says how far the work is while the block runs, on standard error.

    In a terminal (or a notebook) bars with the time that is left; anywhere else one plain line
    every half minute. Of several ranks the first one speaks.

    Raises:
        ImportError: without rich.
    """
    rich = needed("rich.progress")
    console = needed("rich.console").Console(stderr=True)
    if rank() > 0:
        yield ignored
    elif console.is_interactive or console.is_jupyter:
        yield from _bars(rich, console)
    else:
        yield from _logged(Lines())


def ignored(what: str, done: int, total: int | None) -> None:
    """No progress."""


@dataclass
class _Task:
    """How far one piece of the work is."""

    began: float
    began_at: int  # how many were done when it was first heard of
    done: int
    total: int | None
    heard: bool = True  # of it, since the last line


class Lines:
    """What is in work as lines of text: what, how many are done, since when, and how long it takes.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.Lock()

    def show(self, what: str, done: int, total: int | None) -> None:
        """A :data:`Progress`."""
        with self._lock:
            task = self._tasks.get(what)
            if task is None or done < task.done:  # a new one, or one that begins again
                task = self._tasks[what] = _Task(self._clock(), done, done, total)
            task.done, task.total, task.heard = done, total, True

    def line(self) -> str | None:
        """Of what is not finished, and was heard of since the last line; None if there is nothing.

        Where nothing was heard of, the last line's once more: the work takes its time.
        """
        now = self._clock()
        with self._lock:
            self._tasks = {w: t for w, t in self._tasks.items() if t.done != t.total}
            heard = {what: task for what, task in self._tasks.items() if task.heard}
            if heard:
                self._tasks = heard  # what is not heard of any more has ended
            for task in self._tasks.values():
                task.heard = False
            parts = [_told(what, task, now) for what, task in self._tasks.items()]
        return "; ".join(parts) or None


def _told(what: str, task: _Task, now: float) -> str:
    took = now - task.began
    of = "" if task.total is None else f" of {task.total}"
    text = f"{what}: {task.done}{of}, {_clock_time(took)} so far"
    new = task.done - task.began_at
    if task.total is not None and new > 0:
        text += f", about {_clock_time(took * (task.total - task.done) / new)} left"
    return text


def _clock_time(seconds: float) -> str:
    """As m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _logged(lines: Lines) -> Iterator[Progress]:
    """A line now and then, whether or not anything is heard of: a batch may take an hour."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(_EVERY):
            line = lines.line()
            if line is not None:
                print(line, file=sys.stderr, flush=True)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield lines.show
    finally:
        ended.set()
        writer.join()


def _bars(rich: Any, console: Any) -> Iterator[Progress]:
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = bars.add_task(what, total=total)
            bars.update(task, completed=done, visible=done != total)

        yield show
