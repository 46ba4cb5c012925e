"""examples/papers/reproduce.py with two methods more, to tell what the attack's precision does.

They are ``simclr --adversarial`` with an attack in another precision than the training around it.
``python benchmarks/papers.py precision_digits`` runs them beside those where both are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "papers"))

import reproduce
from simclr import SimCLR


class AttackInFloat32(SimCLR):
    title, bf16 = "SimCLR, attack in float32", False

    def attack(self, views: Tensor, height: Callable[..., Tensor]) -> Tensor:
        with torch.autocast(views.device.type, torch.bfloat16, enabled=self.bf16):
            return super().attack(views, height)


class AttackInBF16(AttackInFloat32):
    title, bf16 = "SimCLR, attack in bf16", True


reproduce.METHODS |= {"attack_float32": AttackInFloat32, "attack_bf16": AttackInBF16}
reproduce.SCRIPT = Path(__file__).name

if __name__ == "__main__":
    reproduce.main()
