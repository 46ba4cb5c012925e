"""What a training step sends between processes, counted: benchmarks/results/communication.json.

    python benchmarks/communication.py

A step of each method runs as the first of many ranks under DistributedDataParallel, in a group
that delivers nothing (torch's "fake"); what it gives to collectives is counted. Two batch sizes
tell what grows with the batch. Without the optimizer's step and without what begins a training.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "papers"))

from advssl.evaluation import records
from advssl.evaluation.records import replacing
from harness import chain
from harness.data import Batch
from harness.method import Method, total
from harness.module import Training
from harness.options import given, parse
from harness.presets import plan_of
from methods import METHODS

HERE = Path(__file__).parent
NAMES = ["simclr", "supcon", "acl", "rocl", "advcl", "deacl", "ascl_local", "gsa_rsl", "gsa_advcl"]
WORLD, SIZES = 8, (4, 8)
SMALL = ("--image-size", "8")  # the number of pixels changes what is computed, and no byte
_OPS = {"allreduce_": "all-reduce", "allgather_": "all-gather", "broadcast_": "broadcast"}


class Sent(TorchDispatchMode):
    """Bytes of this rank's own that collectives are given, by their kind."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def clear(self) -> None:
        self.bytes.clear()
        self.calls.clear()

    def note(self, kind: str, tensors: Any) -> None:
        self.calls[kind] += 1
        self.bytes[kind] += sum(t.nbytes for t in tree_leaves(tensors) if isinstance(t, Tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = _OPS[func._schema.name.partition("::")[2]]
            self.note(kind, args[1] if kind == "all-gather" else args[0])
        return func(*args, **(kwargs or {}))


def delivered(sent: Sent, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's all-reduce of gradients, which the group that delivers nothing cannot do."""
    sent.note("all-reduce of gradients", bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class Step(nn.Module):
    """What DDP wraps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        apart = Training(method, method.recipe, lambda *_: None, 1, 0).apart  # type: ignore[arg-type, return-value]
        self._ddp_params_and_buffers_to_ignore = list(apart)

    def forward(self, batch: Batch) -> Tensor:
        return total(self.method(batch))


def counted(name: str, size: int) -> dict[str, dict[str, int]]:
    """Of a step of a method on so many images a rank."""
    words = [name, "--preset", "paper", "--limit", "600", "--batch-size", str(size), *SMALL]
    options = parse(words)
    plan = plan_of(name, options, given(options, METHODS[name]))
    method, batch = chain.first_step(plan, METHODS, chain.open_plan(plan))
    step, sent = DistributedDataParallel(Step(method)), Sent()
    # Torch reads a hook's annotations, and not those that are text.
    step.register_comm_hook(sent, lambda sent, bucket: delivered(sent, bucket))
    step(batch).backward()  # the first one also tells ranks of each other's parameters
    sent.clear()
    with sent:
        step(batch).backward()
    return {"bytes": dict(sent.bytes), "calls": dict(sent.calls)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count all methods that are not in the record yet, and write it after each."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(NAMES))
    parser.add_argument("--record", type=Path, default=HERE / "results" / "communication.json")
    o = parser.parse_args(words)
    dist.init_process_group("fake", rank=0, world_size=WORLD, store=FakeStore())
    there = json.loads(o.record.read_text(encoding="utf-8")) if o.record.exists() else {}
    rows = dict(there.get("rows", {}))
    for name in o.methods.split(","):
        rows[name] = {
            "title": METHODS[name].title,
            "by_images": {str(size): counted(name, size) for size in SIZES},
            "command": shlex.join(["python", "benchmarks/communication.py", *words]),
            "commit": records.commit(),
        }
        record = {
            "name": "communication",
            "network": "ResNet-18, float32",
            "world": WORLD,
            "rows": rows,
            "machine": records.machine(),
        }
        with replacing(o.record) as part:
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(name, rows[name]["by_images"], flush=True)


if __name__ == "__main__":
    main()
