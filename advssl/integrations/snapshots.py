"""Snapshots: what a training step may change, as it was, to be given back."""

from advssl.snapshots import Snapshot

__all__ = ["Snapshot"]
