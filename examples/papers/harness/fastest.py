"""What trains fastest on this machine: the precision of products, the layout of images, memory."""

from __future__ import annotations

import ctypes
import sys
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
_BLOCK = 8  # channels that oneDNN's kernels take at once
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def precision() -> str:
    """Lightning's name of the precision in which this machine multiplies fastest.

    "bf16-mixed" where the GPU or the processor computes in bfloat16 (AVX-512, AMX, Arm's BF16),
    "32-true" where it is emulated: with AVX2 alone a step in bf16 takes ten times as long.
    """
    if torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # a processor is asked by no public name
        able = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16-mixed" if able else "32-true"


def laid_out(module: M) -> M:
    """The same module with its weights in the fastest layout that is right, in place.

    channels_last, but for networks of fewer than 8 channels: there the gradient of a 1 × 1
    convolution with a stride writes past its workspace (uxlfoundation/oneDNN#6035, with AVX2).
    """
    narrow = any(
        conv.kernel_size == (1, 1) and conv.stride > (1, 1) and conv.in_channels < _BLOCK
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d)
    )
    return module if narrow else module.to(memory_format=torch.channels_last)


def keep_memory() -> None:
    """What is freed stays with this process from now on, for the next tensor of its size.

    glibc gives large tensors back to the system, and the next step's meet a page fault for every
    4 KiB, which a small network's training on a CPU feels. Elsewhere nothing is done.
    """
    malloc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(malloc, "mallopt"):  # musl has none
        malloc.mallopt(_MMAP_MAX, 0)
        malloc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
