"""Every method, by the name that commands call it."""

from __future__ import annotations

from acl import ACL
from advcl import AdvCL
from ascl_local import ASCL
from clae import CLAE, CLAEGSA
from extended import ACLGSA, AdvCLGSA, GSAOnAdvCL
from gsa_rsl import GSARSL
from harness.method import Method
from rocl import RoCL, RoCLGSA
from simclr import SimCLR
from supcon import SupCon
from supervised import AT, TRADES

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "supcon": SupCon,
    "at": AT,
    "trades": TRADES,
    "rocl": RoCL,
    "clae": CLAE,
    "acl": ACL,
    "advcl": AdvCL,
    "gsa_rsl": GSARSL,
    "ascl_local": ASCL,
    "gsa_advcl": AdvCLGSA,
    "gsa_on_advcl": GSAOnAdvCL,
    "gsa_acl": ACLGSA,
    "rocl_gsa": RoCLGSA,
    "clae_gsa": CLAEGSA,
}
