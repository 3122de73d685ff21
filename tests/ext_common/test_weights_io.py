import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ext_common.errors import WeightsError
from ext_common.weights_io import load_plain, load_tensors, save_tensors_atomic


class Evil:
    """Creates a file when it is unpickled by an ordinary reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 3)
        self.register_buffer("count", torch.tensor(5))
        self.width = 7
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(), Inner().half()
        self.second.proj.weight = nn.Parameter(self.second.proj.weight.t().contiguous().t())
        self.norm = nn.BatchNorm1d(3)
        self.layers = nn.ModuleList([nn.Linear(1, 1), nn.Embedding(4, 2)])
        self.free = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.first(x))


def state() -> dict:
    torch.manual_seed(0)
    return {
        "model": OrderedDict(w=torch.randn(3, 2), h=torch.randn(2).half(), i=torch.arange(3)),
        "iteration": 12,
        "names": ["a", "b"],
        "none": None,
    }


def assert_same(loaded, expected) -> None:
    assert loaded["model"].keys() == expected["model"].keys()
    for name, tensor in expected["model"].items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(loaded["model"][name], tensor)
    assert {k: v for k, v in loaded.items() if k != "model"} == {
        k: v for k, v in expected.items() if k != "model"
    }


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.bin", "model.pkl"])
def test_torch_files_come_back_whatever_their_name(tmp_path, new_format, name):
    torch.save(state(), tmp_path / name, _use_new_zipfile_serialization=new_format)
    assert_same(load_tensors(tmp_path / name), state())


def test_mapped_reading_gives_the_same(tmp_path):
    torch.save(state(), tmp_path / "m.pth")
    assert_same(load_tensors(tmp_path / "m.pth", mapped=True), state())


def test_safetensors(tmp_path):
    save_file(dict(state()["model"]), tmp_path / "m.safetensors")
    assert_same({"model": load_tensors(tmp_path / "m.safetensors")}, {"model": state()["model"]})


@pytest.mark.parametrize("mapped", [False, True])
def test_torchscript_archive_agrees_with_torch(tmp_path, mapped):
    path = tmp_path / "archive.pt"
    torch.jit.script(Outer()).save(path)
    expected = torch.jit.load(path).state_dict()
    loaded = load_tensors(path, mapped=mapped)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    loaded["free"].zero_()  # writable, and the file stays as it is
    assert torch.equal(load_tensors(path)["free"], expected["free"])


def test_recompressed_torchscript_archive_is_read_too(tmp_path):
    torch.jit.script(Inner()).save(tmp_path / "a.pt")
    repack(tmp_path / "a.pt", tmp_path / "b.pt", {}, zipfile.ZIP_DEFLATED)
    a, b = (load_tensors(tmp_path / f"{n}.pt", mapped=True) for n in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def repack(source: Path, target: Path, changed: dict, compression: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            inner = name.split("/", 1)[1]
            new.writestr(name, changed.get(inner, old.read(name)))


@pytest.mark.parametrize("protocol", range(6))
def test_detectron2_pickle(tmp_path, protocol):
    weights = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">i4"),
        "text": np.array(["ab", "c"]),
        "number": np.float64(0.5),
        "tensor": torch.arange(6.0).reshape(2, 3).t(),
        "parameter": nn.Parameter(torch.ones(2).half()),
    }
    content = {"model": weights, "__author__": "x", "matching_heuristics": True, "b": b"\xff\x00"}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol))
    loaded = load_tensors(tmp_path / "m.pkl")
    assert loaded["b"] == b"\xff\x00"
    assert loaded["matching_heuristics"] is True
    for name, value in weights.items():
        same = loaded["model"][name]
        if isinstance(value, torch.Tensor):
            assert same.dtype == value.dtype
            assert torch.equal(same, value)
        else:
            assert same.dtype == value.dtype.newbyteorder("=")
            np.testing.assert_array_equal(same, value)
    loaded["model"]["w"][0] = 3  # writable


def test_python2_pickle_of_an_array(tmp_path):
    # what Python 2's cPickle wrote for {'w': numpy.array([1., 2.], 'f')}: bytes as str
    data = np.array([1, 2], "<f4").tobytes()
    body = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"
        b"\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    (tmp_path / "m.pkl").write_bytes(body)
    np.testing.assert_array_equal(load_tensors(tmp_path / "m.pkl")["w"], np.float32([1, 2]))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_unless_asked_for(tmp_path, kind):
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    content = {"model": {"w": torch.ones(1)}, "x": Evil(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match=r"evil\.pth.*mkdir.*--unsafe-load"):
        load_tensors(path)
    assert not mark.exists()
    load_tensors(path, allow_unsafe=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "line", ["cos\nsystem\n", "cbuiltins\neval\n", "ctorch.storage\n_load_from_bytes\n"]
)
def test_code_in_a_torchscript_pickle_is_refused(tmp_path, line):
    torch.jit.script(Inner()).save(tmp_path / "a.pt")
    call = line.encode() + b"(X\x05\x00\x00\x00ls /\ntR."
    repack(tmp_path / "a.pt", tmp_path / "b.pt", {"data.pkl": call}, zipfile.ZIP_STORED)
    with pytest.raises(WeightsError, match="refused"):
        load_tensors(tmp_path / "b.pt")


def test_arrays_of_objects_and_nested_code_are_refused(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([{}, 1], dtype=object)}))
    with pytest.raises(WeightsError, match="refused"):
        load_tensors(path)

    class Nested:  # a tensor's storage bytes are themselves a torch file
        def __reduce__(self):
            stream = io.BytesIO()
            torch.save(Evil(tmp_path / "mark"), stream)
            return (torch.storage._load_from_bytes, (stream.getvalue(),))

    path.write_bytes(pickle.dumps({"w": Nested()}))
    with pytest.raises(WeightsError, match="refused"):
        load_tensors(path)
    assert not (tmp_path / "mark").exists()


def test_a_view_outside_its_storage_is_an_error(tmp_path):
    class Wide:
        def __reduce__(self):
            storage = torch.ones(2).untyped_storage()
            typed = torch.storage.TypedStorage(
                wrap_storage=storage, dtype=torch.float32, _internal=True
            )
            rebuild = torch._utils._rebuild_tensor_v2
            return (rebuild, (typed, 0, (1000, 1000), (1000, 1), False, OrderedDict()))

    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"w": Wide()}))
    with pytest.raises(WeightsError, match="out of bounds"):
        load_tensors(tmp_path / "m.pkl")


def weight_files(folder: Path) -> list[Path]:
    files = [folder / name for name in ("zip.pth", "legacy.pth", "m.safetensors", "s.pt", "m.pkl")]
    torch.save(state(), files[0])
    torch.save(state(), files[1], _use_new_zipfile_serialization=False)
    save_file(dict(state()["model"]), files[2])
    torch.jit.script(Inner()).save(files[3])
    files[4].write_bytes(pickle.dumps({"w": np.ones(50)}))
    return files


@pytest.mark.parametrize("kind", range(5))
def test_truncated_anywhere_is_an_error_that_names_the_file(tmp_path, kind):
    path = weight_files(tmp_path)[kind]
    whole = path.read_bytes()
    for length in sorted({0, 1, 5, 20, len(whole) // 3, len(whole) // 2, len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=path.name):
            load_tensors(path)


@pytest.mark.parametrize("kind", [0, 3])
def test_flipped_bits_in_tensor_data_are_noticed(tmp_path, kind):
    path = weight_files(tmp_path)[kind]
    with zipfile.ZipFile(path) as archive:
        record = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
        content = archive.read(record)
    whole = bytearray(path.read_bytes())
    whole[bytes(whole).index(content) + 2] ^= 4
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match=f"{path.name}.*data/0"):
        load_tensors(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", range(5))
def test_random_damage_is_never_anything_but_a_weights_error(tmp_path, kind):
    path = weight_files(tmp_path)[kind]
    whole, rng = path.read_bytes(), random.Random(kind)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(load_tensors(path), dict)
        except WeightsError as error:
            refused += path.name in str(error)
    assert refused > 10


def test_wrong_kinds_of_files(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth.*no such file"):
        load_tensors(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("version https://git-lfs")
    with pytest.raises(WeightsError, match="not a weight file"):
        load_tensors(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "z.pth", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(WeightsError, match="zip file without weights"):
        load_tensors(tmp_path / "z.pth")
    torch.save(torch.ones(2), tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="not a dict"):
        load_tensors(tmp_path / "bare.pth")
    assert torch.equal(load_plain(tmp_path / "bare.pth"), torch.ones(2))


@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_saving_and_loading(tmp_path, name):
    tensors = dict(state()["model"])
    save_tensors_atomic(tensors, tmp_path / name)
    assert_same({"model": load_tensors(tmp_path / name)}, {"model": tensors})
    assert [p.name for p in tmp_path.iterdir()] == [name]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / name).stat().st_mode == plain.stat().st_mode  # the umask's mode


def test_failed_save_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    save_tensors_atomic({"w": torch.ones(1)}, path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"m\.pth.*No space left"):
        save_tensors_atomic({"w": torch.zeros(1)}, path)
    monkeypatch.undo()
    assert torch.equal(load_tensors(path)["w"], torch.ones(1))
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]
    with pytest.raises(WeightsError, match="cannot be written"):
        save_tensors_atomic({}, tmp_path / "missing" / "m.pth")
