"""Provenance: which images, which code, which machine and versions; and files that are whole."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import advssl
from advssl.extras import needed as needed
from advssl.types import Images, Labels, check_indices, check_kind

_CHUNK = 256  # images turned into bytes at once
_PACKAGES = ("timm", "lightly", "pyautoattack")  # that a number may depend on, where they are there


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write that becomes ``path`` when the block ends: all of it or, on error, nothing.

    So whenever the process is killed, ``path`` is whole: as it was before, or as it is then.

    Raises:
        OSError: where it cannot be written, as on a full disk.
    """
    path = Path(path)
    # Beside it, because a file is replaced in one step only within one file system.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        # What torch.save says of a full disk is about its own positions in the file.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        why = "the disk or a quota is full" if isinstance(error, RuntimeError) else why
        raise OSError(
            f"{path} cannot be written: {why}; what was there before is whole, make room and "
            "repeat the command"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def folder_at(place: str | os.PathLike[str], name: str = "folder") -> Path:
    """The folder ``place``, which is made if it is not there.

    Raises:
        ValueError: where none can be made, as under a file.
    """
    check_kind(name, place, str | os.PathLike)
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"no folder can be made at {name} {place}: {error.strerror}; name another"
        ) from error
    return Path(place)


class Fingerprint:
    """:func:`fingerprint` of a dataset that comes in batches: ``update`` with each, then ``str``.

    How the examples are split into batches does not matter, their order does.
    """

    def __init__(self) -> None:
        self._pixels, self._labels = hashlib.sha256(), hashlib.sha256()
        self._shape: tuple[int, ...] | None = None
        self._n = 0

    def update(self, images: Images, labels: Labels) -> None:
        """The next examples: images in [0, 1], or uint8, and one integer label each.

        Raises:
            ValueError: on other images or labels, or on images of another shape than before.
        """
        if images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
            raise ValueError(
                "images must be (B, C, H, W) in [0, 1] or uint8, "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        check_indices(len(images), labels=labels)
        shape = tuple(images.shape[1:])
        if self._shape not in (None, shape):
            raise ValueError(f"images of shape {shape} after images of shape {self._shape}")
        # All are looked at before the first counts, so a refused batch leaves no part behind.
        for content in [_pixels(chunk) for chunk in torch.split(images.detach(), _CHUNK)]:
            self._pixels.update(content)
        self._labels.update(labels.cpu().numpy().astype("<i8").tobytes())
        self._shape, self._n = shape, self._n + len(images)

    def __str__(self) -> str:
        if not self._n:
            raise ValueError("no image to fingerprint; call update first")
        head = f"{self._n} {self._shape}".encode()
        content = head + self._pixels.digest() + self._labels.digest()
        return hashlib.sha256(content).hexdigest()[:16]


def _pixels(images: Images) -> bytes:
    images = images.cpu().contiguous()
    if images.is_floating_point():
        if not bool(((images >= 0) & (images <= 1)).all()):  # a NaN is neither
            low, high = images.aminmax()
            raise ValueError(
                f"images must lie in [0, 1], got [{float(low):.3g}, {float(high):.3g}]; "
                "fingerprint them before they are normalised"
            )
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        images = (images * 255).round().to(torch.uint8)
    return images.numpy().tobytes()


def fingerprint(images: Images, labels: Labels) -> str:
    """16 hex digits that change with any pixel (as uint8), label, shape or order, and else not.

    Device, memory format and floating point type do not matter. :class:`Fingerprint` takes batches.

    Raises:
        ValueError: if images are not (B, C, H, W) in [0, 1] or uint8, or labels not B integers.
    """
    content = Fingerprint()
    content.update(images, labels)
    return str(content)


def commit() -> str | None:
    """The git commit of the working directory's repository, with "-dirty" if tracked files differ.

    None outside a repository, in one without a commit, or without git. Untracked files, such as
    what a run writes, make nothing dirty.
    """
    return _said("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip() or None


def versions() -> dict[str, str]:
    """Of this package and of those that a number may depend on, by name."""
    found = {p: _version(p) for p in ("numpy", *_PACKAGES)}
    return {
        "advssl": advssl.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, such as +cpu
        **{package: version for package, version in found.items() if version},
    }


def machine() -> dict[str, Any]:
    """What a number may depend on: processor, GPU and versions; no name of host, user or path."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {p: _version(p) for p in _PACKAGES}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{package: version for package, version in found.items() if version},
    }


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name: Linux tells it in a file, other systems through Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
