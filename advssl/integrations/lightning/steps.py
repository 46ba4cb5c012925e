"""A training step with the callbacks' work around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from advssl.integrations.lightning.batches import Batch, copied, views_of
from advssl.integrations.lightning.wrapping import Output, Step, logging_off
from advssl.sharpness import SAMWrapper
from advssl.snapshots import Snapshot
from advssl.types import Embeddings, Images, Scalar, height_of

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

    from advssl.integrations.lightning.bolts import Bolt, Term
    from advssl.integrations.lightning.callbacks import (
        AdversarialViews,
        OverfittingGuard,
        SharpnessAware,
    )
    from advssl.integrations.lightning.clusters import ClusterFit

Calls: TypeAlias = list[Embeddings]  # what a submodule returned, call by call


class Before:
    """A module as it is before a pass; :meth:`restore` gives it back, counters of changes included.

    A step may change parameters in place: SwAV normalises its prototypes. All passes of a batch do
    so alike, from one state, and the clean pass's graph is back-propagated after the training pass.
    Torch refuses it unless both count the same changes, and so each pass starts from one count.
    """

    def __init__(self, module: nn.Module) -> None:
        self._values = Snapshot(module)
        counted = [p for p in module.parameters() if not p.is_inference()]
        self._counts = [(p, p._version, _unsafe_preserve_version_counter(p)) for p in counted]

    def restore(self) -> None:
        self._values.restore()
        for _, _, count in self._counts:
            count.__exit__()

    def changed(self) -> list[tuple[Tensor, Tensor]]:
        """Trainable parameters that a pass has changed in place, with what they are now."""
        moved = (p for p, before, _ in self._counts if p.requires_grad and p._version != before)
        return [(p, p.detach().clone()) for p in moved]


class Skipped(Exception):
    """The module's training_step returned None: it skips this batch."""


class TrainingStep:
    """A module's training step with the callbacks' work around it."""

    def __init__(self, trainer: Trainer, module: LightningModule, bolts: list[Bolt]) -> None:
        self.trainer = trainer
        self.module = module
        self.attack: AdversarialViews | None = None
        self.guard: OverfittingGuard | None = None
        self.sharp: SharpnessAware | None = None
        self.clusters: ClusterFit | None = None
        self.terms: list[Term] = []
        for bolt in bolts:
            bolt.join(self)

    def __call__(self, step: Step, batch: Batch) -> Output:
        if not self.trainer.training:  # a validation_step of the user's calls it
            return step(batch)
        if self.clusters is not None:
            batch = self.clusters.without_index(batch)
        now, changed = Before(self.module), list[tuple[Tensor, Tensor]]()
        clouds = {term: Clouds(term) for term in self.terms}
        if self.attack is not None:
            if any(term.compares for term in self.terms):
                try:
                    _, heard = self._unheard(step, batch)
                    changed = now.changed()
                finally:
                    now.restore()
                for term, calls in heard.items():
                    clouds[term].clean = calls
            batch = self._attacked(self.attack, step, batch, now, clouds)
        with self._listening() as heard:
            output = step(copied(batch))
        for p, before in changed:
            if not torch.equal(p, before):  # then torch must refuse the clean pass's graph
                with torch.no_grad():
                    p.add_(0)
        loss = loss_of(output)
        if loss is None or not (self.sharp or self.terms):
            return output
        if self.sharp is not None:
            loss = self._sharpened(self.sharp, step, batch, now, loss)
        for term in self.terms:
            pair = clouds[term].beside(heard[term])
            term.improve(*pair)
            value = term.term(*pair)
            self.module.log(term.logged, value.detach())
            loss = loss + term.weight * value
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def _attacked(
        self,
        attack: AdversarialViews,
        step: Step,
        batch: Batch,
        now: Before,
        clouds: dict[Term, Clouds],
    ) -> Batch:
        """The batch with its chosen views adversarial."""
        chosen = attack.chosen(batch)
        views = views_of(batch)

        def with_views(hard: tuple[Images, ...]) -> Batch:
            return copied(batch, dict(zip(chosen, hard, strict=True)))

        def objective(*hard: Images) -> Scalar:
            now.restore()
            for p in self.module.parameters():  # no gradient in weights, nor memory for it
                p.requires_grad_(False)
            loss, heard = self._unheard(step, with_views(hard))
            if loss is None:
                raise Skipped
            for term in self.terms:
                clouds[term].note_reached(heard[term])
                clean, seen = clouds[term].beside(heard[term])
                loss = loss + term.weight * term.term([z.detach() for z in clean], seen)
            return loss

        attacked, seen = tuple(views[i] for i in chosen), None
        try:
            hard = attack.search(attacked, objective)
            heights = attack.adversary.heights
            if self.guard is not None:
                seen = self.guard.guard.look(attacked, objective, freeze=())
        except Skipped:
            return batch
        finally:
            now.restore()
        if len(heights) > 1:
            self.module.log("attack_start", heights[0])
            self.module.log("attack_end", heights[-1])
        if self.guard is not None:  # not earlier: the adversary may be a part of the module
            self.guard.judge(self.module, seen)
        return with_views(hard)

    def _sharpened(
        self, sharp: SharpnessAware, step: Step, batch: Batch, now: Before, loss: Scalar
    ) -> Scalar:
        after = Before(self.module)

        def closure() -> Scalar:
            now.restore()
            again, _ = self._unheard(step, batch)
            assert again is not None  # the same pass returned a loss before
            return again

        sam = SAMWrapper(self.module, rho=sharp.rho, adaptive=sharp.adaptive)
        try:
            return sam(closure, loss)
        finally:
            after.restore()

    def _unheard(self, step: Step, batch: Batch) -> tuple[Scalar | None, dict[Term, list[Any]]]:
        """The loss, and what the terms heard on the way, of a pass that logs nothing."""
        with logging_off(self.trainer, self.module), self._listening() as heard:
            return loss_of(step(copied(batch))), heard

    @contextmanager
    def _listening(self) -> Iterator[dict[Term, list[Any]]]:
        with ExitStack() as stack:
            yield {t: stack.enter_context(t.listening(self.module)) for t in self.terms}


class Clouds:
    """In one step: a term's embeddings of the clean batch, and which calls the attack reaches."""

    def __init__(self, term: Term) -> None:
        self.term = term
        self.clean: list[Any] = []
        self.reached: list[bool] | None = None  # not known before a step of the attack

    def note_reached(self, heard: list[Any]) -> None:
        """In the attack only what depends on the attacked views has a gradient."""
        self.reached = [z.requires_grad for z in self.term.embeddings(heard)]
        if self.term.compares and not any(self.reached):
            raise ValueError(
                f"no output of {self.term.on!r} has a gradient in the attacked views; name a "
                "submodule that these go through, not a momentum encoder's"
            )

    def beside(self, heard: list[Any]) -> tuple[Calls, Calls]:
        """Clean and present embeddings; where the term compares, those that the attack reaches."""
        seen = self.term.embeddings(heard)
        if not self.term.compares:
            return [], seen
        clean = self.term.embeddings(self.clean)
        reached = self.reached or [True] * len(seen)
        calls = list(zip(clean, seen, reached, strict=True))
        return [c for c, _, r in calls if r], [s for _, s, r in calls if r]


def loss_of(output: Output) -> Scalar | None:
    nothing = output.get("loss") is None if isinstance(output, Mapping) else output is None
    return None if nothing else height_of("training_step", output)
