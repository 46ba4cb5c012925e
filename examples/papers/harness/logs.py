"""What Lightning writes into logs, and what it leaves unsaid."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger


def loggers(folder: Path) -> list[Any]:
    """CSV, and TensorBoard where it is installed."""
    # A start of its own each: a resumed run would delete what the first one logged.
    loggers: list[Any] = [CSVLogger(folder, name="csv")]
    if find_spec("tensorboard") or find_spec("tensorboardX"):
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    return loggers


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its remarks on what is meant as it is."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")  # it needs none
            warnings.filterwarnings("ignore", ".*treespec.*")
            warnings.filterwarnings("ignore", ".*in eval mode at the start.*")  # a teacher is
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
