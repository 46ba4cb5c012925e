"""Stopping: Ctrl-C, and SIGTERM, which schedulers send before they kill, as one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopping(then: Callable[[], None] | None = None, *signals: signal.Signals) -> Iterator[None]:
    """Inside the block a signal that asks to end calls ``then``, and a second one ends at once.

    Only the main thread hears signals: in another one nothing changes.

    Args:
        then: None raises ``KeyboardInterrupt``, where the program stands.
        *signals: SIGTERM and Ctrl-C's SIGINT without any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def give_back() -> None:
        while before:
            number, handler = before.popitem()
            # None is a handler that was not set from Python, and cannot be.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def heard(*_: Any) -> None:
        give_back()
        if then is None:
            raise KeyboardInterrupt
        then()

    for number in signals or (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, heard)
    try:
        yield
    finally:
        give_back()
