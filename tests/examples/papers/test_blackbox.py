"""A row of the black-box table has the images that were made for its network, not the others'."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Subset

from advssl.evaluation.data import Data, InMemory
from harness import blackbox

from . import tiny


class Reads(nn.Module):
    """Class 1 where the sum over ``channels`` of their means is above that of grey."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = (images.mean(dim=(2, 3)) - 0.5)[:, : self.channels].sum(dim=1)
        return torch.stack([-score, score], dim=1)


def test_images_for_one_network_are_classified_by_the_others():
    labels = torch.tensor([0, 1] * 4)
    sign = 2 * labels[:, None, None].float() - 1
    images = torch.full((8, 3, 16, 16), 0.5)
    images[:, 0] += 0.03 * sign  # a step over it fools what reads this channel
    images[:, 1] += 0.17 * sign  # both channels have to move to fool what reads both
    data = InMemory(images, labels)
    nothing = Subset(data, [])
    on = Data("made", ("dark", "bright"), nothing, nothing, data, natural=False)
    networks = {"one": ("slf", Reads(1)), "both": ("alf", Reads(2))}
    found = blackbox.matrix(networks, tiny.plan("simclr"), on, 0.125, lambda *_: None)
    assert found == {"one": {("slf", "to both"): 1.0}, "both": {("alf", "to one"): 0.0}}
