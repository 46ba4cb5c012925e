"""Progress: bars in a terminal; in a log a line every half minute at most, with the time left."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from advssl.evaluation import progress
from advssl.evaluation.attacks import PGD, measure, progress_bars
from advssl.evaluation.progress import Lines


class Interrupted(Exception):
    pass


@pytest.fixture
def clock():
    """Lines, and how to let seconds pass."""
    now = [100.0]

    def pass_by(seconds):
        now[0] += seconds

    return Lines(lambda: now[0]), pass_by


class TestLines:
    def test_say_what_how_many_since_when_and_how_long_it_takes(self, clock):
        lines, pass_by = clock
        lines.show("PGD-20", 1, 5)
        assert lines.line() == "PGD-20: 1 of 5, 0:00 so far"
        pass_by(90)
        lines.show("PGD-20", 3, 5)  # two in 90 seconds, two to go
        assert lines.line() == "PGD-20: 3 of 5, 1:30 so far, about 1:30 left"
        pass_by(2 * 3600)
        lines.show("PGD-20", 4, 5)
        assert lines.line() == "PGD-20: 4 of 5, 2:01:30 so far, about 40:30 left"

    def test_of_a_stream_say_what_is_known(self, clock):
        lines, pass_by = clock
        lines.show("clean", 1, None)
        pass_by(7)
        lines.show("clean", 9, None)
        assert lines.line() == "clean: 9, 0:07 so far"

    def test_end_with_the_work(self, clock):
        lines, _ = clock
        assert lines.line() is None
        lines.show("a", 1, 2)
        lines.show("a", 2, 2)
        assert lines.line() is None

    def test_one_that_is_not_heard_of_any_more_is_left_out(self, clock):
        lines, pass_by = clock
        lines.show("outer", 1, 3)
        lines.show("batch 2: square", 3, 4)
        assert lines.line() == "outer: 1 of 3, 0:00 so far; batch 2: square: 3 of 4, 0:00 so far"
        pass_by(30)  # nothing is heard: still at it
        assert lines.line() == "outer: 1 of 3, 0:30 so far; batch 2: square: 3 of 4, 0:30 so far"
        lines.show("outer", 2, 3)
        assert lines.line() == "outer: 2 of 3, 0:30 so far, about 0:30 left"

    def test_what_begins_again_is_timed_anew(self, clock):
        lines, pass_by = clock
        lines.show("epochs", 9, 10)
        pass_by(60)
        lines.show("epochs", 1, 10)
        pass_by(10)
        lines.show("epochs", 2, 10)
        assert lines.line() == "epochs: 2 of 10, 0:10 so far, about 1:20 left"


class TestProgressBars:
    def test_follow_a_measurement(self, net, batches, capsys):
        pytest.importorskip("rich")
        with progress_bars() as show:
            record = measure(net, PGD(restarts=2), batches, progress=show)
            show("unknown length", 3, None)
        assert record == measure(net, PGD(restarts=2), batches)
        assert capsys.readouterr() == ("", "")  # it took less than half a minute

    def test_a_line_now_and_then_where_there_is_no_terminal(self, monkeypatch, capsys):
        pytest.importorskip("rich")
        monkeypatch.setattr(progress, "_EVERY", 0.05)
        with progress_bars() as show:
            show("PGD-20", 1, 4)
            time.sleep(0.3)
        out, err = capsys.readouterr()
        assert out == ""
        assert 1 <= len(err.splitlines()) <= 6
        assert set(err.splitlines()) == {"PGD-20: 1 of 4, 0:00 so far"}
        time.sleep(0.1)
        assert capsys.readouterr().err == ""  # it ends with the block

    def test_bars_in_a_terminal(self, monkeypatch, capsys):
        pytest.importorskip("rich")
        monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take anything for a terminal
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with progress_bars() as show:
            show("PGD-20", 1, 4)
            time.sleep(0.2)
        out, err = capsys.readouterr()
        assert out == ""
        assert "PGD-20" in err
        assert "1/4" in err

    def test_end_with_the_block_when_it_fails(self):
        pytest.importorskip("rich")
        with pytest.raises(Interrupted), progress_bars() as show:
            show("batch", 1, 2)
            raise Interrupted
        with progress_bars() as show:  # rich allows one at a time
            show("batch", 2, 2)

    def test_of_several_ranks_the_first_speaks(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setattr(progress, "rank", lambda: 1)
        with progress_bars() as show:
            assert show is progress.ignored

    @pytest.mark.slow
    def test_does_not_hold_up_a_process_that_ends(self):
        code = "from advssl.evaluation.progress import progress_bars; import sys\n"
        code += "c = progress_bars(); c.__enter__()('a', 1, 2); sys.exit(3)"
        pytest.importorskip("rich")
        ended = subprocess.run([sys.executable, "-c", code], timeout=100, capture_output=True)
        assert (ended.returncode, ended.stdout) == (3, b"")
