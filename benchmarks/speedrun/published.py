"""What the papers' published schedules cost: benchmarks/results/speedrun_published.json.

    python benchmarks/speedrun/published.py

Operations of a step are counted on the method's own network, and multiplied by the steps of the
schedule on CIFAR-10's 50,000 training images; accuracies are those that the named table prints,
under linear finetuning. A network of other images (AdvCL's clusters) and the finetuning are not
counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from course import RESULTS  # before the harness, which it finds

from advssl.doctor.operations import flops
from advssl.evaluation import records
from advssl.evaluation.data import Data, InMemory
from advssl.integrations.timm import backbone
from harness.cost import step
from harness.data import Batch
from harness.published import lookup
from methods import METHODS

IMAGES, FEW = 50_000, 4
# Label: methods, whose schedules add up, and the row of a table with its numbers.
ROWS = {
    "RoCL": (("rocl",), "advcl-1", "RoCL"),
    "ACL": (("acl",), "advcl-1", "ACL"),
    "AdvCL": (("advcl",), "advcl-1", "AdvCL"),
    "GSA-RSL": (("gsa_rsl",), "gsa-1", "GSA-RSL"),
    "DynACL": (("dynacl",), "gsa-2", "ACL-Dyn"),
    "DeACL": (("simclr", "deacl"), "its repository", ""),
}
# Whose schedules the claims of docs/results.md would need.
CLAIMED = (
    *("rocl", "acl", "dynacl", "acl_air", "dyn_air", "advcl", "gsa_rsl", "rocl_gsa", "clae_gsa"),
    *("gsa_acl", "gsa_dynacl", "gsa_acl_air", "gsa_dyn_air", "gsa_advcl"),
    *("at", "trades", "adr", "ascl_local", "ascl_pretrain"),
)
DEACL = {"clean": 80.82, "pgd": 53.45, "aa": 46.14}  # of its repository, mean of five


def main() -> None:
    """Count, look up, write."""
    rows = {}
    for label, (methods, table, row) in ROWS.items():
        spent = sum(map(schedule, methods))
        rows[label] = {"methods": methods, "flops": spent, "from": f"{table} {row}".strip()}
        rows[label] |= numbers(table, row) if row else DEACL
    record = {
        "name": "speedrun_published",
        "rows": rows,
        "schedules": {name: schedule(name) for name in CLAIMED},
        "command": "python benchmarks/speedrun/published.py",
        "commit": records.commit(),
        "machine": records.machine(),
    }
    with records.replacing(RESULTS / "speedrun_published.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def schedule(name: str) -> float:
    """The operations of a method's published schedule."""
    method, images = METHODS[name], torch.rand(FEW, 3, 32, 32)
    few = InMemory((255 * images).byte(), [0] * FEW)
    data = Data("few", tuple("0123456789"), few, few, few, natural=True)
    torch.manual_seed(0)
    mode = method.settings_type.of("released")
    built = method(backbone(f"cifar:{method.released_network}"), data, 32, mode)
    clusters = getattr(built, "clusters", None)
    if clusters is not None:
        clusters.fit(torch.rand(1000, 8))
    steps = method.recipe.epochs * (IMAGES // method.recipe.batch_size)
    one = flops(lambda: step(built, Batch(images, torch.zeros(FEW).long(), torch.arange(FEW))))
    return one / FEW * steps * method.recipe.batch_size


def numbers(table: str, row: str) -> Mapping[str, float]:
    """Clean, PGD and AutoAttack accuracy under linear finetuning, in percent."""
    found = lookup(table, "cifar10")
    values = next(r.published["slf"] for r in found.rows if r.label == row)
    return {
        key.partition("/")[0]: value
        for key, value in zip(found.metrics.values(), values, strict=True)
        if value is not None and key != "pgd-l2"
    }


if __name__ == "__main__":
    main()
