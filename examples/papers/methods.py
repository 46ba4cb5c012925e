"""Every method, by the name that commands call it; its file is imported when it is asked for."""

from __future__ import annotations

from collections import UserDict
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from harness.method import Method


class Known(NamedTuple):
    """Where a method is, as "module:Class", and its class's title and paper."""

    place: str
    title: str
    paper: str


class Methods(UserDict[str, Any]):
    """Classes by name; one may also be put here as a class, as it is."""

    def __getitem__(self, name: str) -> type[Method]:
        found = self.data[name]
        if isinstance(found, Known):
            module, _, of = found.place.partition(":")
            found = getattr(import_module(module), of)
        return found

    def told(self, name: str) -> tuple[str, str]:
        """Title and paper."""
        return self.data[name].title, self.data[name].paper


METHODS = Methods(
    {
        "simclr": Known("simclr:SimCLR", "SimCLR", "Chen et al. 2020"),
        "supcon": Known("supcon:SupCon", "SupCon", "Khosla et al. 2020"),
        "natural": Known("supervised:Natural", "natural training", "cross-entropy on clean images"),
        "at": Known("supervised:AT", "AT", "Madry et al. 2018"),
        "trades": Known("supervised:TRADES", "TRADES", "Zhang et al. 2019"),
        "rocl": Known("rocl:RoCL", "RoCL", "Kim et al. 2020"),
        "clae": Known("clae:CLAE", "CLAE", "Ho and Vasconcelos 2020"),
        "adr": Known("adr:ADR", "ADR", "Bui et al. 2020"),
        "acl": Known("acl:ACL", "ACL", "Jiang et al. 2020"),
        "dynacl": Known("dynacl:DynACL", "DynACL", "Luo et al. 2023"),
        "acl_air": Known("air:ACLAIR", "ACL-AIR", "Xu et al. 2023"),
        "dyn_air": Known("air:DynAIR", "DynACL-AIR", "Xu et al. 2023"),
        "advcl": Known("advcl:AdvCL", "AdvCL", "Fan et al. 2021"),
        "gsa_rsl": Known(
            "gsa_rsl:GSARSL", "GSA-RSL", "Generalization bounds for robust contrastive learning"
        ),
        "ascl_local": Known("ascl_local:ASCL", "ASCL", "Bui et al. 2021"),
        "ascl_pretrain": Known("ascl_pretrain:ASCLPretrain", "ASCL-2023", "Li et al. 2023"),
        "gsa_advcl": Known(
            "extended:AdvCLGSA", "AdvCL + GSA", "GSA-RSL, on top of Fan et al. 2021"
        ),
        "gsa_on_advcl": Known(
            "extended:GSAOnAdvCL",
            "AdvCL of its authors + GSA",
            "GSA-RSL, on top of Fan et al. 2021",
        ),
        "gsa_acl": Known(
            "extended_acl:ACLGSA", "ACL + GSA", "GSA-RSL, on top of Jiang et al. 2020"
        ),
        "gsa_dynacl": Known(
            "extended_acl:DynACLGSA", "DynACL + GSA", "GSA-RSL, on top of Luo et al. 2023"
        ),
        "gsa_acl_air": Known(
            "extended_acl:ACLAIRGSA", "ACL-AIR + GSA", "GSA-RSL, on top of Xu et al. 2023"
        ),
        "gsa_dyn_air": Known(
            "extended_acl:DynAIRGSA", "DynACL-AIR + GSA", "GSA-RSL, on top of Xu et al. 2023"
        ),
        "rocl_gsa": Known(
            "rocl:RoCLGSA",
            "RoCL of GSA-RSL's tables",
            "Kim et al. 2020, as GSA-RSL's authors train it",
        ),
        "clae_gsa": Known(
            "clae:CLAEGSA",
            "CLAE of GSA-RSL's tables",
            "Ho and Vasconcelos 2020, by GSA-RSL's authors",
        ),
        "deacl": Known("deacl:DeACL", "DeACL", "Zhang et al. 2022"),
        "fare": Known("fare:FARE", "FARE", "Schlarmann et al. 2024"),
    }
)
