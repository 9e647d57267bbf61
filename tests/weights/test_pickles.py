"""Checkpoints that name foreign code are refused before anything of them runs; genuine ones load."""

import copyreg
import io
import os
import pickle
import posix
import subprocess
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import _rebuild_tensor_v2
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from recipe.weights import pickles
from recipe.weights.pickles import UntrustedPickle, check_checkpoint, load_torch, parse_metadata, read_metadata

METADATA_MODULE = b"torch.distributed.checkpoint.metadata"
STATE: dict[str, Any] = {
    "state": {"model": {"net.weight": torch.arange(6.0).reshape(2, 3)}, "timestamp": {"batch": 3, "name": "run"}},
    "rng": [{"python": (3, (1, 2), None), "torch": torch.get_rng_state()}],
}


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that every payload would make."""
    return tmp_path / "it-ran"


def payloads(mark: Path) -> dict[str, Any]:
    write = f"open({str(mark)!r}, 'w').close()"
    nested = pickle.dumps(Calls(os.system, f"touch {mark}"))
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {mark}"), inner)
    return {
        "os.system": Calls(os.system, f"touch {mark}"),
        "posix.system": Calls(posix.system, f"touch {mark}"),
        "eval": Calls(eval, f"__import__('os').system('touch {mark}')"),
        "exec": Calls(exec, write),
        "getattr": Calls(getattr, "text", "upper"),
        "Popen": Calls(subprocess.Popen, ["touch", str(mark)]),
        "nested in an allowed constructor": OrderedDict(a=Calls(os.system, f"touch {mark}")),
        "a pickle in a pickle": Calls(pickle.loads, nested),
        "torch's own loader of bytes": Calls(torch.storage._load_from_bytes, inner.getvalue()),
        "hostile arguments of an allowed function": Calls(
            _rebuild_tensor_v2, Calls(os.system, f"touch {mark}"), 0, (1,), (1,), False, OrderedDict()
        ),
    }


def raw(mark: Path) -> dict[str, bytes]:
    """Pickles that the pickle module does not write."""
    command = f"touch {mark}".encode()
    short = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731
    return {
        "INST": b"(S'" + command + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + command + b"'\no.",
        "STACK_GLOBAL through the memo": b"\x80\x04" + short(b"os") + b"\x94" + short(b"system") + b"\x940"
        b"0h\x00h\x01\x93" + short(command) + b"\x85R.",
        "dotted name": b"\x80\x04"
        + short(b"torch")
        + short(b"serialization.os.system")
        + b"\x93"
        + short(command)
        + b"\x85R.",
        "extension code": b"\x80\x02\x82\x01.",
        "BUILD on a class": b"\x80\x04"
        + short(b"collections")
        + short(b"OrderedDict")
        + b"\x93N}"
        + short(b"popitem")
        + b"K\x01s\x86b.",
        "BUILD on a class in Python": b"\x80\x04"
        + short(METADATA_MODULE)
        + short(b"Metadata")
        + b"\x93N}"
        + short(b"hostile")
        + b"K\x01s\x86b.",
        "BUILD on a member of an enumeration": b"\x80\x04"
        + short(METADATA_MODULE)
        + short(b"_MEM_FORMAT_ENCODING")
        + b"\x93K\x00\x85R}"
        + short(b"_value_")
        + b"K\x01sb.",
        "dotted name of an allowed module": b"\x80\x04"
        + short(b"torch")
        + short(b"serialization._get_layout")
        + b"\x93"
        + short(b"torch.strided")
        + b"\x85R.",
        "second pickle behind": pickle.dumps({}) + pickle.dumps(Calls(os.system, command.decode())),
        "cut short": pickle.dumps({"a": [1, 2, 3]})[:-3],
        "garbage": b"\xff\x00\x01",
        "empty": b"",
        "persistent id": b"\x80\x02cos\nsystem\nQ.",
        "nested beyond reason": b"\x80\x02" + b"]" * 10 + b"(" * 100_000 + b".",
    }


def refused(action: Callable[[], Any], mark: Path) -> str:
    with pytest.raises(UntrustedPickle) as caught:
        action()
    assert not mark.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def payload(name: str, mark: Path) -> Any:
    return payloads(mark)[name]


NAMES = list(payloads(Path("x")))


@pytest.mark.parametrize("name", NAMES)
def test_foreign_code_in_a_single_file(name: str, mark: Path, tmp_path: Path):
    path = tmp_path / "ba8-rank0.pt"
    torch.save(STATE | {"extra": payload(name, mark)}, path)
    assert str(path) in refused(lambda: check_checkpoint(path), mark)
    refused(lambda: load_torch(path, "here"), mark)


@pytest.mark.parametrize("function", [os.system, eval, getattr, subprocess.Popen])
def test_messages_name_what_is_foreign(function: Callable, tmp_path: Path, mark: Path):
    path = tmp_path / "ba8-rank0.pt"
    torch.save(Calls(function, str(mark)), path)
    assert function.__name__ in refused(lambda: check_checkpoint(path), mark)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Calls(function, str(mark))))
    assert function.__name__ in refused(lambda: check_checkpoint(tmp_path), mark)


def test_what_other_libraries_allow_is_not_allowed_here(tmp_path: Path, mark: Path):
    """Importing torch's sharded tensors, for one, adds to the list of torch.load."""
    path = tmp_path / "ba8-rank0.pt"
    torch.save(Calls(subprocess.getoutput, f"touch {mark}"), path)
    with torch.serialization.safe_globals([(subprocess.getoutput, "commands.getoutput")]):
        before = torch.serialization.get_safe_globals()
        refused(lambda: check_checkpoint(path), mark)
        assert set(torch.serialization.get_safe_globals()) == set(before)
        torch.load(path, weights_only=True)
    assert mark.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_foreign_code_in_metadata(name: str, protocol: int, mark: Path, tmp_path: Path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(payload(name, mark), protocol))
    assert str(tmp_path / ".metadata") in refused(lambda: check_checkpoint(tmp_path), mark)
    refused(lambda: read_metadata(tmp_path), mark)


@pytest.mark.parametrize("name", list(raw(Path("x"))))
def test_tricks(name: str, mark: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(copyreg._inverted_registry, 1, ("os", "system"))  # pyright: ignore
    refused(lambda: parse_metadata(raw(mark)[name], "here"), mark)
    assert not hasattr(Metadata, "hostile")


@pytest.mark.parametrize("name", NAMES)
def test_foreign_code_within_a_part(name: str, mark: Path, tmp_path: Path):
    save_sharded(tmp_path, STATE | {"extra": payload(name, mark)})
    assert "__0_0.distcp" in refused(lambda: check_checkpoint(tmp_path), mark)


def save_sharded(folder: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is one process
        save(state, storage_writer=FileSystemWriter(folder), no_dist=True)


def test_genuine_ones_load(tmp_path: Path):
    path, folder = tmp_path / "ba8-rank0.pt", tmp_path / "ep0-ba8"
    torch.save(STATE, path)
    save_sharded(folder, STATE)
    check_checkpoint(path)
    check_checkpoint(folder)
    loaded = load_torch(path, "here", mmap=True)
    assert torch.equal(loaded["state"]["model"]["net.weight"], STATE["state"]["model"]["net.weight"])
    assert loaded["state"]["timestamp"] == STATE["state"]["timestamp"]
    assert read_metadata(folder).storage_data == FileSystemReader(folder).read_metadata().storage_data


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ""])
def test_parts_outside_the_folder(name: str, tmp_path: Path, mark: Path):
    save_sharded(tmp_path, STATE)
    metadata = FileSystemReader(tmp_path).read_metadata()
    assert metadata.storage_data is not None
    next(iter(metadata.storage_data.values())).relative_path = name
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert repr(name) in refused(lambda: check_checkpoint(tmp_path), mark)


def test_parts_that_are_packed(tmp_path: Path, mark: Path):
    """torch would unpack them, and read other bytes than those that were checked."""
    save_sharded(tmp_path, STATE)
    metadata = FileSystemReader(tmp_path).read_metadata()
    assert metadata.storage_data is not None
    next(iter(metadata.storage_data.values())).transform_descriptors = ["stream.zstd/1"]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "stream.zstd" in refused(lambda: check_checkpoint(tmp_path), mark)


@pytest.mark.parametrize("name", ["single/checkpoints/ba16-rank0.pt", "sharded/checkpoints/ep0-ba16"])
def test_checkpoints_of_earlier_versions_pass(name: str):
    check_checkpoint(Path(__file__).parent / "earlier" / name)


def test_parts_beyond_their_file(tmp_path: Path, mark: Path):
    save_sharded(tmp_path, STATE)
    part = tmp_path / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-1000])
    refused(lambda: check_checkpoint(tmp_path), mark)


def test_other_formats_are_refused(tmp_path: Path, mark: Path):
    old, extra = tmp_path / "old.pt", tmp_path / "extra.pt"
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    refused(lambda: check_checkpoint(old), mark)
    torch.save(STATE, extra)
    with zipfile.ZipFile(extra, "a") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(Calls(os.system, f"touch {mark}")))
    refused(lambda: check_checkpoint(extra), mark)
    polyglot = tmp_path / "polyglot.pt"
    torch.save(STATE, extra)
    polyglot.write_bytes(old.read_bytes() + extra.read_bytes())  # torch looks at the start, zipfile at the end
    refused(lambda: check_checkpoint(polyglot), mark)
    twice = tmp_path / "twice.pt"
    twice.write_bytes(extra.read_bytes())
    with zipfile.ZipFile(twice, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the name is there already
        archive.writestr(archive.namelist()[0], pickle.dumps({}))
    refused(lambda: check_checkpoint(twice), mark)
    missing = tmp_path / "nothing.pt"
    missing.write_bytes(b"not a zip")
    refused(lambda: check_checkpoint(missing), mark)


def test_the_tests_would_notice(mark: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """With the function on the lists the payload does run, so the mark that the tests look for means something."""
    monkeypatch.setattr(pickles, "METADATA_GLOBALS", pickles.METADATA_GLOBALS | {"posix.system"})
    with pytest.raises(UntrustedPickle, match="is not the metadata"):
        parse_metadata(pickle.dumps(Calls(os.system, f"touch {mark}")), "here")
    assert mark.exists()
    mark.unlink()
    monkeypatch.setattr(pickles, "SAFE_GLOBALS", [(subprocess.getoutput, "commands.getoutput")])
    torch.save(Calls(subprocess.getoutput, f"touch {mark}"), tmp_path / "ba8-rank0.pt")
    check_checkpoint(tmp_path / "ba8-rank0.pt")
    assert mark.exists()


def test_tensors_are_not_read_for_the_check(tmp_path: Path):
    path = tmp_path / "ba8-rank0.pt"
    torch.save({"weights": torch.zeros(50_000_000)}, path)
    data = bytearray(path.read_bytes())
    position = len(data) // 2
    data[position] = 1  # damage that only reading the tensor would notice
    path.write_bytes(data)
    check_checkpoint(path)
