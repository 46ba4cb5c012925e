"""Places: what a record says of files and folders, and of none where on a machine it lies."""

from __future__ import annotations

import re


def without_place(word: str) -> str:
    """A word of a command, the last part alone of each absolute path in it.

    Example:
        >>> without_place("folder:/home/me/images")
        'folder:images'
    """
    return re.sub(r"(^|[=:,])/(?:[^,]*/)?([^/,]+)/?(?=$|,)", r"\1\2", word)
