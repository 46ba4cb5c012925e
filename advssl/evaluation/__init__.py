"""From a checkpoint to a robustness report, with the reasons to believe or doubt its numbers."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advssl.evaluation.evaluate import evaluate as evaluate

__all__ = ["evaluate"]


class _Package(ModuleType):
    """Whose ``evaluate`` is the function, also once the module of that name was imported."""

    @property
    def evaluate(self) -> Any:
        from advssl.evaluation.evaluate import evaluate as function

        return function

    @evaluate.setter
    def evaluate(self, _: Any) -> None:
        """An import of the module sets it as an attribute here."""


sys.modules[__name__].__class__ = _Package
