"""Every method, by the name that commands call it."""

from __future__ import annotations

from acl import ACL
from adr import ADR
from advcl import AdvCL
from air import ACLAIR, DynAIR
from ascl_local import ASCL
from ascl_pretrain import ASCLPretrain
from clae import CLAE, CLAEGSA
from deacl import DeACL
from dynacl import DynACL
from extended import AdvCLGSA, GSAOnAdvCL
from extended_acl import ACLAIRGSA, ACLGSA, DynACLGSA, DynAIRGSA
from fare import FARE
from gsa_rsl import GSARSL
from harness.method import Method
from rocl import RoCL, RoCLGSA
from simclr import SimCLR
from supcon import SupCon
from supervised import AT, TRADES, Natural

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "supcon": SupCon,
    "natural": Natural,
    "at": AT,
    "trades": TRADES,
    "rocl": RoCL,
    "clae": CLAE,
    "adr": ADR,
    "acl": ACL,
    "dynacl": DynACL,
    "acl_air": ACLAIR,
    "dyn_air": DynAIR,
    "advcl": AdvCL,
    "gsa_rsl": GSARSL,
    "ascl_local": ASCL,
    "ascl_pretrain": ASCLPretrain,
    "gsa_advcl": AdvCLGSA,
    "gsa_on_advcl": GSAOnAdvCL,
    "gsa_acl": ACLGSA,
    "gsa_dynacl": DynACLGSA,
    "gsa_acl_air": ACLAIRGSA,
    "gsa_dyn_air": DynAIRGSA,
    "rocl_gsa": RoCLGSA,
    "clae_gsa": CLAEGSA,
    "deacl": DeACL,
    "fare": FARE,
}
