"""Identity: all that a result depends on, as a hash that another process finds again."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import io
import json
import re
import secrets
import sys
import types
import weakref
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

import advssl
from advssl.evaluation.datasets import InMemory
from advssl.evaluation.folders import Folder
from advssl.evaluation.provenance import replacing
from advssl.modes import evaluating, random_state_kept, seeded_state
from advssl.reaching import names_in

_DEPENDED_ON = (
    *("torchvision", "timm", "kornia", "lightly", "numpy", "pillow", "scipy", "scikit-learn"),
    "pyautoattack",
)
# What every module has, and what torch.compile and Lightning's Fabric leave there: no content.
_COMPILED = {"_compiled_call_impl", "_is_torch_compile", "_compile_kwargs"}
_BOOKKEEPING = {*vars(nn.Module()), *_COMPILED}
_GENERATED = {"_code", "_lineno_map", "_prologue_start"}  # from a graph
_NO_CODE = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__"),
    *("__annotate__", "__annotate_func__", "__annotations_cache__", "__firstlineno__"),
    *("__static_attributes__", "__match_args__", "_abc_impl", "__slotnames__"),
}
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile's
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+|(?<=id=)\d+")
_MANGLED = re.compile(rb"___torch_mangle_\d+\.")  # by how much the process had scripted before
_TORCHVISIONS = "torchvision.datasets.folder"  # where its ImageFolder is
_ROWS = 4096  # images hashed at once


def fingerprint_of(*parts: Any) -> str:
    """64 hex digits that change with any part's content, and are the same in another process.

    Content is what Python objects hold, however deep: numbers, text, containers, tensors and arrays
    by value; modules by weights, buffers, plain attributes and their classes; functions and classes
    by their code, what they close over and the globals they name, up to installed packages, which
    are known by name (:func:`identity_of` adds their versions). Where it is does not count: device,
    memory format, address, ``requires_grad``, train or eval mode; nor do hooks on modules.
    """
    return _Content().of(parts).hex()


def identity_of(*parts: Any) -> str:
    """:func:`fingerprint_of` the parts and of the versions of the packages that compute with them.

    advssl's version is its source, without comments and docstrings.
    """
    content = _Content()
    digest = content.of(parts)
    met = sorted(name for name in content.packages if name in sys.modules)
    versions = {name: str(getattr(sys.modules[name], "__version__", "")) for name in met}
    versions |= {name: _version(name) for name in _DEPENDED_ON}
    versions |= {"torch": str(torch.__version__), "advssl": _source()}
    return fingerprint_of(digest, sorted(versions.items()))


def classifier_fingerprint(classifier: nn.Module) -> str:
    """:func:`fingerprint_of` a classifier, whatever wraps it: compiled or in parallel, it is it."""
    return fingerprint_of(classifier)


def files_of(dataset: Any) -> list[Path] | None:
    """The file of each sample, where nothing else is read for one; else None."""
    read = getattr(type(dataset), "__getitem__", None)
    # A method of one's own may read a mask or a box beside the image.
    if read is not Folder.__getitem__ and getattr(read, "__module__", "") != _TORCHVISIONS:
        return None
    listed = getattr(dataset, "samples", None)
    if not isinstance(listed, list) or not listed:
        return None
    first = [one[0] if isinstance(one, tuple | list) and one else one for one in listed]
    if not all(isinstance(one, str | Path) for one in first):
        return None
    paths = [Path(one) for one in first]
    return paths if all(path.is_file() for path in paths) else None


def dataset_fingerprint(dataset: Dataset[Any]) -> str:
    """:func:`fingerprint_of` every sample of a dataset, in order.

    Read without decoding where that is possible: stored tensors by their bytes, a folder of images
    (ours, or one that reads samples as torchvision's does) by the files' bytes, its loader and its
    transforms, a subset by the samples it has. Of any other dataset every sample is read, with the
    generators of torch, numpy and Python seeded.
    """
    digest = hashlib.sha256()
    for part in _samples(dataset, None):
        digest.update(part.encode())
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path``, whatever stands there; a folder is moved aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        yield partial
        if path.is_dir():
            path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside"))


def keep(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write plain data and tensors, all of them or nothing, whenever the process is killed.

    Args:
        path: if it ends in ".json", the state is plain JSON, and comes back as such.
        identity: of what the state depends on, see :func:`identity_of`.
        state: what :func:`kept` gives back under the same identity.
    """
    as_json = path.suffix == ".json"
    if as_json:
        state = json.loads(json.dumps(state))  # as it comes back: a tuple is a list
    sealed = {**state, "seal": fingerprint_of(identity, state)}
    with whole_file(path) as partial:
        if as_json:
            partial.write_text(json.dumps(sealed), encoding="utf-8")
        else:
            torch.save(sealed, partial)


def kept(path: Path, identity: str) -> dict[str, Any] | None:
    """What :func:`keep` wrote there under this identity, whole and unchanged; else None.

    The one reader of all that is kept, which never raises: no file, an empty or a cut one, one that
    cannot be read, another's, an older version's, one where anything was changed are all None, and
    what they held is computed again.
    """
    try:
        if path.suffix == ".json":
            state = json.loads(path.read_text(encoding="utf-8"))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        seal = state.pop("seal")
        return state if seal == fingerprint_of(identity, state) else None
    except Exception:  # what torch raises of half a file has no end
        return None


class _Content:
    """Objects to hashes. A hash is made of a kind and of the hashes of what the object holds."""

    def __init__(self) -> None:
        self.packages: set[str] = set()
        self._done: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        self._alive: list[Any] = []  # an address is a name as long as its object lives

    def of(self, value: Any) -> bytes:
        while type(value).__name__ in _WRAPPERS and isinstance(value, nn.Module):
            value = getattr(value, _WRAPPERS[type(value).__name__])
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:  # inside itself: so many levels up
            return f"{len(self._open) - self._open[key]} up".encode()
        self._open[key] = len(self._open)
        digest = hashlib.sha256(type(value).__name__.encode())
        for part in self._parts(value):
            digest.update(self.of(*part) if isinstance(part, tuple) else part)
        del self._open[key]
        self._alive.append(value)
        self._done[key] = digest.digest()
        return self._done[key]

    def _parts(self, value: Any) -> Iterator[Any]:
        """Of an object: bytes as they are, and other objects as tuples of one."""
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            yield repr(value).encode(errors="backslashreplace")
        elif isinstance(value, Tensor):
            yield from _tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield f"{value.dtype} {value.shape}".encode()
            yield np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        elif type(value) in (list, tuple):
            yield from _each(value)
        elif isinstance(value, set | frozenset):
            yield b"".join(sorted(map(self.of, value)))
        elif type(value) in (dict, types.MappingProxyType):
            yield from _each(one for item in value.items() for one in item)
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, type | types.FunctionType | types.ModuleType):
            yield from self._code(value)
        elif isinstance(value, types.CodeType):
            yield value.co_code
            yield from _each((value.co_consts, value.co_names))
        elif isinstance(value, types.MethodType):
            yield from _each((value.__func__, value.__self__))
        elif isinstance(value, property | staticmethod | classmethod | cached_property):
            names = ("fget", "fset", "__func__", "func")
            yield from _each(getattr(value, name, None) for name in names)
        elif isinstance(value, functools.partial):  # its pickle tells whether it was looked into
            yield from _each((value.func, value.args, value.keywords, vars(value)))
        elif isinstance(value, torch.jit.ScriptFunction):
            yield str(value.code).encode()
        elif isinstance(value, torch.Generator):
            yield (value.get_state(),)
        elif not isinstance(value, torch.device | weakref.ref):
            yield from self._any(value)

    def _module(self, module: Any) -> Iterator[Any]:
        if isinstance(module, torch.jit.ScriptModule):
            yield from _scripted(module)
            return
        held: dict[str, Any] = {}
        module._save_to_state_dict(held, "", True)
        hooks = module._forward_pre_hooks.values()
        # Computed from parameters before each forward: old weight norm, spectral norm, pruning.
        derived = {getattr(h, name, None) for h in hooks for name in ("name", "_tensor_name")}
        hidden = _BOOKKEEPING | derived
        state = _state_of(module)
        if isinstance(module, torch.fx.GraphModule):  # torchvision's has a graph for each mode
            graphs = {name: one for name, one in state.items() if isinstance(one, torch.fx.Graph)}
            hidden = hidden | _GENERATED | graphs.keys()
            for graph in dict.fromkeys(graphs.values()):
                yield graph.python_code("self").src.encode()
        plain = {name: one for name, one in state.items() if name not in hidden}
        yield _ADDRESS.sub("", module.extra_repr()).encode()
        yield from _each((type(module), {**held, **module._buffers}, dict(module._modules), plain))

    def _code(self, value: Any) -> Iterator[Any]:
        """Of a class, a function or a file, as far as it is not an installed package's."""
        home = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        package = str(home).partition(".")[0]
        named = getattr(value, "__qualname__", value.__name__)
        if isinstance(value, type):
            yield from _each(value.__bases__)
        if _installed(package):
            self.packages.add(package)
            yield f"{home} {named}".encode()
        elif isinstance(value, type):
            yield named.encode()
            own = {k: v for k, v in vars(value).items() if k not in _NO_CODE}
            slots = types.GetSetDescriptorType, types.MemberDescriptorType
            yield from _each(i for i in own.items() if not isinstance(i[1], slots))
        elif isinstance(value, types.FunctionType):
            yield from _each((value.__code__, value.__defaults__, value.__kwdefaults__))
            yield from _each(map(_held_by, value.__closure__ or ()))
            yield from _each(_globals_of(value))
        else:
            yield named.encode()  # a file of one's own: a function says what it takes from it

    def _any(self, value: Any) -> Iterator[Any]:
        """As pickle would take it apart; what it cannot, by its attributes."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            yield from _each((type(value), dict(getattr(value, "__dict__", {}))))
            return
        if isinstance(reduced, str):
            yield reduced.encode()
            yield from _each([getattr(value, "__wrapped__", None)])
            return
        yield from _each(list(one) if isinstance(one, Iterator) else one for one in reduced)


def _each(values: Iterable[Any]) -> Iterator[tuple[Any]]:
    return ((value,) for value in values)


def _tensor(value: Tensor) -> Iterator[Any]:
    if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
        return
    yield f"{value.dtype} {tuple(value.shape)}".encode()
    value = value.detach()
    if value.is_quantized:
        yield f"{value.qscheme()}".encode()
        value = value.dequantize()
    if value.layout != torch.strided:
        value = value.to_dense()
    if not value.is_meta:
        # Through a flat view of bytes, because numpy has no bfloat16.
        flat = value.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy()


def _scripted(module: Any) -> Iterator[bytes]:
    with evaluating(module):  # the mode is saved too
        saved = module.save_to_buffer()
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        for name in sorted(archive.namelist()):
            inside = name.partition("/")[2]
            if inside.startswith(("code/", "data", "constants")) and "debug" not in inside:
                yield _MANGLED.sub(b"", archive.read(name))


def _state_of(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, without those it does not want copied, such as a trainer."""
    if "__getstate__" in {name for kind in type(module).__mro__[:-1] for name in vars(kind)}:
        try:
            state: Any = module.__getstate__()  # type: ignore[no-untyped-call]
        except Exception:  # one that refuses, as parametrized modules do
            state = None
        if isinstance(state, dict):
            return state
    return dict(vars(module))


def _held_by(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = names_in(function)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, types.ModuleType) and not _installed(value.__name__):
            yield from ((n, getattr(value, n)) for n in sorted(names) if hasattr(value, n))


@cache
def _installed(module: str) -> bool:
    package = module.partition(".")[0]
    if package in {"advssl", "torch", "builtins", *sys.stdlib_module_names} - {"__main__"}:
        return True
    found = sys.modules.get(package)
    places = [getattr(found, "__file__", None) or "", *map(str, getattr(found, "__path__", []))]
    return any({"site-packages", "dist-packages"} & {*Path(place).parts} for place in places)


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def _source() -> str:
    digest, folder = hashlib.sha256(), Path(inspect.getfile(advssl)).parent
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            match getattr(node, "body", None):
                case [ast.Expr(value=ast.Constant()), *rest]:  # a docstring
                    node.body = rest  # type: ignore[attr-defined]
        digest.update(f"{path.relative_to(folder).as_posix()} {ast.dump(tree)}".encode())
    return digest.hexdigest()


def _samples(dataset: Any, rows: Sequence[int] | None) -> Iterator[str]:
    """Hashes of parts of a dataset that are all of it together; of ``rows``, if not all."""
    if isinstance(dataset, Subset):
        indices = list(map(int, dataset.indices))
        yield from _samples(
            dataset.dataset, indices if rows is None else [indices[i] for i in rows]
        )
        return
    if isinstance(dataset, ConcatDataset) and rows is None:
        for part in dataset.datasets:
            yield from _samples(part, None)
        return
    every = range(len(dataset)) if rows is None else rows
    yield str(len(every))
    files = files_of(dataset)
    if type(dataset) is InMemory:
        yield fingerprint_of(dataset.size, [dataset.targets[i] for i in every])
        for start in range(0, len(every), _ROWS):
            yield fingerprint_of(dataset.images[torch.tensor(every[start : start + _ROWS])])
    elif files is not None:
        listed = dataset.samples
        known: Any = getattr(dataset, "targets", None)
        by_row = isinstance(known, list) and len(known) == len(files)
        # Where they are is no content; "imgs" is torchvision's second name of "samples".
        content = {"root", "places"} | ({"targets"} if by_row else set())
        held = vars(dataset).items()
        plain = {name: one for name, one in held if name not in content and one is not listed}
        yield fingerprint_of(type(dataset), plain)
        for i in every:
            labels = listed[i][1:] if isinstance(listed[i], tuple | list) else ()
            yield fingerprint_of(files[i].read_bytes(), [*labels], known[i] if by_row else None)
    else:
        cpu = torch.device("cpu")
        seeded = seeded_state(cpu, torch.Generator("cpu").manual_seed(0))
        with torch.random.fork_rng(), random_state_kept(cpu, seeded):
            torch.manual_seed(0)
            for i in every:
                yield fingerprint_of(dataset[i])
