"""ASCL-2023: adversarial training, contrast without labels and contrast with them, in pretraining.

Li et al. 2023, "Adversarial supervised contrastive learning", Machine Learning 112:2105-2130. With
x a weakly augmented image, two strong views t1 and t2, and three perturbations:

    max over δ  cross-entropy(x + δ, y)  +  λ1 max over δ1, δ2  NT(t1 + δ1, t2 + δ2)
    +  λ2 max over δ'  SCL(t1, t2; x + δ')                                          Eq. 10

SCL (Eq. 9) draws each clean view towards the attacked images of its class. Its authors released no
code, so what the text leaves open is a choice of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl import MultiViewNTXentLoss, Pairs, branch_batchnorm
from advssl.evaluation.data import Data
from advssl.losses import contrastive
from harness.heads import projection
from harness.method import Method, Terms
from harness.schedules import Recipe, Steps
from harness.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ASCLPretrainSettings(Settings):
    steps: int = setting(5, "of the attacks on contrast: ours, as in ACL and AdvCL")
    at_steps: int = setting(10, "of the attack on cross-entropy: ours, as in AT")
    self_supervised: float = setting(0.5, "λ1: 0 in two of Table 5's rows")
    supervised: float = setting(0.2, "λ2: 0 in two of Table 5's rows")
    generation: Literal["ensemble", "label-based", "label-free"] = setting(
        "ensemble",
        "of Table 6: each loss's own, all on cross-entropy, or all on contrast without labels",
    )
    batchnorms: Literal["two", "one"] = setting(
        "two", "of clean and of attacked images, or one for both: Table 8"
    )
    temperature: float = setting(0.5, "of both contrastive losses: ours, SimCLR's")
    literal: bool = setting(
        False,
        "the softmax of Eq. 9 is without the attacked images that are in its numerators",
        paper=True,
        why="it is printed so; what is no share of a sum has a log above 0 too",
    )


class ASCLPretrain(Method):
    title, paper, labelled = "ASCL-2023", "Li et al. 2023", True
    settings: ASCLPretrainSettings
    settings_type: ClassVar[type[Settings]] = ASCLPretrainSettings
    recipe = Recipe(100, 512, Steps(0.1, (60, 80), 100), weight_decay=2e-4)
    probe = "ascl23"
    ours: ClassVar[tuple[str, ...]] = (
        "There is no release, and the text has no epochs (here 100), attack steps, temperature, "
        "augmentation (here AdvCL's) or heads (here 512-512-128 for contrast, one linear layer for "
        "cross-entropy; neither is kept).",
        "Losses are means over images and anchors; the printed sums would give λ1 and λ2 no "
        "meaning beside a mean cross-entropy.",
        "z_adv of Eq. 9 has no index: it is every attacked image of the anchor's class, its own "
        "included.",
        "Attacks are in train mode, where one forward of the clean views does for attack and "
        "training; the text does not say.",
        "In Table 6 the losses stay and the attacks change. The text prints the same numbers for "
        "label-based and for a loss without λ1 in Table 5, which is another experiment here.",
    )

    def __init__(
        self, encoder: nn.Module, data: Data, size: int, settings: ASCLPretrainSettings
    ) -> None:
        super().__init__(encoder, data, size, settings, clamp_start=False)
        s = settings
        self.free = s.generation == "label-free"
        self.classify = nn.Linear(self.width, len(data.classes))
        if s.self_supervised or s.supervised or self.free:
            self.head = projection(self.width, self.width, 128)
        self.contrast = MultiViewNTXentLoss(s.temperature, gather_distributed=True)
        self.one_batchnorm = s.batchnorms == "one"
        if not self.one_batchnorm:
            branch_batchnorm(encoder, self.measured()[1])

    def step(self, images: Tensor, labels: Tensor, index: Tensor) -> Terms:
        s, x = self.settings, self.weak(images)
        views = self.strong(images), self.second(images)
        anchors = self.embed(views, "clean") if s.supervised or self.free else ()
        known = [z.detach() for z in anchors]

        def missed(*views: Tensor) -> Tensor:  # Eq. 3
            logits = self.classify(torch.cat(self.encode(views, "adversarial")))
            return F.cross_entropy(logits, labels.repeat(len(views)))

        def apart(*views: Tensor) -> Tensor:  # Eq. 4
            return self.contrast(*self.embed(views, "adversarial"))

        def unlike_its_view(view: Tensor) -> Tensor:  # Eq. 4 too, with nobody's label
            return self.contrast(self.embed(view, "adversarial"), known[0])

        def unlike_its_class(view: Tensor) -> Tensor:  # Eq. 9
            return self.towards(known, self.embed(view, "adversarial"), labels)

        if self.free:
            hard = self.attack(x, unlike_its_view)
        else:
            hard = self.attack(x, missed, steps=s.at_steps)
        features = self.encode(hard, "adversarial")
        terms = {"adversarial": F.cross_entropy(self.classify(features), labels)}
        if s.self_supervised:
            pair = self.attack(views, missed if s.generation == "label-based" else apart)
            terms["self_supervised"] = s.self_supervised * apart(*pair)
        if s.supervised:
            if s.generation == "ensemble":
                features = self.encode(self.attack(x, unlike_its_class), "adversarial")
            towards = self.towards(anchors, self.head(features), labels)
            terms["supervised"] = s.supervised * towards
        return terms

    def towards(self, anchors: Any, attacked: Tensor, labels: Tensor) -> Tensor:
        """Eq. 9: clean views as anchors, drawn to the attacked images of their class."""
        z = torch.cat([*anchors, attacked])
        clean = torch.arange(len(z), device=z.device) < len(z) - len(attacked)
        label = labels.repeat(len(anchors) + 1)
        positives = (label[:, None] == label) & ~clean
        within = clean.expand_as(positives)
        pairs = Pairs(positives, within if self.settings.literal else within | positives)
        return contrastive(z, pairs, self.settings.temperature)[clean].mean()

    def measured(self) -> tuple[nn.Module, tuple[str, ...]]:
        s = self.settings
        if self.one_batchnorm:
            return self.encoder, ()
        clean = ("clean",) if s.supervised or self.free else ()
        return self.encoder, ("adversarial", *clean)
