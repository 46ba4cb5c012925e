"""Snapshots: what a training step may change, as it was, to be given back."""

from advssl.modes import Snapshot

__all__ = ["Snapshot"]
