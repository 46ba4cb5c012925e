"""From a checkpoint to a robustness report, with the reasons to believe or doubt its numbers."""
