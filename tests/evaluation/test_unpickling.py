"""Nothing in a pickle runs, whatever it names; plain data beside the weights is passed over."""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import datetime
import decimal
import fractions
import functools
import itertools
import os
import pathlib
import pickle
import random
import re
import signal
import statistics
import string
import subprocess
import sys
import time
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from advssl.evaluation.checkpoints import load_encoder
from advssl.evaluation.files import as_tensor, read
from evaluation.test_files import ONE, STATE, holds, refused

# --- what lies beside -----------------------------------------------------------------------------

HARMLESS = {
    "array": np.arange(3.0),
    "strings": np.array(["a"]),
    "record": np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "no numbers": np.zeros(0),
    "masked": np.ma.array([1, 2]),
    "nothing": np.ma.masked,
    "objects": np.array([1, "a", None, [0.5]], dtype=object),
    "records": np.rec.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "text": np.char.array(["a"]),
    "polynomial": np.polynomial.Polynomial([1.0]),
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
    "UserDict": collections.UserDict(a=1),
    "pattern": re.compile("a"),
    "exception": KeyError("x"),
    "count": None if sys.version_info >= (3, 14) else itertools.count(3),
    "template": string.Template("a"),
    "distribution": statistics.NormalDist(),
    "signal": signal.SIGTERM,
    "machine": os.stat("."),
    "ellipsis": ...,
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
    "version": torch.__version__,
    "maximum": torch.ones(3).max(0),
    "scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)]), 3),
    "sparse": torch.ones(2).to_sparse(),
    "meta": torch.empty(2, device="meta"),
}


def test_a_table_beside_the_weights_is_passed_over(path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"loss": [1.0, 0.5], "at": pandas.Timestamp("2024-01-02")})
    torch.save({"state_dict": ONE, "table": table, "column": table["loss"]}, path)
    holds(read(path)["state_dict"], ONE)


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
        "c": np.str_("0.5"),
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


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(3), np.bool_(1), np.complex64(1j)])
def test_a_number_of_numpys_is_that_number(number, protocol, path):
    path.write_bytes(pickle.dumps({"x": [number]}, protocol))
    assert read(path)["x"] == [number.item()]
    assert type(read(path)["x"][0]) is type(number.item())


@pytest.mark.parametrize("old", ["core", "_core"])
def test_arrays_of_both_numpys_are_read(old, path):
    """numpy 2 moved the functions that a pickle names."""
    arrays = {"x": np.arange(3.0), "y": np.float32(1), "swapped": np.arange(3, dtype=">i4")}
    content = pickle.dumps(arrays, protocol=0)
    there = b"numpy._core.multiarray" if np.__version__ >= "2" else b"numpy.core.multiarray"
    assert there in content
    path.write_bytes(content.replace(there, f"numpy.{old}.multiarray".encode()))
    for name in ("x", "swapped"):
        assert as_tensor(read(path)[name]).tolist() == [0, 1, 2]


def test_what_holds_itself_is_looked_at_once(path):
    net, settings = nn.Linear(2, 2), {"mean": [0.5]}
    settings["again"], settings["list"] = settings, [settings]
    settings["list"].append(settings["list"])
    torch.save({"weights": net.state_dict(), "settings": settings}, path)
    assert load_encoder(nn.Linear(2, 2), path).place == "weights"


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


def test_an_address_that_is_called_an_object_of_numpys_is_not_looked_up(path):
    class Fake:
        def __reduce__(self):
            return np.float64(1).__reduce__()[0], (np.dtype("O"), b"12345678")

    torch.save({"state_dict": ONE, "x": Fake()}, path)
    assert vars(read(path)["x"]) == {}


def test_a_class_elsewhere_that_is_called_as_one_of_numpys_is_refused(path):
    path.write_bytes(b"\x80\x02celsewhere\nfloat64\n.")
    refused(path, "is a pickle with code .elsewhere.float64")


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
