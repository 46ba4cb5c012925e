"""What a file holds, whatever it is called; what is no checkpoint is said; nothing in it runs."""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import datetime
import decimal
import fractions
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import tarfile
import time
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from advssl.evaluation.files import as_tensor, read

STATE = {
    "weight": torch.arange(6.0).view(2, 3).t(),  # not contiguous
    "half": torch.tensor([0.5, -1], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "on": torch.tensor([True, False]),
    "small": torch.ones(3, dtype=torch.uint16),
    "waves": torch.tensor([1 + 2j]),
    "none": torch.zeros(0, 4),
}
ONE = {"weight": STATE["weight"]}


def holds(content, expected=None):
    """Whether ``content`` is the state dict, to the last bit and type."""
    expected = STATE if expected is None else expected
    found = {name: as_tensor(value) for name, value in content.items()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "checkpoint.pt"


def refused(path, match: str) -> str:
    with pytest.raises(ValueError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.safetensors", "x", "x.bin"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_both_containers_and_all_protocols(name, protocol, new, tmp_path):
    path = tmp_path / name
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    holds(read(path))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_tensors_and_of_arrays(protocol, path):
    path.write_bytes(pickle.dumps(STATE, protocol))
    holds(read(path))
    arrays = {
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">f4"),
        "half": np.ones(2, dtype=np.float16),
        "on": np.array([True, False]),
        "count": np.array(7),
    }
    path.write_bytes(pickle.dumps(arrays, protocol))
    native = {k: v.astype(v.dtype.newbyteorder("=")) for k, v in arrays.items()}
    holds(read(path), {k: torch.from_numpy(v.copy()) for k, v in native.items()})


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.pt"])
def test_safetensors_under_any_name(name, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = {k: v.contiguous() for k, v in STATE.items() if k not in ("waves", "small")}
    safetensors.save_file(state, tmp_path / name)
    holds(read(tmp_path / name), state)


def test_safetensors_that_is_not_installed(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ImportError, match="pip install safetensors"):
        read(path)


def test_tensors_share_what_they_shared_and_nothing_else(path):
    whole = torch.arange(10.0)
    torch.save({"whole": whole, "part": whole[2:4], "own": nn.Parameter(torch.ones(2))}, path)
    content = read(path)
    content["whole"][2] = 100
    assert content["part"].tolist() == [100, 3]
    assert content["own"].tolist() == [1, 1]


def test_a_file_of_the_other_byte_order(path):
    torch.save({k: v for k, v in STATE.items() if k != "none"}, path)
    other = path.with_name("other.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big" if sys.byteorder == "little" else b"little"
            new.writestr(name, data)
    weight = as_tensor(read(other)["weight"])
    expected = STATE["weight"].contiguous().numpy().byteswap()
    assert weight.numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("default", ["device", "dtype"])
def test_the_callers_defaults_change_nothing(default, path):
    torch.save(STATE, path)
    torch.set_default_device("meta") if default == "device" else torch.set_default_dtype(
        torch.float64
    )
    try:
        content = read(path)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    holds(content)


@pytest.mark.parametrize("kind", [str, pathlib.Path, os.fsencode])
def test_paths_of_every_type(kind, path):
    torch.save(STATE, path)
    holds(read(kind(str(path))))


# --- what lies beside -----------------------------------------------------------------------------

HARMLESS = {
    "array": np.arange(3.0),
    "strings": np.array(["a"]),
    "record": np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "no numbers": np.zeros(0),
    "masked": np.ma.array([1, 2]),
    "float64": np.float64(0.5),
    "str_": np.str_("ä"),
    "datetime64": np.datetime64("2020-01-01"),
    "numpy type": np.float32,
    "numpy dtype": np.dtype(">f4"),
    "numpy's state": np.random.get_state(),  # noqa: NPY002
    "RandomState": np.random.RandomState(0),
    "generator": np.random.default_rng(0),
    "state": random.getstate(),
    "random": random.Random(0),
    "defaultdict": collections.defaultdict(list, loss=[1.0, 0.5]),
    "of partial": collections.defaultdict(functools.partial(collections.defaultdict, int)),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "OrderedDict": collections.OrderedDict(a=1),
    "datetime": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
    "date": datetime.date(2024, 1, 2),
    "time": datetime.time(3, 4),
    "timedelta": datetime.timedelta(hours=2),
    "struct_time": time.gmtime(0),
    "Decimal": decimal.Decimal("0.1"),
    "Fraction": fractions.Fraction(1, 3),
    "UUID": uuid.UUID(int=5),
    "path": pathlib.PosixPath("/a/b"),
    "windows": pathlib.PureWindowsPath("a/b"),
    "Namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("/a"), names={"x"}, sub=[(1, None)]),
    "SimpleNamespace": types.SimpleNamespace(lr=0.1),
    "frozenset": frozenset([1]),
    "set": {1, 2},
    "slice": slice(1, 2),
    "range": range(4),
    "complex": 1j,
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "packed": array.array("d", [1.0]),
    "long": 10**30,
    "type": float,
    "Size": torch.Size([1, 2]),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "sparse": torch.ones(2).to_sparse(),
    "meta": torch.empty(2, device="meta"),
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_plain_data_beside_the_weights_is_passed_over(value, new, protocol, path):
    content = {"state_dict": ONE, "beside": value, "inside": [({"a": value},)]}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    holds(read(path)["state_dict"], ONE)


class Settings(dict):
    pass


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "omegaconf.dictconfig.DictConfig",
        "easydict.EasyDict",
        "yacs.config.CfgNode",
    ],
)
def test_settings_of_other_libraries(name, path):
    """Lightning's, and those that solo-learn and others read by OmegaConf."""
    content = pickle.dumps({"state_dict": ONE, "settings": Settings(lr=0.1)}, protocol=2)
    ours = f"{__name__}\nSettings\n".encode()
    assert ours in content
    path.write_bytes(content.replace(ours, "{}\n{}\n".format(*name.rsplit(".", 1)).encode()))
    holds(read(path)["state_dict"], ONE)
    if "omegaconf" not in name:
        assert read(path)["settings"] == {"lr": 0.1}


def test_nothing_beside_is_built(path):
    """Mappings keep their entries; of anything else there is an object without content."""
    content = {
        "a": collections.defaultdict(list, x=[1.0]),
        "b": pathlib.PosixPath("/a/b"),
        "c": np.float64(0.5),
        "d": collections.Counter("aab"),
    }
    torch.save(content, path)
    found = read(path)
    assert found["a"] == {"x": [1.0]}
    assert "y" not in found["a"]
    with pytest.raises(KeyError):
        found["a"]["y"]
    assert found["d"] == {"a": 2, "b": 1}
    assert [vars(found[k]) for k in "bc"] == [{}, {}]


@pytest.mark.parametrize("old", ["core", "_core"])
def test_arrays_of_both_numpys_are_read(old, path):
    """numpy 2 moved the functions that a pickle names."""
    content = pickle.dumps({"x": np.arange(3.0), "y": np.float32(1)}, protocol=0)
    there = b"numpy._core.multiarray" if np.__version__ >= "2" else b"numpy.core.multiarray"
    assert there in content
    path.write_bytes(content.replace(there, f"numpy.{old}.multiarray".encode()))
    assert as_tensor(read(path)["x"]).tolist() == [0, 1, 2]


def test_what_the_caller_allows_is_passed_over_and_stays_allowed(path):
    content = {"state_dict": ONE, "extra": Malicious(path, "none")}
    torch.save(content, path)
    refused(path, "is a pickle with code .*Malicious")
    with torch.serialization.safe_globals([Malicious]):
        holds(read(path)["state_dict"], ONE)
        assert Malicious in torch.serialization.get_safe_globals()


# --- code -----------------------------------------------------------------------------------------


class Malicious:
    """On unpickling, creates a file."""

    def __init__(self, made: pathlib.Path, how: str) -> None:
        self.made, self.how = made, how

    def __reduce__(self):
        made, text = self.made, f"open({str(self.made)!r}, 'w').close()"
        return {
            "none": (Malicious, (None, "none")),
            "system": (os.system, (f"touch {made}",)),
            "open": (open, (str(made), "w")),
            "exec": (exec, (text,)),
            "eval": (eval, (text,)),
            "path": (pathlib.Path.touch, (made,)),
            "popen": (subprocess.Popen, (["touch", str(made)],)),
            "getattr": (getattr, (made, "touch")),
            "hub": (torch.hub.load, (str(made), "x")),
            "load": (torch.load, (str(made),)),
            "numpy": (np.save, (str(made), [1])),
            "jit": (torch.jit.load, (str(made),)),
        }[self.how]


HOSTILE = ["system", "open", "exec", "eval", "path", "popen", "getattr", "hub", "load", "numpy"]


@pytest.mark.parametrize("new", [True, False, None], ids=["zip", "legacy", "pickle"])
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("how", [*HOSTILE, "jit"])
def test_code_in_a_pickle_is_not_run(how, protocol, new, path):
    made = path.with_name("made")
    content = {"state_dict": ONE, "extra": Malicious(made, how)}
    if new is None:
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    message = refused(path, "is a pickle with code")
    assert "never run here" in message
    assert "weights_only=False" in message
    assert "save the tensors alone" in message
    assert not made.exists()
    if how == "exec" and new:
        torch.load(path, weights_only=False)
        assert made.exists()  # it would have


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize(
    "inside",
    [
        lambda bad: collections.defaultdict(functools.partial(int, bad)),
        lambda bad: np.array([bad], dtype=object),
        lambda bad: functools.partial(int, bad),
        lambda bad: argparse.Namespace(a=bad),
        lambda bad: types.SimpleNamespace(a=bad),
        lambda bad: {"deep": [({"er": (bad,)},)]},
    ],
    ids=["factory", "array", "partial", "Namespace", "SimpleNamespace", "deep"],
)
def test_code_inside_harmless_things_is_not_run(inside, how, path):
    made = path.with_name("made")
    torch.save({"state_dict": ONE, "extra": inside(Malicious(made, how))}, path)
    refused(path, "is a pickle with code")
    assert not made.exists()


def test_objects_of_numpy_are_refused(path):
    class Fake:
        def __reduce__(self):
            return np.float64(1).__reduce__()[0], (np.dtype("O"), b"12345678")

    for content in (Fake(), np.array([None], dtype=object)):
        torch.save({"x": content}, path)
        refused(path, "is a pickle with code .numpy objects")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickled_module_is_refused_by_its_class(new, path):
    torch.save({"model": nn.Sequential(nn.Linear(2, 2))}, path, _use_new_zipfile_serialization=new)
    refused(path, r"is a pickle with code .*torch\.nn\.modules\.container\.Sequential")


class Call:
    """A pickle that calls what it names."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


@pytest.mark.parametrize(
    "large",
    [
        Call(bytearray, (10**12,)),
        Call(range, (10**12,)),
        Call(decimal.Decimal, ("9" * 10**5,)),
        Call(list, (range(10**12),)),
        Call(np.dtype, ("V1000000000000",)),
        Call(torch.Size, ([10**12],)),
        Call(np.ndarray, ((10**12,),)),
        torch.zeros(1).expand(10**12),
    ],
    ids=["bytearray", "range", "Decimal", "list", "dtype", "Size", "ndarray", "expanded"],
)
def test_what_a_small_file_asks_for_is_not_reserved(large, path):
    torch.save({"state_dict": ONE, "large": large}, path)
    assert path.stat().st_size < 2 * 10**5
    holds(read(path)["state_dict"], ONE)


def test_a_pickles_table_of_a_size_of_its_own_choice(path):
    """C's unpickler reserves 64 GB for an entry with this number."""
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")
    assert read(path) == {}


def test_storages_that_claim_more_than_the_file_has(path):
    torch.save({"x": torch.zeros(7)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x07N") == 1  # how many elements
    path.write_bytes(content.replace(b"K\x07N", b"\x8a\x06\x00\x00\x00\x00\x00\x01N"))
    refused(path, "cannot be read, it is damaged")


def test_a_file_that_unpacks_to_a_hundred_times_its_size(path):
    torch.save({"x": torch.zeros(10**6)}, path)
    packed = path.with_name("packed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(packed, "compressed a hundredfold")


@pytest.mark.parametrize(
    "name", [b"collections\nOrderedDict", b"torch._utils\n_rebuild_tensor_v2", b"uuid\nUUID"]
)
def test_a_file_cannot_change_what_names_stand_for(name, path):
    """A pickle may set attributes of what it names: of copies that end with the reading."""
    call = b"X\x08\x00\x00\x00__call__K\x05s"  # {"__call__": 5}
    path.write_bytes(b"\x80\x02}X\x01\x00\x00\x00ac" + name + b"\nN}" + call + b"\x86bs.")
    with contextlib.suppress(ValueError):
        read(path)
    torch.save({"state_dict": STATE, "id": uuid.UUID(int=5)}, path)
    holds(read(path)["state_dict"])


# --- what is no checkpoint ------------------------------------------------------------------------


def archive(members) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for name in members:
            out.writestr(name, b"x")
    return made.getvalue()


def tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as out:
        out.addfile(tarfile.TarInfo("model.pt"))
    return made.getvalue()


def npz() -> bytes:
    made = io.BytesIO()
    np.savez(made, a=np.zeros(2))
    return made.getvalue()


def npy() -> bytes:
    made = io.BytesIO()
    np.save(made, np.zeros(2))
    return made.getvalue()


INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002"}}


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git-lfs pointer.*git lfs"),
        (b"<!DOCTYPE html><html></html>", "a web page.*download it again"),
        (b"\n  <html></html>", "a web page"),
        (json.dumps(INDEX).encode(), "index of a checkpoint in parts .model-00001-of-00002.*one"),
        (b'{"epoch": 3}', "is JSON, not tensors"),
        (b"[1, 2]", "is JSON"),
        (b"\x89HDF\r\n\x1a\n" + b"\x00" * 100, "HDF5"),
        (b"GGUF" + b"\x00" * 100, "GGUF"),
        (b"\x08\x08\x12\x07pytorch" + b"\x00" * 100, "ONNX"),
        (b"\x1c\x00\x00\x00TFL3" + b"\x00" * 100, "TensorFlow Lite"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip.*unpack"),
        (b"BZh91AY", "compressed archive"),
        (tar(), "tar archive.*unpack"),
        (npz(), r"numpy archive .*torch\.save"),
        (npy(), "one numpy array"),
        (archive(["config.json", "model.weights.h5"]), "zip archive of config.json, model.weights"),
        (archive(["code/x.py", "x/constants.pkl", "x/data.pkl"]), "TorchScript program"),
        (b"name: resnet\nlr: 0.1\n", "cannot be read, it is damaged, .*it is text"),
        (b"\x00" * 64, "cannot be read, it is damaged"),
        (bytes(range(256)), "cannot be read, it is damaged"),
    ],
)
def test_other_files_are_called_what_they_are(content, message, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of what it wants to give up
def test_a_script_is_refused(path):
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(2)), path)
    refused(path, "is a TorchScript program, which is never run here")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), 5, None, np.zeros(3)])
def test_other_objects_are_refused(content, path):
    torch.save(content, path)
    refused(path, "not a state dict")


def test_no_file(tmp_path):
    refused(tmp_path / "none.pt", "there is no file .*none.pt")
    refused(tmp_path, "is a directory; give the checkpoint file in it .it has no file")
    (tmp_path / "empty.safetensors").touch()
    refused(tmp_path / "empty.safetensors", "is empty")
    refused(tmp_path, "it has empty.safetensors")
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    refused(tmp_path / "link.pt", "is a link to .*gone.pt, where there is no file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no regular file")


@pytest.mark.parametrize("path", [None, 3, {}, STATE, nn.ReLU(), io.BytesIO()])
def test_what_is_no_path(path):
    with pytest.raises(ValueError, match="path must be that of a checkpoint file, got"):
        read(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_of_somebody_else_is_the_systems_error(path):
    torch.save(STATE, path)
    path.chmod(0)
    with pytest.raises(PermissionError):
        read(path)


@pytest.mark.parametrize("how", [True, False, "safetensors", "pickle"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_cut_short_is_refused(share, how, path):
    state = {"a": torch.zeros(300), "b": torch.zeros(5)}
    if how == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "cannot be read, it is damaged")


def test_a_flipped_bit_is_found(path):
    torch.save({"a": torch.zeros(300)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00" * 600) + 300] ^= 1
    path.write_bytes(content)
    refused(path, "cannot be read, it is damaged")
