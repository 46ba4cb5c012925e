"""A signal that asks to end is heard once, and handlers are the caller's again afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from advssl.stopping import stopping

BOTH = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def callers():
    """Handlers of the caller's own, and what they heard."""
    heard = []
    before = {s: signal.signal(s, lambda number, _: heard.append(number)) for s in BOTH}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_ends_where_the_program_stands(callers, number):
    with pytest.raises(KeyboardInterrupt), stopping():
        os.kill(os.getpid(), number)
        pytest.fail("it went on")
    assert callers == []
    os.kill(os.getpid(), number)
    assert callers == [number]


@pytest.mark.parametrize("number", BOTH)
def test_what_is_to_be_done_is_done_once_and_the_second_signal_is_the_callers(callers, number):
    done = []
    with stopping(lambda: done.append("asked")):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert (done, callers) == (["asked"], [number])


def test_the_other_signal_is_left_alone(callers):
    with stopping(None, signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGINT)
    assert callers == [signal.SIGINT]


def test_handlers_are_given_back_after_an_error(callers):
    with pytest.raises(KeyError), stopping():
        raise KeyError
    for number in BOTH:
        os.kill(os.getpid(), number)
    assert callers == [*BOTH]


def test_another_thread_hears_nothing(callers):
    ran = []

    def work():
        with stopping():
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
    os.kill(os.getpid(), signal.SIGTERM)
    assert callers == [signal.SIGTERM]
