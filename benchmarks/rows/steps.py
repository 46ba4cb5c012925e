"""Whole training steps: AdvCL and GSA-RSL beside the released algorithms, SAM on one term."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, _dynamo
from torch._functorch import config as _functorch
from torch.optim import SGD, Optimizer

from advcl import AdvCL
from advssl import evaluating
from advssl.evaluation.data import Data
from advssl.integrations.timm import backbone
from gsa_rsl import GSARSL
from harness.cost import flops
from harness.data import Batch, pixels
from harness.method import Method, total
from rows.measuring import Bench, Call, Claim, Row, Turns, agree, installed
from rows.released import ADVCL_FORWARDS, GSA_RSL_FORWARDS, advcl_step, gsa_rsl_step
from simclr import SimCLR

PHOTOGRAPHS = Data("photographs", tuple("0123456789"), None, None, None, natural=True)
RATE = 0.01  # so small that nothing diverges in a few steps
EPOCH = 50_000  # images
_CLUSTERED = 600  # images at the least: AdvCL makes up to 500 clusters

Step = Callable[[Method, Optimizer, Batch], None]
Make = Callable[[Bench, Method], Call]


def prepared(bench: Bench, of: type[Method], **settings: Any) -> Method:
    """A method as its release sets it, at its random start."""
    torch.manual_seed(0)
    encoder = backbone(f"cifar:resnet18:{bench.sizes.width}")
    told = of.settings_type.of("released", **settings)
    method = of(encoder, PHOTOGRAPHS, bench.sizes.pixels, told)
    if method.after:
        method.prepare(method, torch.randn(max(_CLUSTERED, bench.sizes.batch), 8))
    return method.to(bench.device)


def stored(bench: Bench) -> Batch:
    """A batch as a training set holds it: uint8, on the CPU."""
    torch.manual_seed(1)
    count, size = bench.sizes.batch, bench.sizes.pixels
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 10, torch.arange(count))


def on_device(bench: Bench, batch: Batch) -> Batch:
    return batch._replace(images=pixels(batch.images.to(bench.device)))


def contestant(
    step: Step,
    bench: Bench,
    method: Method,
    layout: torch.memory_format = torch.contiguous_format,
    compiler: dict[str, Any] | None = None,
) -> Call:
    """``step`` on a batch from the training set, for a copy of the method."""
    method = copy.deepcopy(method).to(memory_format=layout)
    if compiler is not None:  # as ``examples/papers/reproduce.py --compile`` trains
        _dynamo.reset()
        method.encoder.compile(**compiler)  # a copy of it would not be compiled
    apart = [
        p for o, _ in method.optimizers().values() for g in o.param_groups for p in g["params"]
    ]
    learns = [p for p in method.parameters() if not any(p is q for q in apart)]
    optimizer = SGD(learns, RATE, momentum=0.9, weight_decay=1e-4)
    batch = stored(bench)

    def run() -> None:
        moved = on_device(bench, batch)
        images = moved.images.contiguous(memory_format=layout)
        step(method, optimizer, moved._replace(images=images))

    def run_compiled() -> None:
        # A graph per branch, mode and kind of gradient; SAM goes through one twice.
        with _dynamo.config.patch(cache_size_limit=64), _functorch.patch(donated_buffer=False):
            torch.compiler.cudagraph_mark_step_begin()
            run()

    return run if compiler is None else run_compiled


def our_step(method: Method, optimizer: Optimizer, batch: Batch, *, bf16: bool = False) -> None:
    """As ``examples/papers`` trains."""
    optimizer.zero_grad()
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
        terms = method(batch)
    total(terms).backward()
    optimizer.step()


ours = partial(contestant, our_step)
ours_quick = partial(contestant, partial(our_step, bf16=True), layout=torch.channels_last)
QUICK = "bf16, channels_last"


def forwards(bench: Bench, of: type[Method], make: Make, **settings: Any) -> float:
    """What a step costs per image, in forwards of one image through the encoder.

    Counted on a narrow encoder, whatever is measured: it is a property of the algorithm.
    """
    small = replace(bench, sizes=replace(bench.sizes, batch=4, width=16, pixels=16))
    method = prepared(small, of, **settings)
    images = on_device(small, stored(small)).images
    with torch.no_grad(), evaluating(method):
        one = flops(lambda: method.encoder(images))
    return flops(make(small, method)) / one


# --- beside the released algorithms ---------------------------------------------------------------

RELEASED = "the released algorithm in fp32, our re-implementation"


def advcl(bench: Bench) -> Row:
    turns, row = beside_release(bench, AdvCL, advcl_step, (35, ADVCL_FORWARDS), (0.72, 0.30))
    fastest = min(("fp32", QUICK), key=lambda name: median(turns.times[name]))
    method, images = prepared(bench, AdvCL), on_device(bench, stored(bench)).images
    parts: dict[str, Call] = {
        "HighFreqView": lambda: method.high(images),
        "two strong views and a weak one": lambda: [
            augment(images) for augment in (method.strong, method.strong, method.weak)
        ],
    }
    shares = bench.turns(parts)
    step = median(turns.times[fastest])
    for part, goal, needs in zip(parts, (0.01, 0.10), ("", "GPU"), strict=True):
        spent = shares.times[part]
        row.claims.append(
            Claim(
                f"{part} of the same batch",
                f"that step, {fastest}",
                [t / step for t in spent],
                goal,
                ours=median(spent),
                other=step,
                needs=needs,
            )
        )
    return replace(row, times={**turns.times, **shares.times})


def gsa_rsl(bench: Bench) -> Row:
    return beside_release(bench, GSARSL, gsa_rsl_step, (34, GSA_RSL_FORWARDS), (0.65, 0.27))[1]


def beside_release(
    bench: Bench,
    of: type[Method],
    released: Step,
    costs: tuple[int, int],
    goals: tuple[float, float],
) -> tuple[Turns, Row]:
    """Our step in two precisions beside the released algorithm's, once their passes are counted."""
    theirs = partial(contestant, released)
    counted = {"ours": forwards(bench, of, ours), "released": forwards(bench, of, theirs)}
    for name, cost in zip(counted, costs, strict=True):
        agree(f"forwards per image of {of.title}, {name}", counted[name], cost, relative=0.02)
    method = prepared(bench, of)
    calls = {RELEASED: theirs, "fp32": ours, QUICK: ours_quick}
    turns = bench.turns({name: make(bench, method) for name, make in calls.items()})
    claims = [
        turns.claim(f"{of.title} step, {name}", name, RELEASED, goal)
        for name, goal in zip(("fp32", QUICK), goals, strict=True)
    ]
    return turns, Row(claims, turns.times, checks={"forwards per image": counted})


# --- SAM on one term ------------------------------------------------------------------------------

AGAIN = "pytorch_optimizer's SAM, which attacks again in its second closure"
KEPT = "pytorch_optimizer's SAM, which keeps the view and repeats every term"


def sam(bench: Bench) -> Row:
    """SimCLR with an adversarial view: SAM on the benign term, and SAM around the whole."""
    makers: dict[str, tuple[Make, bool, int]] = {  # how, SAM among the terms, forwards per image
        "SAM on one term": (ours, True, 34),
        AGAIN: (partial(classic, again=True), False, 48),
        KEPT: (partial(classic, again=False), False, 33),
    }
    calls: dict[str, Call | None] = {}
    counted = {}
    for name, (make, on_term, cost) in makers.items():
        settings = {"critic": False, "sam": on_term}
        method = prepared(bench, GSARSL, **settings)
        calls[name] = installed(lambda make=make, method=method: make(bench, method))
        if calls[name] is not None:
            counted[name] = forwards(bench, GSARSL, make, **settings)
            agree(f"forwards per image of {name}", counted[name], cost, relative=0.02)
    turns = bench.turns(calls)
    what = "SimCLR + adversarial view + SAM"
    claims = [turns.claim(what, "SAM on one term", name, 0.75) for name in (AGAIN, KEPT)]
    return Row(claims, turns.times, checks={"forwards per image": counted})


def classic(bench: Bench, method: GSARSL, *, again: bool) -> Call:
    """The same terms under an optimizer that knows nothing but the whole loss."""
    from pytorch_optimizer import SAM

    method = copy.deepcopy(method)
    climb = {"rho": method.settings.rho, "adaptive": method.settings.adaptive}
    descent = {"lr": RATE, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer = SAM(method.parameters(), SGD, **climb, **descent)
    batch = stored(bench)

    def attacked(p: Tensor, q: Tensor) -> Tensor:
        with evaluating(method), torch.no_grad():
            z = method.embed(p, "clean")
            return method.attack(q, lambda v: method.contrast(z, method.embed(v, "adversarial")))

    def run() -> None:
        images = on_device(bench, batch).images
        p, q = method.strong(images), method.second(images)
        kept = None if again else attacked(p, q)

        def closure() -> Tensor:
            hard = attacked(p, q) if kept is None else kept
            optimizer.zero_grad()
            z_p, z_q = method.embed((p, q), "clean")
            loss = method.contrast(z_p, method.embed(hard, "adversarial"))
            loss = loss + method.settings.benign_weight * method.contrast(z_p, z_q)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)

    return run


# --- images per second ----------------------------------------------------------------------------

HOW: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compiled": {},
    "CUDA graphs": {"mode": "reduce-overhead"},
}


def throughput(bench: Bench) -> Row:
    """Images per second, and the share of the device's rate that the model's operations reach."""
    size = bench.sizes.square
    a, b = torch.randn(2, size, size, device=bench.device, dtype=torch.bfloat16)
    times = bench.turns({"matrix product, bf16": lambda: a @ b}).times
    rate = 2 * size**3 / median(times["matrix product, bf16"])  # operations per millisecond
    claims: list[Claim] = []
    failed = {}
    for of in (AdvCL, GSARSL, SimCLR):
        method = prepared(bench, of)
        few = replace(bench, sizes=replace(bench.sizes, batch=4))
        operations = flops(ours(few, method)) / 4 * bench.sizes.batch
        # A CPU compiles for minutes.
        for how in HOW if bench.device.type == "cuda" else ("eager",):
            name = f"{of.title} step, {QUICK}, {how}"
            try:
                spent = bench.turns({name: ours_quick(bench, method, compiler=HOW[how])}).times
            except RuntimeError as error:  # CUDA graphs do not hold every step
                failed[name] = str(error).splitlines()[0]
                claims.append(Claim(name, "", [], note="fails"))
                continue
            times |= spent
            per_second = [1000 * bench.sizes.batch / t for t in spent[name]]
            share = [operations / t / rate for t in spent[name]]
            epoch = [EPOCH / value for value in per_second]
            product = f"a bf16 product of {size:,} × {size:,}"
            claims += [
                Claim(name, "", per_second, unit="images/s"),
                Claim(f"{name}, rate", product, share, 0.4, at_least=True, needs="GPU"),
            ]
            if of is AdvCL:
                claims.append(Claim(f"{name}, an epoch", "", epoch, 12.0, "s", needs="GPU"))
    checks = {"TFLOP/s of a bf16 product": rate / 1e9, "failed": failed}
    return Row(claims, times, checks=checks)
