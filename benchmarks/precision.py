"""examples/papers/reproduce.py with two methods more, to tell what the attack's precision does.

They are ``simclr --adversarial`` with an attack in another precision than the training around it.
``python benchmarks/papers.py precision_digits`` runs them beside those where both are the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "papers"))

import reproduce
from harness.data import Batch
from harness.method import Seen, Views
from simclr import SimCLR


class AttackInFloat32(SimCLR):
    title, bf16 = "SimCLR, attack in float32", False

    def search(self, views: Views, seen: Seen, batch: Batch) -> Views:
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            return super().search(views, seen, batch)


class AttackInBF16(AttackInFloat32):
    title, bf16 = "SimCLR, attack in bf16", True


reproduce.METHODS |= {"attack_float32": AttackInFloat32, "attack_bf16": AttackInBF16}
reproduce.SCRIPT = Path(__file__).name

if __name__ == "__main__":
    reproduce.main()
