"""Checkpoint files: their tensors and what lies beside them, by content and without running any."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advssl.evaluation.unpickling import Array, NoCheckpoint, Unpickler, pickled
from advssl.extras import needed
from advssl.types import described

# Other files by how they begin: what they are, what to do.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a git-lfs pointer, not the file itself", "run git lfs pull"),
    (rb"\s*(?:\xef\xbb\xbf)?\s*<", "a web page or XML", "the download failed: download it again"),
    (rb"\x89HDF", "an HDF5 file (Keras, h5py)", "convert its arrays to a PyTorch state dict"),
    (rb"\x93NUMPY", "one numpy array", "give the checkpoint of the whole encoder"),
    (rb"GGUF", "a GGUF file", "convert its arrays to a PyTorch state dict"),
    (rb".{4}TFL3", "a TensorFlow Lite model", "convert its arrays to a PyTorch state dict"),
    (rb"\x08\x01\x12", "a TensorFlow SavedModel", "convert its arrays to a PyTorch state dict"),
    (rb"\x08[\x02-\x20]\x12", "an ONNX model", "give the PyTorch checkpoint that it came from"),
    (rb"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (
        rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!",
        "a compressed archive",
        "unpack it first",
    ),
    (rb"[\x81-\x8f][\xa1-\xbf]\w", "msgpack (Flax)", "convert its arrays to a PyTorch state dict"),
    (rb"MATLAB 5", "a MATLAB file", "convert its arrays to a PyTorch state dict"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0\0|RIFF.{4}WEBP", "an image", "give the checkpoint"),
    (rb"%PDF", "a PDF document", "give the checkpoint"),
    (rb"PAR1|ARROW1|SQLite", "a table or database", "give the checkpoint"),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", "a compiled program", "give the checkpoint"),
    (rb".{257}ustar", "a tar archive", "unpack it and give the checkpoint in it"),
)


def read(path: str | bytes | os.PathLike[Any]) -> Mapping[str, Any]:
    """What a checkpoint holds, on the CPU: tensors, and mappings that hold tensors.

    State dicts and checkpoints by ``torch.save`` (both containers, any pickle protocol), plain
    pickles of tensors or numpy arrays, and safetensors, whatever the file is called. Numbers,
    strings, lists and tuples are themselves, a namespace is a mapping. Other plain data of the
    standard library and numpy, and settings of Lightning and OmegaConf, are passed over: nothing of
    theirs is built.

    Raises:
        ValueError: if there is no such file, if it is empty, damaged, something else than a
            checkpoint (the message says what), or a pickle with code.
        PermissionError: if the system does not let it be read.
        ImportError: on safetensors without that library.
    """
    path = _file(path)
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32
        if not safetensors:
            _check_other(path, head)
        try:
            with torch.device("cpu"):  # whatever the caller's default device
                if safetensors:
                    content = _safetensors(path)
                else:
                    content = _zipped(path) if head.startswith(b"PK\x03\x04") else pickled(file)
        except NoCheckpoint as error:
            raise ValueError(f"{path} is {error}") from None
        except ImportError:
            raise
        except (
            Exception
        ) as error:  # each reader fails in its own ways on bytes that are not its own
            text = re.fullmatch(rb"[\s\x20-\x7e\x80-\xff]+", head) and head[:1] != b"\x80"
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise ValueError(
                f"{path} cannot be read, it is damaged, cut short or no checkpoint "
                f"({'it is text' if text else reason}); save or copy it again"
            ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {described(content)}, not a state dict")
    return {str(key): value for key, value in content.items()}


def as_tensor(value: Any) -> Tensor | None:
    """A tensor or numpy array of a checkpoint as a tensor, None for anything else."""
    found = value.tensor if isinstance(value, Array) else value
    return found if isinstance(found, Tensor) else None


def held_at(file: Mapping[str, Any], place: str) -> Mapping[Any, Any]:
    """What lies under a key, or under several with dots between; "" is the file itself."""
    return _mappings(file).get(place, {})


def _mappings(file: Mapping[Any, Any]) -> dict[str, Mapping[Any, Any]]:
    found, met = {"": file}, {id(file)}
    pending = [("", file)]
    while pending:
        place, above = pending.pop(0)
        for key, held in above.items():
            # An optimizer numbers its own; what holds itself has been met.
            if isinstance(held, Mapping) and isinstance(key, str) and id(held) not in met:
                met.add(id(held))
                pending.append((f"{place}.{key}" if place else key, held))
                found.setdefault(*pending[-1])
    return found


def tensors_at(file: Mapping[str, Any], place: str) -> dict[str, Tensor]:
    """The tensors of the state dict that lies there, see :func:`held_at`."""
    return _tensors_of(held_at(file, place))


def _tensors_of(held: Mapping[Any, Any]) -> dict[str, Tensor]:
    found = ((str(name), as_tensor(value)) for name, value in held.items())
    return {name: value for name, value in found if value is not None}


def places_of(file: Mapping[str, Any]) -> list[str]:
    """All places with tensors, however deep."""
    return [place for place, held in _mappings(file).items() if _tensors_of(held)]


def _file(path: Any) -> Path:
    try:
        path = Path(os.fsdecode(path))
    except TypeError:
        raise ValueError(
            f"path must be that of a checkpoint file, got {described(path)}; torch.save what is "
            "in memory, or encoder.load_state_dict it"
        ) from None
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to {os.readlink(path)}, where there is no file")
    if not path.exists():
        raise ValueError(f"there is no file {path}; check the path of the checkpoint")
    folder = path.parent if path.suffix == ".distcp" else path
    if (folder / ".metadata").is_file():
        raise ValueError(
            f"{path} is of a checkpoint in parts, by torch.distributed.checkpoint; where you trust "
            "it, make one file of its folder: "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, new_path)"
        )
    if path.is_dir():
        names = sorted(inside.name for inside in path.iterdir() if inside.is_file())
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise ValueError(
            f"{path} is a directory; give the checkpoint file in it (it has {shown or 'no file'})"
        )
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; give the checkpoint's own path")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; save or copy the checkpoint again")
    return path


def _check_other(path: Path, head: bytes) -> None:
    for beginning, what, do in _OTHERS:
        if re.match(beginning, head, re.DOTALL):
            raise ValueError(f"{path} is {what}, which is not read here; {do}")
    if re.match(rb"\s*[\[{]\s*[\"\[\]{}\d]", head):
        try:
            index = json.loads(path.read_bytes())["weight_map"].values()
            what = f"the index of a checkpoint in parts ({', '.join(sorted(set(index))[:6])})"
        except Exception:
            what = "JSON"
        raise ValueError(f"{path} is {what}, not tensors; save all of them to one file")


# --- containers -----------------------------------------------------------------------------------


def _safetensors(path: Path) -> Any:
    return needed("safetensors.torch", path.name).load_file(path)


def _zipped(path: Path) -> Any:
    """``torch.save`` since PyTorch 1.6: a pickle, and a member for each storage."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next((n for n in names if n.endswith("data.pkl")), None)
        if any(name.endswith("/constants.pkl") for name in names):
            raise NoCheckpoint(
                "a TorchScript program, which is never run here; where you trust the file, save "
                "the tensors alone: torch.save(torch.jit.load(path).state_dict(), new_path)"
            )
        if any(name.endswith("/archive_format") for name in names):
            raise NoCheckpoint(
                "a program of torch.export, which is never run here; where you trust the file, "
                "save the tensors alone: torch.save(torch.export.load(path).state_dict, new_path)"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise NoCheckpoint(
                "a numpy archive (.npz), which is not read here; save its arrays by torch.save({k: "
                "torch.from_numpy(v) for k, v in numpy.load(path).items()}, new_path)"
            )
        if root is None:
            raise NoCheckpoint(
                f"a zip archive of {', '.join(names[:6])}, no checkpoint; unpack it and give the "
                "checkpoint in it"
            )
        if sum(member.file_size for member in archive.infolist()) > 100 * path.stat().st_size:
            raise NoCheckpoint("compressed a hundredfold, which no weights are; save it again")
        root = root.removesuffix("data.pkl")
        swapped = f"{root}byteorder" in names and (
            archive.read(f"{root}byteorder").decode() != sys.byteorder
        )

        def stored(key: str, dtype: torch.dtype, _: int) -> Tensor:
            data = archive.read(f"{root}data/{key}")
            if swapped:
                width = dtype.itemsize // (2 if dtype.is_complex else 1)
                data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
            return _bytes(data)

        return Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), stored).load()


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
