"""The terms of GSA-RSL on top of another method: one function, and two hosts.

The paper's Table 1 adds them to AdvCL and its Table 2 to ACL. A host needs no change: it names its
clean ``pair`` of views, how its loss weighs them (``pair_weight``), their term if it has one
(``clean_term``), and the width of its embeddings.
"""

from __future__ import annotations

from dataclasses import make_dataclass, replace
from typing import get_type_hints

from acl import ACL
from advcl import AdvCL
from gsa_rsl import GlobalAndSharp, GSASettings
from harness.method import Method


class OnHost(GlobalAndSharp):
    """Adds to the host's views what the two terms compare."""

    @property
    def names(self) -> tuple[str, ...]:
        benign = self.clouds[0] if self.settings.critic else ()
        return tuple(dict.fromkeys((*self.pair, *benign, *super().names)))

    @property
    def clouds(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        attacked = tuple(n for n in super().names if n.endswith("d") and n not in self.headless)
        return tuple(name.removesuffix("d") for name in attacked), attacked


def extended(host: type[Method], **defaults: object) -> type[Method]:
    """``host`` with the critic, and its clean pair's term at the worst nearby weights.

    Args:
        host: a contrastive method with adversarial views.
        defaults: settings of the combination that differ from those of its parts.
    """
    parts = (GSASettings, host.settings_type)
    types = {name: kind for part in parts for name, kind in get_type_hints(part).items()}
    settings = make_dataclass(
        f"{host.__name__}GSASettings",
        [(name, types[name], value) for name, value in defaults.items()],
        bases=parts,
        frozen=True,
        kw_only=True,
    )
    return type(
        f"{host.__name__}GSA",
        (OnHost, host),
        {
            "title": f"{host.title} + GSA",
            "paper": f"GSA-RSL, on top of {host.paper}",
            "settings_type": settings,
            "differences": tuple(
                replace(d, released=defaults.get(d.setting, d.released))
                for d in (*GlobalAndSharp.differences, *host.differences)
            ),
            "ours": host.ours + GlobalAndSharp.ours,
        },
    )


# The released settings; the release has no pseudo-labels in this combination.
AdvCLGSA = extended(
    AdvCL, supervision="none", benign_weight=0.5, global_weight=0.3, rho=0.5, critic_rate=0.5
)
# Not in the release; the paper does not state its settings.
ACLGSA = extended(ACL, benign_weight=1.0, rho=0.5)
