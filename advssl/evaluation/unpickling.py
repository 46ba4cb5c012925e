"""Pickles: their own operations and tensors, and nothing that they name.

A pickle names functions and classes, and whoever unpickles it calls them. Here each name stands for
a function of this module or for an object that takes what it is given and builds nothing; any other
name is code, and the file refused. So nothing of a file runs, and nothing in it can be large that
the file is not, whatever it says. That also reads what ``torch.load(weights_only=True)`` does not:
other pickle protocols, arrays and the many harmless things that scripts save beside their weights.
"""

from __future__ import annotations

import _compat_pickle
import io
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advssl.types import see

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


class NoCheckpoint(pickle.UnpicklingError):
    """What the file is instead, and what to do."""


class _Code(pickle.UnpicklingError):
    """The name in a pickle that would have to be run."""


def pickled(file: IO[bytes]) -> Any:
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

    first = Unpickler(file).load()
    if first != 0x1950A86A20F9469CFC6C:  # torch's mark
        return first
    for _ in ("protocol", "system"):
        Unpickler(file).load()
    content = Unpickler(file, stored).load()
    for key in Unpickler(file).load():
        (numel,) = struct.unpack("<q", file.read(8))
        room = storages[key].numpy()
        if numel * widths[key] != room.nbytes or file.readinto(room) != room.nbytes:  # type: ignore[attr-defined]
            raise EOFError(f"storage {key} is cut short")
    return content


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


class _Settings(_Entries):
    """A namespace: its attributes as entries."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


class Node(_Inert):
    """One of OmegaConf's: the entries, elements or number that it holds."""

    held: Any = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.held = state.get("_content", state.get("_val"))


class _Dtype(_Inert):
    """A numpy type: its code and byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class Array(_Inert):
    """A numpy array, as a tensor where PyTorch has its type."""

    tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, dtype, columns, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # by Python 2
        values = _values(dtype, data)
        if values is not None:
            array = values.reshape(shape, order="F" if columns else "C")
            self.tensor = torch.from_numpy(array)


def _values(dtype: Any, data: Any) -> Any:
    """A flat array of numbers that PyTorch has too, in this machine's byte order; else None."""
    known = re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16", getattr(dtype, "code", ""))
    if not known or not isinstance(data, bytes | bytearray) or not data:
        return None  # objects, which have been read like everything else, are a list
    array = np.frombuffer(data, np.dtype(dtype.code).newbyteorder(dtype.order))
    return array.astype(dtype.code)


class _Parameter:
    """``nn.Parameter``: its tensor."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        return data


def _array(*_: Any) -> Array:
    return Array()


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: str = "C") -> Array:
    made = Array()
    made.__setstate__((shape, dtype, order == "F", bytes(data)))
    return made


def _number(dtype: Any = None, data: Any = None, *_: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data  # by Python 2
    values = _values(dtype, data)
    return _Inert() if values is None or len(values) != 1 else values[0].item()


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
    return pickled(io.BytesIO(data))


_BUILT: Mapping[str, Any] = {
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _Entries,
    "collections.defaultdict": _Entries,
    "collections.Counter": _Entries,
    "argparse.Namespace": _Settings,
    "types.SimpleNamespace": _Settings,
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
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of_buffer for core in ("core", "_core")},
}

_NODES = re.compile(r"omegaconf\.(?:dictconfig\.DictConfig|listconfig\.ListConfig|nodes\.\w+Node)")
# Classes of plain data, none of which is built. Names with a dot inside, as of methods, match none.
_LIGHTNING = r"(?:pytorch_lightning|lightning|lightning_fabric)"
_MAPPINGS = re.compile(
    rf"{_LIGHTNING}(?:\.\w+)*\.AttributeDict|easydict\.EasyDict|yacs\.config\.CfgNode|"
    r"addict(?:\.addict)?\.Dict|munch\.Munch|ml_collections(?:\.\w+)*\.ConfigDict"
)
_HARMLESS = re.compile(
    r"builtins\.(?:bool|int|long|float|complex|str|unicode|bytes|bytearray|list|tuple|dict|set|"
    r"frozenset|slice|range|object|Ellipsis|NotImplemented|\w+(?:Error|Exception|Warning))|"
    r"collections\.(?:deque|ChainMap|UserDict|UserList|UserString)|"
    r"(?:os|posix|nt)\.\w+_(?:result|size)|re\._compile|re\.RegexFlag|signal\.\w+|"
    r"itertools\.\w+|statistics\.NormalDist|string\.Template|operator\.(?:item|attr)getter|"
    r"datetime\.(?:datetime|date|time|timedelta|timezone)|zoneinfo\.ZoneInfo\._unpickle|"
    r"time\.struct_time|decimal\.Decimal|fractions\.Fraction|uuid\.(?:UUID|SafeUUID)|"
    r"ipaddress\.\w+|pathlib(?:\._local)?\.\w+|"
    r"functools\.partial|random\.Random|array\.(?:array|_array_reconstructor)|"
    r"platform\.uname_result|urllib\.parse\.\w+Result|http\.HTTPStatus|typing\.\w+|"
    r"copyreg\._reconstructor|"
    r"numpy\.random\._pickle\.__(?:randomstate|generator|bit_generator)_ctor|"
    r"numpy\.random\._\w+\.\w+|numpy\.random\.bit_generator\.\w+|"
    r"numpy\.ma\.core\._mareconstruct|numpy\.ma(?:\.core)?\.Masked\w+|"
    r"numpy\.(?:rec|char|_?core\.(?:records|defchararray)|polynomial\.\w+|matrixlib\.\w+)\.\w+|"
    r"pandas(?:\.\w+)+|"
    r"torch\.(?:Size|device|Tensor|finfo|iinfo|serialization\._get_layout|per_\w+|nn\.parameter\.Buffer|"
    r"torch_version\.TorchVersion|return_types\.\w+)|torch\.optim(?:\.\w+)+|"
    r"torch\.distributed(?:\.\w+)+|omegaconf(?:\.\w+)+|"
    rf"{_LIGHTNING}(?:\.\w+)+"
)


class Unpickler(pickle._Unpickler):  # in Python: the one in C reserves what a file asks for
    """Runs a pickle's own operations; every name in it is one of ours."""

    def __init__(self, file: IO[bytes], stored: Callable[..., Tensor] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # what Python 2's arrays need
        self.stored = stored
        self.storages: dict[Any, Tensor] = {}

    def load(self) -> Any:
        try:
            return super().load()
        except _Code as error:
            raise NoCheckpoint(
                f"a pickle with code ({error}), which is never run here; where you trust the "
                "file, load it with torch.load(path, weights_only=False) and save the tensors "
                'alone: torch.save(checkpoint["state_dict"], new_path)' + see("A pickle with code")
            ) from None

    def find_class(self, module: str, name: str) -> Any:
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)  # as Python 2 called it
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
        elif _NODES.fullmatch(full):
            stands_in = Node
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
