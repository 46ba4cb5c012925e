"""Logs are written by what is there; remarks are unsaid within a block and said behind it."""

from __future__ import annotations

import logging
import warnings

import pytest

from harness import logs

WORKERS = "The 'train_dataloader' does not have many workers which may be a bottleneck."


@pytest.mark.parametrize("there", [(), ("tensorboard",), ("tensorboardX",)])
def test_tensorboard_is_written_where_it_is_installed(there, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(logs, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(logs, "TensorBoardLogger", lambda *_, **__: made.append("tensorboard"))
    assert len(logs.loggers(tmp_path)) == 1 + len(there)
    assert len(made) == len(there)


def test_lightnings_remarks_are_said_again_behind_the_block():
    lightning = logging.getLogger("pytorch_lightning")
    before = lightning.level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with logs.quiet():
            assert lightning.level == logging.WARNING
            warnings.warn(WORKERS, stacklevel=1)
        assert lightning.level == before
        with pytest.raises(UserWarning, match="many workers"):
            warnings.warn(WORKERS, stacklevel=1)
