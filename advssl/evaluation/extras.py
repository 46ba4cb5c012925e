"""Libraries that some parts of evaluation need, and that may not be installed."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module.partition('.')[0]}, which is not installed; "
            "run: pip install advssl[eval]"
        ) from error
