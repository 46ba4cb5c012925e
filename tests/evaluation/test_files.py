"""What a file holds, whatever it is called; what is no checkpoint is said; nothing in it runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pathlib
import pickle
import sys
import tarfile
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
    # torch 2.5 cannot save torch.uint16.
    "small": torch.ones(3, dtype=torch.uint8 if torch.__version__ < "2.6" else torch.uint16),
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
    with pytest.raises(ImportError, match=r'needs safetensors.*pip install "advssl\[eval\]"'):
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
        (b"\x08\x01\x12\x9e\x03\x0a\x05" + b"\x00" * 100, "TensorFlow SavedModel"),
        (b"\x81\xa6params\x82\xa4conv", "msgpack"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "MATLAB"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "an image"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "an image"),
        (b"RIFF\x24\x00\x00\x00WEBPVP8 ", "an image"),
        (b"%PDF-1.4\n%\xe2\xe3", "PDF"),
        (b"SQLite format 3\x00", "database"),
        (b"PAR1\x15\x04", "table"),
        (b"\x7fELF\x02\x01\x01", "compiled program"),
        (b"\x1c\x00\x00\x00TFL3" + b"\x00" * 100, "TensorFlow Lite"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip.*unpack"),
        (b"BZh91AY", "compressed archive"),
        (tar(), "tar archive.*unpack"),
        (npz(), r"numpy archive .*torch\.save"),
        (npy(), "one numpy array"),
        (archive(["config.json", "model.weights.h5"]), "zip archive of config.json, model.weights"),
        (archive(["code/x.py", "x/constants.pkl", "x/data.pkl"]), "TorchScript program"),
        (archive(["x/models/model.json", "x/archive_format"]), r"torch\.export.*state_dict"),
        (b"name: resnet\nlr: 0.1\n", "cannot be read, it is damaged, .*it is text"),
        (b"\x00" * 64, "cannot be read, it is damaged"),
        (bytes(range(256)), "cannot be read, it is damaged"),
    ],
)
def test_other_files_are_called_what_they_are(content, message, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


@pytest.mark.filterwarnings("ignore")  # of a single process
def test_a_checkpoint_in_parts_is_refused(tmp_path):
    import torch.distributed.checkpoint as parts

    parts.save({"weight": torch.zeros(2)}, checkpoint_id=str(tmp_path))
    for path in (tmp_path, next(tmp_path.glob("*.distcp"))):
        refused(path, r"is of a checkpoint in parts, .*dcp_to_torch_save")


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
