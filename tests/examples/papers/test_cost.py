"""A step costs what the method's mathematics needs, in forwards of one image, and no more."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from advssl.evaluation.data import Data
from advssl.integrations.timm import backbone
from harness.cost import forwards_per_image, seconds_per_step
from harness.data import Batch
from reproduce import METHODS

PHOTOS = Data("photos", tuple("0123456789"), None, None, None, natural=True)

# F is a forward, a backward to the input 1 F, a backward to the weights 2 F. What is written out:
# the attack, then the training pass with its backward, then SAM.
LEAST = {
    "simclr": 2 * 3,  # 6
    "supcon": 2 * 3,  # 6
    "natural": 3,
    "at": 10 * 2 + 3,  # 23
    "trades": 1 + 10 * 2 + 2 * 3,  # 27
    "rocl": 1 + 7 * 2 + 3 * 3,  # 24
    "clae": 1 + 2 + 3 * 3,  # 12
    "adr": 10 * 2 + 1 + 3,  # 24: nothing is learned from the clean image
    "acl": 2 * 5 * 2 + 4 * 3,  # 32
    "dynacl": 2 * 5 * 2 + 2 * 3 + 2,  # 28: the slow encoder learns nothing
    "acl_air": 2 * 5 * 2 + 5 * 3,  # 35
    "dyn_air": 2 * 5 * 2 + 5 * 3,  # 35
    "advcl": 2 * 5 * 2 + 5 * 3,  # 35
    "gsa_rsl": 1 + 7 * 2 + 3 * 3 + (2 * 2 + 2 * 3),  # 34
    "ascl_local": 10 * 2 + 2 * 3,  # 26
    "ascl_pretrain": 10 * 2 + (2 + 1) * 5 * 2 + 6 * 3,  # 68
    "gsa_advcl": 3 + 7 * 2 + 5 * 3 + (2 * 2 + 2 * 3),  # 42
    "gsa_on_advcl": 3 + 2 * 7 * 2 + 6 * 3 + (2 * 2 + 2 * 3),  # 59: with pseudo-labels
    "deacl": 1 + 5 * 2 + 2 * 3,  # 17: one weak view for teacher, attack and training
    "fare": 1 + 10 * 2 + 3,  # 24
    "gsa_acl": 2 * 7 * 2 + 4 * 3 + (2 * 2 + 2 * 3),  # 50
    "gsa_dynacl": 2 * 7 * 2 + 2 * 3 + 2 + (2 + 3),  # 41
    "gsa_acl_air": 2 * 7 * 2 + 5 * 3 + (2 * 2 + 2 * 3),  # 53
    "gsa_dyn_air": 2 * 7 * 2 + 5 * 3 + (2 * 2 + 2 * 3),  # 53
}
LEAST |= {"rocl_gsa": LEAST["rocl"], "clae_gsa": LEAST["rocl"]}
# What is asked for on top, as documented.
MORE = [
    ("simclr", {"adversarial": True}, 5 * 2 + 3 * 3),
    ("simclr", {"adversarial": True, "exact_bn": True}, 5 * (2 + 2) + 3 * 3),
    ("at", {"natural": 1.0}, 10 * 2 + 2 * 3),
    ("at", {"exact_bn": True}, 10 * 2 + 2 + 3),  # what the release forwards for BatchNorm alone
    ("ascl_local", {"exact_bn": True}, 10 * 2 + 1 + 2 * 3),
    ("adr", {"natural": 1.0}, 10 * 2 + 2 * 3),
    ("ascl_pretrain", {"steps": 10}, 10 * 2 + (2 + 1) * 10 * 2 + 6 * 3),  # 98
    ("ascl_pretrain", {"supervised": 0.0}, 10 * 2 + 2 * 5 * 2 + 3 * 3),
    ("ascl_pretrain", {"supervised": 0.0, "self_supervised": 0.0}, 23),  # AT
    ("ascl_pretrain", {"generation": "label-based"}, 10 * 2 + 2 * 5 * 2 + 5 * 3),
    ("ascl_pretrain", {"generation": "label-free"}, (1 + 2) * 5 * 2 + 5 * 3),
    ("acl", {"kind": "a2a"}, 2 * 5 * 2 + 2 * 3),
    ("acl", {"kind": "a2s"}, 1 + 5 * 2 + 2 * 3),
    ("advcl", {"exact_bn": True}, 5 * (3 + 2 * 2) + 5 * 3),  # the release's 50 F
    ("advcl", {"supervision": "none"}, 5 * 2 + 4 * 3),
    ("gsa_rsl", {"critic": False}, LEAST["gsa_rsl"]),
    ("gsa_rsl", {"sam": False}, 24),
    ("gsa_rsl", {"sam": False, "critic": False}, 24),
    ("gsa_rsl", {"order": "4-step"}, LEAST["gsa_rsl"] + 7 * 2 + 2),
    ("gsa_on_advcl", {"supervision": "none"}, LEAST["gsa_advcl"]),
]


def prepared(name, **flags):
    torch.manual_seed(0)
    of = METHODS[name]
    method = of(backbone("cifar:resnet18:16"), PHOTOS, 16, of.settings_type.of("released", **flags))
    if method.after:
        method.prepare(method, torch.randn(600, 4))
    return method, Batch(torch.rand(4, 3, 16, 16), torch.arange(4), torch.arange(4))


# Of several parts that are counted alone too.
COMPOSED = {"supcon", "dynacl", "acl_air", "gsa_acl", "gsa_dynacl", "gsa_acl_air", "gsa_dyn_air"}
COMPOSED |= {"gsa_advcl", "gsa_on_advcl", "rocl_gsa", "clae_gsa"}
FIRST = {name: flags for name, flags, _ in reversed(MORE)}  # the others where time does not matter


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.heavy if n in COMPOSED else ()) for n in METHODS]
)
def test_a_step_costs_the_least(name):
    assert forwards_per_image(*prepared(name)) == pytest.approx(LEAST[name], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags", "cost"),
    [
        pytest.param(*row, marks=() if row[1] is FIRST[row[0]] else pytest.mark.heavy)
        for row in MORE
    ],
)
def test_what_is_asked_for_costs_what_is_documented(name, flags, cost):
    assert forwards_per_image(*prepared(name, **flags)) == pytest.approx(cost, rel=0.02)


def test_the_page_of_costs_has_these():
    page = (Path(__file__).parents[3] / "docs" / "costs.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w ,+()-]+?) \| (?:\d+ F|–) \| (\d+) F \|$", page, re.MULTILINE))
    assert {title: int(cost) for title, cost in rows.items()} == {
        "SimCLR, SupCon": LEAST["simclr"],
        "AT": LEAST["at"],
        "TRADES": LEAST["trades"],
        "RoCL": LEAST["rocl"],
        "CLAE": LEAST["clae"],
        "ADR": LEAST["adr"],
        "ACL (DS)": LEAST["acl"],
        "DynACL": LEAST["dynacl"],
        "ACL-AIR, DynACL-AIR": LEAST["acl_air"],
        "AdvCL": LEAST["advcl"],
        "GSA-RSL": LEAST["gsa_rsl"],
        "DeACL": LEAST["deacl"],
        "FARE": LEAST["fare"],
        "AdvCL + GSA": LEAST["gsa_advcl"],
        "supervised ASCL": LEAST["ascl_local"],
        "ASCL-2023": LEAST["ascl_pretrain"],
    }


@pytest.mark.slow
def test_measuring_leaves_no_trace():
    method, batch = prepared("gsa_rsl")
    before = copy.deepcopy(method.state_dict())
    forwards_per_image(method, batch)
    assert seconds_per_step(method, batch, "bf16-mixed") > 0
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name
    ((critic, _),) = method.optimizers().values()
    assert not critic.state
    assert all(p.grad is None for p in method.parameters())
