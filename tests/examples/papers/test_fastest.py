"""The precision follows what the machine can do; the layout, what its convolutions do right."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from advssl.integrations.timm import backbone
from harness import fastest


@pytest.mark.parametrize("able", [False, True])
@pytest.mark.parametrize("gpu", [False, True])
def test_products_are_in_bfloat16_where_it_is_not_emulated(gpu, able, monkeypatch):
    asked = []

    def supported(**how):
        asked.append(how)
        return able

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", supported)
    assert fastest.precision() == ("bf16-mixed" if able else "32-true")
    assert asked == [{"including_emulation": False} if gpu else {}]


def test_a_processor_without_onednn_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fastest.precision() == "32-true"


def last(module: nn.Module) -> bool:
    return module.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("width", "wide"), [(2, False), (7, False), (8, True), (16, True)])
def test_channels_are_last_where_a_strided_convolution_has_a_block_of_them(width, wide):
    network = backbone(f"cifar:resnet18:{width}")
    assert fastest.laid_out(network) is network
    assert last(network) == wide


def test_few_channels_are_no_matter_without_a_strided_convolution_of_one_pixel():
    layers = [nn.Conv2d(2, 4, 3, 2), nn.Conv2d(2, 4, 1), nn.Conv2d(8, 4, 1, 2)]
    for layer in layers:
        assert fastest.laid_out(layer).weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [2, (1, 2), (2, 1)])
def test_gradients_are_right_in_the_layout_that_is_taken(stride):
    """In float64 there is no fast kernel, so that it is the oracle."""
    torch.manual_seed(0)
    for channels in (1, 3, 7, 8, 9):
        conv = nn.Conv2d(channels, 2 * channels, 1, stride, bias=False)
        exact = copy.deepcopy(conv).double()
        images = torch.rand(4, channels, 8, 8)
        fastest.laid_out(conv)(images).square().sum().backward()
        exact(images.double()).square().sum().backward()
        expected = exact.weight.grad.float()
        torch.testing.assert_close(conv.weight.grad, expected, rtol=1e-4, atol=1e-4)


FAULTS = """
import resource, torch
from harness import fastest

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (8, 64):
        held = [torch.ones(size, 1 << 18) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fastest.keep_memory()
for _ in range(5):
    faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that gives memory back")
def test_kept_memory_costs_no_page_fault_at_the_next_step():
    """Without it 216 MiB are 55,296 faults of 4 KiB; in a process of its own, which it changes."""
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(fastest.__file__).parents[1],
    )
    assert int(ran.stdout) < 100


@pytest.mark.parametrize(("platform", "asked"), [("darwin", []), ("win32", []), ("linux", [None])])
def test_memory_is_left_alone_where_there_is_no_glibc(platform, asked, monkeypatch):
    libraries = []
    monkeypatch.setattr(fastest.sys, "platform", platform)
    monkeypatch.setattr(fastest.ctypes, "CDLL", libraries.append)  # has no mallopt, as musl
    fastest.keep_memory()
    assert libraries == asked
