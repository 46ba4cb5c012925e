"""The old place of the class."""

from __future__ import annotations

import advssl.integrations.snapshots
from advssl.snapshots import Snapshot


def test_is_where_it_was():
    assert advssl.integrations.snapshots.Snapshot is Snapshot
