"""Alarms: what monitors saw, epoch by epoch, to what is wrong with the training."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from advssl.doctor.networks import is_collapsed
from advssl.types import described, number, see, whole

_READ = ("spread", "effective_rank", "knn_clean", "knn_fast", "knn_pgd")
_OF_BRANCHES = ("branch_accuracy", "critic_accuracy")  # read where the first is there
_FALL, _HELD = 0.5, 0.75  # of the accuracies of the best epoch
_ABOVE_CHANCE = 1.5
_ERRORS, _LEAST = 3.0, 0.1  # standard errors, and accuracy, above guessing


class Alarms:
    """Reads what :class:`Monitors` return after each epoch, and says what is wrong.

    "collapse": embeddings are one point or lie on one line, as the doctor has it.

    "catastrophic overfitting": accuracy under PGD-10 has been half of the clean one or more, has
    fallen to less than half of that, and under the fast attack it stands (three quarters or more).
    An encoder that was never robust raises no alarm, nor does one whose accuracies fall together.

    "critic of branches": the critic's accuracy is there for clean images alone, by their BatchNorm
    branch: three standard errors and 0.1 above guessing, and at least half of what it has between
    benign and attacked images. The global divergence then matches branches, not distributions.

    Args:
        images: N, of the monitors.
        classes: K, for chance.

    Reference: Wong et al. 2020, https://arxiv.org/abs/2001.03994; for the branches see
    :class:`~advssl.GlobalDivergenceCritic`
    """

    def __init__(self, images: int, classes: int) -> None:
        self.images = whole("images", images, 1)
        self.classes = whole("classes", classes, 2)
        self._best = {"knn_pgd": 0.0, "knn_fast": 0.0}

    def __call__(self, seen: Mapping[str, float]) -> dict[str, str]:
        """The alarms of this epoch, each with its evidence; empty where all is well."""
        seen = _read(seen)
        found = {
            "collapse": self._collapse(seen),
            "catastrophic overfitting": self._overfitting(seen),
            "critic of branches": self._branches(seen),
        }
        return {name: said for name, said in found.items() if said}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the accuracies of the best epoch."""
        return {"best": dict(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict.get("best") if isinstance(state_dict, Mapping) else None
        if not isinstance(best, Mapping) or not {*self._best} <= {*best}:
            raise ValueError(
                f'state_dict must hold "best" with {" and ".join(self._best)}, as state_dict() '
                f"gives it, got {described(state_dict)}"
            )
        self._best = {name: number(name, best[name]) for name in self._best}

    def _collapse(self, seen: Mapping[str, float]) -> str:
        spread, rank = seen["spread"], seen["effective_rank"]
        if not is_collapsed(spread, rank):
            return ""
        return (
            f"collapse: embeddings have a spread of {spread:.2g}, where 1 is every direction and 0 "
            f"a point, and an effective rank of {rank:.1f}" + see("Collapsed embeddings")
        )

    def _overfitting(self, seen: Mapping[str, float]) -> str:
        best = self._best
        pgd, fast = seen["knn_pgd"], seen["knn_fast"]
        robust = pgd >= max(seen["knn_clean"] / 2, _ABOVE_CHANCE / self.classes)
        if robust and pgd > best["knn_pgd"]:
            self._best = {"knn_pgd": pgd, "knn_fast": fast}
        if pgd >= _FALL * best["knn_pgd"] or fast < _HELD * best["knn_fast"]:
            return ""
        return (
            f"catastrophic overfitting: {100 * fast:.0f} % of images withstand the fast attack and "
            f"{100 * pgd:.0f} % PGD-10, after {100 * best['knn_fast']:.0f} % and "
            f"{100 * best['knn_pgd']:.0f} %" + see("Catastrophic overfitting")
        )

    def _branches(self, seen: Mapping[str, float]) -> str:
        if "branch_accuracy" not in seen:
            return ""
        branch, critic = seen["branch_accuracy"] - 0.5, seen["critic_accuracy"] - 0.5
        error = 0.5 / (2 * self.images) ** 0.5
        if branch < max(_LEAST, _ERRORS * error) or branch < critic / 2:
            return ""
        return (
            f"a critic tells the same clean images in both BatchNorm branches apart with an "
            f"accuracy of {0.5 + branch:.2f}, benign from attacked ones with {0.5 + critic:.2f}: "
            "it separates branches, not distributions" + see("A critic of branches")
        )


def _read(seen: Any) -> dict[str, float]:
    """The numbers that alarms are of."""
    given = seen if isinstance(seen, Mapping) else {}
    names = (*_READ, *(_OF_BRANCHES if _OF_BRANCHES[0] in given else ()))
    if not {*names} <= {*given}:
        raise ValueError(
            f"seen must hold {', '.join(names)}, as Monitors return them, got {described(seen)}"
        )
    values = {name: number(name, given[name]) for name in names}
    for name, value in values.items():
        if not isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    return values
