"""Answers: one image has one answer, at a second look and in whatever company it comes."""

from __future__ import annotations

import torch

from advssl.evaluation.checks import Case, Check, answer
from advssl.evaluation.logits import Logits, borrowed, device_of, logits_of

COMPOSED = 32  # images that are sent in other company
# Healthy: 1e-6, float32 kernels that differ between batch sizes. AutoAttack's own check: 1e-4.
_DIFFERENT_LOGITS = 1e-4


def deterministic(case: Case) -> Check:
    """Two looks at one batch agree, and so do its images in another order, in halves and alone."""
    x = case.batches[0][0][:COMPOSED]
    device = device_of(case.classifier, x)
    with borrowed(case.classifier, device, case.seed), torch.no_grad():
        x = x.clone().to(device)
        first, again = logits_of(case.classifier, x), logits_of(case.classifier, x)
        turned = logits_of(case.classifier, x.flip(0)).flip(0)
        half = torch.cat(
            [logits_of(case.classifier, part) for part in torch.split(x, len(x) // 2 + 1)]
        )
        alone = logits_of(case.classifier, x[:1])
    repeated = _difference(first, again)
    composed = max(
        _difference(first, turned), _difference(first, half), _difference(first[:1], alone)
    )
    evidence = (
        f"logits differ by {repeated:.1e} of their length between two looks at the same batch, by "
        f"{composed:.1e} when the images come in another order, in halves or alone"
    )
    failed = max(repeated, composed) > _DIFFERENT_LOGITS
    return answer(failed, evidence, repeated=repeated, composed=composed)


def _difference(one: Logits, other: Logits) -> float:
    """The largest distance between two answers, as a share of the longer one's length."""
    length = one.norm(dim=1).maximum(other.norm(dim=1)).clamp_min(torch.finfo(one.dtype).tiny)
    return float(((one - other).norm(dim=1) / length).max())
