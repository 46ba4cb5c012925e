"""The doctor: what would silently spoil an attack on your training step, and what it would cost."""

from __future__ import annotations

from advssl.doctor.costs import Cost, costs, table
from advssl.doctor.examination import AILMENTS, examine, told
from advssl.evaluation.checks import Check

__all__ = ["AILMENTS", "Check", "Cost", "costs", "examine", "table", "told"]
