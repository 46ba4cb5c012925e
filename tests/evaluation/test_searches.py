"""The random search has the larger budget, stays in the ball, and keeps what it found."""

from __future__ import annotations

import torch
from ills import Wrapped

from advssl import L2, Linf
from advssl.evaluation import searches
from advssl.evaluation.logits import margin


def test_black_box_has_the_larger_budget_and_stays_inside(learnt):
    model, batches = learnt
    (x, y), seen = batches[0], []

    class Looking(Wrapped):
        def forward(self, images):
            seen.append(images)
            return self.inner(images)

    for ball in (Linf(0.1), L2(0.7)):
        seen.clear()
        draw = torch.Generator().manual_seed(0)
        stands = searches._random_search(Looking(model), x, y, ball, draw).bool()
        assert len(seen) == 1 + 100
        assert min(float(s.min()) for s in seen) >= 0
        assert max(float(s.max()) for s in seen) <= 1
        for images in seen:
            delta = (images - x).flatten(1)
            length = delta.abs().amax(1) if isinstance(ball, Linf) else delta.norm(dim=1)
            assert length.max() <= ball.radius + 1e-5
        # Its own verdict: what stands was never seen misclassified.
        with torch.no_grad():
            highest = torch.stack([margin(model(s), y) for s in seen]).amax(dim=0)
        assert torch.equal(stands, highest <= 0)
        assert stands.float().mean() < (model(x).argmax(1) == y).float().mean()


def test_a_square_is_square():
    draw = torch.Generator().manual_seed(0)
    images = torch.zeros(64, 3, 16, 16)
    for side, width in ((0.9, 14), (0.25, 4), (0.01, 1)):
        square = searches._random_square(images, side, draw)
        assert set(square.unique().tolist()) == {-1.0, 0.0, 1.0}
        covered = square.abs()
        assert (covered.sum(dim=(2, 3)) == width**2).all()
        assert (covered.amax(dim=3).sum(dim=2) == width).all()
        assert (covered == covered[:, :1]).all()  # one place for all channels
        corners = covered[:, 0].flatten(1).argmax(dim=1)
        assert len(corners.unique()) > 3 or width == 14
