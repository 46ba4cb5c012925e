"""Features made once are those made each time, in order and to the bit."""

from __future__ import annotations

import torch

from advssl.evaluation.features import parts


def test_one_that_is_left_over_joins_the_batch_before():
    sizes = [[len(p) for p in parts(torch.arange(n), 4)] for n in (1, 4, 5, 6, 9)]
    assert sizes == [[1], [4], [5], [4, 2], [4, 5]]
