"""One training step with everything in it, as DDP needs it: one forward, one backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl.attacks import AdversarialViewGenerator
from advssl.balls import Linf
from advssl.branches import branch_batchnorm, on_branch
from advssl.critics import GlobalDivergenceCritic
from advssl.losses import MultiViewNTXentLoss
from advssl.sharpness import SAMWrapper

BATCH = 8


class WholeStep(nn.Module):
    """GSA-RSL: two BatchNorm branches, an adversarial view, the critic, SAM on the benign term.

    Args:
        chunks: how many ranks the batch stands for: each part has BatchNorm statistics of its own.
        gathered: whether negatives come from other ranks.
    """

    def __init__(self, *, chunks: int = 1, gathered: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.chunks = chunks
        encoder = nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6 * 36, 5),
            nn.BatchNorm1d(5),
        )
        self.encoder = branch_batchnorm(encoder)
        self.critic = GlobalDivergenceCritic(5, (4,))
        self.nt_xent = MultiViewNTXentLoss(0.5, gather_distributed=gathered)
        self.adversary = AdversarialViewGenerator(Linf(0.1), steps=3, start="zero")
        self.sam = SAMWrapper(self.encoder, rho=0.1)
        self.double()

    def embed(self, images: Tensor, branch: str) -> Tensor:
        with on_branch(self.encoder, branch):
            parts = [self.encoder(part) for part in images.chunk(self.chunks)]
        return F.normalize(torch.cat(parts), dim=1)

    def benign(self, first: Tensor, second: Tensor) -> Tensor:
        return self.nt_xent(self.embed(first, "clean"), self.embed(second, "clean"))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z1, z2 = self.embed(first, "clean"), self.embed(second, "clean")

        def height(view: Tensor) -> Tensor:
            z = self.embed(view, "adversarial")
            return self.nt_xent(z1.detach(), z) + 0.3 * self.critic.estimate(z2.detach(), z)

        hard = self.adversary(second, height, freeze=[self.encoder, self.critic])
        z_hard = self.embed(hard, "adversarial")
        return (
            self.nt_xent(z1, z_hard)
            + 2 * self.sam(lambda: self.benign(first, second), self.nt_xent(z1, z2))
            + 0.3 * self.critic.estimate(z2, z_hard)
            + self.critic.loss(z2, z_hard)
        )


def views(micro_batch: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(11 + micro_batch)
    first, second = torch.rand(2, BATCH, 3, 8, 8, dtype=torch.float64, generator=draw)
    return first, second


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
