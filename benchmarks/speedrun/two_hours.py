"""Two hours of two cores: the half hour's way, at three to four times its operations.

python benchmarks/speedrun/two_hours.py --data folder:data/cifar10 --seeds 1
"""

from __future__ import annotations

import sys
from dataclasses import replace

from course import Course, run
from half_hour import BACKBONE, TEACHER, robust
from torch import nn

LONGER = replace(TEACHER, epochs=10)
STUDENT = replace(TEACHER, epochs=28)
SMALL_EPOCHS = 14  # of the student's; whole images after them


def two_hours(course: Course) -> nn.Module:
    """A robust encoder, without labels."""
    return robust(course, LONGER, STUDENT, SMALL_EPOCHS)


if __name__ == "__main__":
    run(two_hours, "two_hours", 120, BACKBONE, sys.argv[1:])
