"""Attacks: the view of an objective beside a bare loop, and of cross-entropy beside libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advssl import AdversarialViewGenerator, Linf, MultiViewNTXentLoss
from advssl.integrations.timm import backbone
from advssl.precision import uphill
from rows.measuring import Bench, Call, Claim, Disagreement, Row, agree, installed

RADIUS, STEP = 8 / 255, 2 / 255
CLASSES = 10


def network(bench: Bench, out: int) -> nn.Sequential:
    """A ResNet-18 with a linear layer, in eval mode."""
    torch.manual_seed(0)
    encoder = backbone(f"cifar:resnet18:{bench.sizes.width}")
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm's blocks begin as zero: they would be idle
            nn.init.ones_(module.weight)
    return nn.Sequential(encoder, nn.Linear(encoder.num_features, out)).eval().to(bench.device)


def photographs(bench: Bench) -> Tensor:
    """Noise in [0.1, 0.9]: no start leaves the range of an image."""
    size = bench.sizes.pixels
    torch.manual_seed(1)
    return 0.1 + 0.8 * torch.rand(bench.sizes.batch, 3, size, size, device=bench.device)


def bare_loop(images: Tensor, objective: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """As few operations as PGD can do with: what any other implementation costs at least."""
    view = (images + torch.empty_like(images).uniform_(-RADIUS, RADIUS)).clamp(0, 1)
    for _ in range(steps):
        view.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(view), view)
        delta = view.detach() - images + STEP * gradient.sign()
        view = (images + delta.clamp(-RADIUS, RADIUS)).clamp(0, 1)
    return view


def floor(bench: Bench, steps: int) -> Row:
    """A contrastive view beside the bare loop over an encoder that needs no gradient."""
    model, images = network(bench, 128), photographs(bench)
    needless = copy.deepcopy(model).requires_grad_(False)
    loss = MultiViewNTXentLoss(0.5)
    with torch.no_grad():
        z = model(images)
    adversary = AdversarialViewGenerator(Linf(RADIUS), steps, STEP)
    turns = bench.turns(
        {
            "advssl": lambda: adversary(images, lambda v: loss(model(v), z), freeze=model),
            "bare loop": lambda: bare_loop(images, lambda v: loss(needless(v), z), steps),
        }
    )
    ours, other = turns.returned.values()
    same = ((ours - other).abs() < 1e-6).float().mean().item()
    if same < 0.999:
        raise Disagreement(f"the bare loop finds another view, {same:.1%} of its pixels are ours")
    claim = turns.claim(f"PGD-{steps} view, fp32", "advssl", "bare loop", 1.03)
    return Row([claim], turns.times, checks={"pixels alike": same})


def signs(bench: Bench) -> Row:
    """In how many pixels an attack's first step goes the same way in half precision."""
    model, images = network(bench, 128), photographs(bench)
    loss = MultiViewNTXentLoss(0.5)
    view = (images + torch.empty_like(images).uniform_(-RADIUS, RADIUS)).requires_grad_()

    def step(precision: torch.dtype) -> Tensor:
        half = precision != torch.float32
        with torch.no_grad():
            z = model(images)
        with torch.autocast(bench.device.type, precision if half else None, enabled=half):
            (gradient,) = uphill(loss(model(view), z), [view])
        return gradient.sign()

    claims = []
    for mode in ("train", "eval"):
        model.train(mode == "train")
        exact = step(torch.float32)
        if (idle := (exact == 0).float().mean().item()) > 0.01:
            raise Disagreement(
                f"{idle:.0%} of the gradient is zero: there is no direction to agree"
            )
        for name, precision in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
            what = f"direction of an attack's first step, untrained encoder in {mode} mode, {name}"
            alike = (step(precision) == exact).float().mean().item()
            claims.append(Claim(what, "fp32", [alike], unit="of the pixels alike"))
    return Row(claims)


def cross_entropy(bench: Bench, steps: int) -> Row:
    """The view of a classifier's cross-entropy beside three libraries that know no other."""
    model, images = network(bench, CLASSES), photographs(bench)
    labels = torch.arange(len(images), device=bench.device) % CLASSES
    quick = copy.deepcopy(model).to(memory_format=torch.channels_last)
    packed = images.contiguous(memory_format=torch.channels_last)
    adversary = AdversarialViewGenerator(Linf(RADIUS), steps, STEP)

    def height(classifier: nn.Module, view: Tensor) -> Tensor:
        return F.cross_entropy(classifier(view), labels, reduction="none")

    def bf16() -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return adversary(packed, lambda v: height(quick, v), freeze=quick)

    turns = bench.turns(
        {
            "fp32": lambda: adversary(images, lambda v: height(model, v), freeze=model),
            "bf16, channels_last": bf16,
            **{
                name: installed(lambda make=make: make(copy.deepcopy(model), images, labels, steps))
                for name, make in PEERS.items()
            },
        }
    )
    with torch.no_grad():
        clean = height(model, images).mean().item()
        gained = {n: height(model, v).mean().item() - clean for n, v in turns.returned.items()}
    for name in turns.returned:
        # Of one start each, in float32 or not: as strong, not the same.
        agree(f"cross-entropy that {name} gains", gained[name], gained["fp32"], relative=0.1)
    what = f"PGD-{steps} of cross-entropy"
    claims = [turns.claim(f"{what}, fp32", "fp32", name, 1.0) for name in PEERS]
    quick_name = "bf16, channels_last"
    claims += [
        turns.claim(f"{what}, {quick_name}", quick_name, name, 0.45, needs="AMX") for name in PEERS
    ]
    return Row(claims, turns.times, checks={"cross-entropy": clean, "gained": gained})


def torchattacks(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Call:
    from torchattacks import PGD

    attack = PGD(model, eps=RADIUS, alpha=STEP, steps=steps)
    return lambda: attack(images, labels)


def foolbox(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Call:
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    wrapped = PyTorchModel(model, bounds=(0, 1), device=images.device)
    attack = LinfPGD(abs_stepsize=STEP, steps=steps)
    return lambda: attack(wrapped, images, labels, epsilons=RADIUS)[1]


def art(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Call:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=CLASSES,
        clip_values=(0, 1),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=RADIUS,
        eps_step=STEP,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(images),
        verbose=False,
    )
    pixels, classes = images.cpu().numpy(), labels.cpu().numpy()

    def run() -> Tensor:
        found: np.ndarray = attack.generate(pixels, classes)
        return torch.from_numpy(found).to(images.device)

    return run


PEERS = {"torchattacks": torchattacks, "foolbox": foolbox, "ART": art}
