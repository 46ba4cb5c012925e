"""Progress of a measurement."""

from __future__ import annotations

import pytest

from advssl.evaluation.attacks import (
    PGD,
    measure,
    progress_bars,
)


class Interrupted(Exception):
    pass


class TestProgressBars:
    def test_follow_a_measurement(self, net, batches, capsys):
        pytest.importorskip("rich")
        with progress_bars() as show:
            record = measure(net, PGD(restarts=2), batches, progress=show)
            show("unknown length", 3, None)
        assert record == measure(net, PGD(restarts=2), batches)
        capsys.readouterr()

    def test_end_with_the_block_when_it_fails(self):
        pytest.importorskip("rich")
        with pytest.raises(Interrupted), progress_bars() as show:
            show("batch", 1, 2)
            raise Interrupted
        with progress_bars() as show:  # rich allows one at a time
            show("batch", 2, 2)
