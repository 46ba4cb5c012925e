"""Checkpoint files: their tensors and what lies beside them, by content and without running any.

A pickle names functions and classes, and whoever unpickles it calls them. Here each name stands for
a function of this module or for an object that takes what it is given and builds nothing; any other
name is code, and the file refused. So nothing of a file runs, and nothing in it can be large that
the file is not, whatever it says. That also reads what ``torch.load(weights_only=True)`` does not:
other pickle protocols, arrays and the many harmless things that scripts save beside their weights.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advssl.types import described, see

# Other files by how they begin: what they are, what to do.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a git-lfs pointer, not the file itself", "run git lfs pull"),
    (rb"\s*(?:\xef\xbb\xbf)?\s*<", "a web page or XML", "the download failed: download it again"),
    (rb"\x89HDF", "an HDF5 file (Keras, h5py)", "convert its arrays to a PyTorch state dict"),
    (rb"\x93NUMPY", "one numpy array", "give the checkpoint of the whole encoder"),
    (rb"GGUF", "a GGUF file", "convert its arrays to a PyTorch state dict"),
    (rb".{4}TFL3", "a TensorFlow Lite model", "convert its arrays to a PyTorch state dict"),
    (rb"\x08[\x01-\x20]\x12", "an ONNX model", "give the PyTorch checkpoint that it came from"),
    (rb"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (
        rb"BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!",
        "a compressed archive",
        "unpack it first",
    ),
    (rb".{257}ustar", "a tar archive", "unpack it and give the checkpoint in it"),
)

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "Untyped": torch.uint8,
}


def read(path: str | bytes | os.PathLike[Any]) -> Mapping[str, Any]:
    """What a checkpoint holds, on the CPU: tensors, and mappings that hold tensors.

    State dicts and checkpoints by ``torch.save`` (both containers, any pickle protocol), plain
    pickles of tensors or numpy arrays, and safetensors, whatever the file is called. Numbers,
    strings, lists and tuples are themselves. Other plain data of the standard library and numpy,
    and settings of Lightning and OmegaConf, are passed over: nothing of theirs is built.

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
                    content = _zipped(path) if head.startswith(b"PK\x03\x04") else _pickled(file)
        except _NoCheckpoint as error:
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
    found = value.tensor if isinstance(value, _Array) else value
    return found if isinstance(found, Tensor) else None


class _NoCheckpoint(pickle.UnpicklingError):
    """What the file is instead, and what to do."""


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
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path.name} needs safetensors: pip install safetensors") from error
    return load_file(path)


def _zipped(path: Path) -> Any:
    """``torch.save`` since PyTorch 1.6: a pickle, and a member for each storage."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next((n for n in names if n.endswith("data.pkl")), None)
        if any(name.endswith("/constants.pkl") for name in names):
            raise _NoCheckpoint(
                "a TorchScript program, which is never run here; where you trust the file, save "
                "the tensors alone: torch.save(torch.jit.load(path).state_dict(), new_path)"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise _NoCheckpoint(
                "a numpy archive (.npz), which is not read here; save its arrays by torch.save({k: "
                "torch.from_numpy(v) for k, v in numpy.load(path).items()}, new_path)"
            )
        if root is None:
            raise _NoCheckpoint(
                f"a zip archive of {', '.join(names[:6])}, no checkpoint; unpack it and give the "
                "checkpoint in it"
            )
        if sum(member.file_size for member in archive.infolist()) > 100 * path.stat().st_size:
            raise _NoCheckpoint("compressed a hundredfold, which no weights are; save it again")
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

        return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), stored).load()


def _pickled(file: IO[bytes]) -> Any:
    """``torch.save`` before PyTorch 1.6: five pickles, then the storages; or one plain pickle."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    storages: dict[str, Tensor] = {}
    widths: dict[str, int] = {}

    def stored(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        if not 0 <= numel * dtype.itemsize <= size:
            raise EOFError(f"a storage of {numel} elements in {size} bytes")
        widths[key] = dtype.itemsize
        return storages.setdefault(key, torch.empty(numel * dtype.itemsize, dtype=torch.uint8))

    first = _Unpickler(file).load()
    if first != 0x1950A86A20F9469CFC6C:  # torch's mark
        return first
    for _ in ("protocol", "system"):
        _Unpickler(file).load()
    content = _Unpickler(file, stored).load()
    for key in _Unpickler(file).load():
        (numel,) = struct.unpack("<q", file.read(8))
        room = storages[key].numpy()
        if numel * widths[key] != room.nbytes or file.readinto(room) != room.nbytes:  # type: ignore[attr-defined]
            raise EOFError(f"storage {key} is cut short")
    return content


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


# --- what names in a pickle stand for -------------------------------------------------------------


class _Storage(NamedTuple):
    bytes: Tensor
    dtype: torch.dtype


class _Inert:
    """A harmless object: takes what the file gives it and builds nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    append = extend = add = __setstate__


class _Entries(dict[Any, Any]):
    """A mapping of any class: its entries, without default factory or attributes."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*(one for one in given if isinstance(one, dict | list)))

    def __setstate__(self, state: Any) -> None: ...


class _Dtype(_Inert):
    """A numpy type: its code and byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = str(code), "="
        if "O" in self.code:
            raise _Code("numpy objects")

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array(_Inert):
    """A numpy array, as a tensor where PyTorch has its type."""

    tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, columns, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # by Python 2
        known = re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", getattr(dtype, "code", ""))
        if known and isinstance(data, bytes | bytearray) and data:
            array = np.frombuffer(data, np.dtype(dtype.code).newbyteorder(dtype.order))
            array = array.reshape(shape, order="F" if columns else "C")
            self.tensor = torch.from_numpy(array.astype(dtype.code))


class _Parameter:
    """``nn.Parameter``: its tensor."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        return data


def _array(*_: Any) -> _Array:
    return _Array()


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: str = "C") -> _Array:
    made = _Array()
    made.__setstate__((shape, dtype, order == "F", bytes(data)))
    return made


def _encoded(text: str, *_: Any) -> bytes:
    """How protocol 2 spells bytes."""
    return text.encode("latin1")


def _strided(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.bytes.view(storage.dtype).as_strided(size, stride, offset)


def _strided_of_type(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return _strided(storage._replace(dtype=rest[2]), offset, size, stride)


def _of_type(function: Callable[..., Any], _: Any, given: Any, __: Any) -> Any:
    return function(*given)


def _without_values(*_: Any) -> Tensor:
    """Quantised, sparse, nested, meta and distributed tensors: no plain values."""
    return torch.empty(0, device="meta")


def _first(value: Any, *_: Any) -> Any:
    return value


def _nested(data: bytes) -> Any:
    """A storage in a plain pickle is a file by itself."""
    return _pickled(io.BytesIO(data))


_BUILT: Mapping[str, Any] = {
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _Entries,
    "collections.defaultdict": _Entries,
    "collections.Counter": _Entries,
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch._utils._rebuild_tensor_v3": _strided_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_sparse_tensor": _without_values,
    "torch._utils._rebuild_qtensor": _without_values,
    "torch._utils._rebuild_nested_tensor": _without_values,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_values,
    "torch._utils._rebuild_wrapper_subclass": _without_values,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.nn.parameter.Parameter": _Parameter,
    "torch.storage._load_from_bytes": _nested,
    "numpy.dtype": _Dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _Inert for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of_buffer for core in ("core", "_core")},
}

# Classes of plain data, none of which is built. Names with a dot inside, as of methods, match none.
_LIGHTNING = r"(?:pytorch_lightning|lightning|lightning_fabric)"
_MAPPINGS = re.compile(
    rf"{_LIGHTNING}(?:\.\w+)*\.AttributeDict|easydict\.EasyDict|yacs\.config\.CfgNode|"
    r"addict(?:\.addict)?\.Dict|munch\.Munch|ml_collections(?:\.\w+)*\.ConfigDict"
)
_HARMLESS = re.compile(
    r"(?:builtins|__builtin__)\.(?:bool|int|long|float|complex|str|unicode|bytes|bytearray|list|"
    r"tuple|dict|set|frozenset|slice|range|xrange|object)|"
    r"collections\.(?:deque|ChainMap|UserDict|UserList|UserString)|"
    r"datetime\.(?:datetime|date|time|timedelta|timezone)|zoneinfo\.ZoneInfo\._unpickle|"
    r"time\.struct_time|decimal\.Decimal|fractions\.Fraction|uuid\.(?:UUID|SafeUUID)|"
    r"ipaddress\.\w+|pathlib(?:\._local)?\.\w+|argparse\.Namespace|types\.SimpleNamespace|"
    r"functools\.partial|random\.Random|array\.(?:array|_array_reconstructor)|"
    r"platform\.uname_result|urllib\.parse\.\w+Result|http\.HTTPStatus|typing\.\w+|"
    r"copyreg\._reconstructor|copy_reg\._reconstructor|"
    r"numpy\.random\._pickle\.__(?:randomstate|generator|bit_generator)_ctor|"
    r"numpy\.random\._\w+\.\w+|numpy\.random\.bit_generator\.\w+|"
    r"numpy\.ma\.core\._mareconstruct|numpy\.ma(?:\.core)?\.MaskedArray|"
    r"torch\.(?:Size|device|Tensor|finfo|iinfo|serialization\._get_layout|nn\.parameter\.Buffer)|"
    r"torch\.distributed(?:\.\w+)+|omegaconf(?:\.\w+)+|"
    rf"{_LIGHTNING}(?:\.\w+)+"
)


class _Code(pickle.UnpicklingError):
    """The name in a pickle that would have to be run."""


class _Unpickler(pickle._Unpickler):  # in Python: the one in C reserves what a file asks for
    """Runs a pickle's own operations; every name in it is one of ours."""

    def __init__(self, file: IO[bytes], stored: Callable[..., Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # what Python 2's arrays need
        self.stored = stored
        self.storages: dict[Any, Tensor] = {}

    def load(self) -> Any:
        try:
            return super().load()
        except _Code as error:
            raise _NoCheckpoint(
                f"a pickle with code ({error}), which is never run here; where you trust the "
                "file, load it with torch.load(path, weights_only=False) and save the tensors "
                'alone: torch.save(checkpoint["state_dict"], new_path)' + see("A pickle with code")
            ) from None

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        # Made anew at each name: a pickle may set attributes of what it names.
        if full in _BUILT:
            stands_in = _BUILT[full]
        elif module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        elif storage := re.fullmatch(r"torch\.(?:cuda\.|storage\.)?([A-Z]\w+?)Storage", full):
            return _STORAGES.get(storage[1], torch.uint8)
        elif _MAPPINGS.fullmatch(full):
            stands_in = _Entries
        elif _is_plain(module, name) or full in _allowed():
            stands_in = _Inert
        else:
            raise _Code(full)
        if isinstance(stands_in, type):
            return type(stands_in.__name__, (stands_in,), {})
        return lambda *given: stands_in(*given)

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind == "module":  # of a whole module, in old files
            return rest[0]
        dtype, key, _, numel, *view = rest
        if self.stored is None or kind != "storage":
            raise pickle.UnpicklingError(f"persistent id {kind!r}")
        if key not in self.storages:
            self.storages[key] = self.stored(key, dtype, numel)
        data = self.storages[key]
        if view and view[0] is not None:  # a part of a storage, in old files
            _, offset, size = view[0]
            data = data[offset * dtype.itemsize : (offset + size) * dtype.itemsize]
        return _Storage(data[: data.numel() // dtype.itemsize * dtype.itemsize], dtype)


def _is_plain(module: str, name: str) -> bool:
    of_numpy = module == "numpy" and isinstance(getattr(np, name, None), type)
    return of_numpy or _HARMLESS.fullmatch(f"{module}.{name}") is not None


def _allowed() -> set[str]:
    """What the caller has allowed to ``torch.load``; not built here either."""
    known = (g[0] if isinstance(g, tuple) else g for g in torch.serialization.get_safe_globals())
    return {f"{g.__module__}.{g.__qualname__}" for g in known}
