"""Hostile files: hundreds of them leave no trace, take neither memory nor minutes, and get one line each."""

import functools
import io
import os
import pickle
import pickletools
import random
import resource
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import small_snapshots
from helpers.published_pickles import (
    Persistent,
    archived,
    official_modules,
    pickled,
    snapshot_table,
    training_table,
    write_published,
)
from recipe.edm2.networks.precond import Precond
from recipe.weights.inert_pickles import MOST_OPERATIONS
from recipe.weights.official import OfficialError, read_official
from recipe.weights.official_training import read_training_state

SMALLER: dict[str, Any] = dict(
    model_channels=8, channel_mult=[1], attn_resolutions=[], channels_per_head=8, logvar_channels=4
)
NETWORK = {**small_snapshots.NETWORK, **SMALLER}
CANARY = "EDM2_CANARY"
SECONDS = 5.0  # of the processor: others may be busy


def network(seed: int) -> Precond:
    return small_snapshots.small_network(seed, **SMALLER)


def read_state(path: Path) -> object:
    return read_training_state(path, NETWORK)


class Calls:
    """Pickles as a call of the function that a name stands for."""

    def __init__(self, name: str, *arguments: Any):
        module, _, attribute = name.rpartition(".")
        self.call = getattr(sys.modules.get(module) or __import__(module), attribute), arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return self.call


def calls(mark: Path) -> dict[str, Any]:
    """Each would make the file `mark` or set a variable, if anything of it were called."""
    source = f"import os; os.environ[{CANARY!r}] = '1'; open({str(mark)!r}, 'w').close()"
    hostile = Calls("posix.system", f"touch {mark}")
    old = io.BytesIO()
    torch.save(hostile, old, _use_new_zipfile_serialization=False)
    return {
        "system": hostile,
        "exec": Calls("builtins.exec", source),
        "eval": Calls("builtins.eval", f"exec({source!r})"),
        "Popen": Calls("subprocess.Popen", ["touch", str(mark)]),
        "getattr": Calls("builtins.getattr", "", "upper"),
        "import": Calls("importlib.import_module", "antigravity"),
        "open": Calls("io.open", str(mark), "w"),
        "putenv": Calls("os.putenv", CANARY, "1"),
        "pickle in a pickle": Calls("pickle.loads", pickle.dumps(hostile)),
        "torch.load": Calls("torch.load", str(mark)),
        "bytes of torch.save": Calls("torch.storage._load_from_bytes", old.getvalue()),
        "partial": functools.partial(os.system, f"touch {mark}"),
        "method": Calls("operator.methodcaller", "system", f"touch {mark}"),
    }


PLACES = (
    "top", "key beside", "dataset", "encoder", "loss", "source", "argument", "attribute", "parameter", "buffer",
    "module", "deep module", "hooks", "nested", "instead",
)  # fmt: skip


def within(value: Any, only: str | None = None) -> dict[str, Any]:
    """A published file's table with `value` in each of the places that one has, or in one of them."""
    places = {}
    for name in PLACES:
        if only not in (None, name):
            continue
        table = snapshot_table(network(0), NETWORK)
        state = table["ema"].meta["state"]
        unet = state["_modules"]["unet"].meta["state"]
        match name:
            case "top":
                table = value
            case "key beside":
                table["extra"] = value
            case "dataset":
                table["dataset_kwargs"]["path"] = value
            case "encoder" | "loss":
                table["loss_fn" if name == "loss" else "encoder"].meta["state"]["scale"] = value
            case "source":
                table["ema"].meta["module_src"] = value
            case "argument":
                state["_init_kwargs"]["img_channels"] = value
            case "attribute":
                state["sigma_data"] = value
            case "parameter":
                unet["_parameters"]["out_gain"] = value
            case "buffer":
                unet["_modules"]["emb_fourier"].meta["state"]["_buffers"]["freqs"] = value
            case "module":
                state["_modules"]["unet"] = value
            case "deep module":
                unet["_modules"]["enc"]._modules["8x8_conv"] = value
            case "hooks":
                state["_forward_hooks"] = {0: value}
            case "nested":
                table["dataset_kwargs"]["path"] = [({"a": [(value,)]},)] * 3
            case "instead":
                table["ema"] = value
        places[name] = table
    return places


def examined(read: Callable[[Path], object], path: Path, mark: Path) -> str | None:
    """The one line with which a file is refused, None if it is not; it may leave nothing and not take long."""
    modules, started = set(sys.modules), time.process_time()
    try:
        read(path)
        message = None
    except OfficialError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and len(message) < 600 + len(str(path)), message
        assert message.isprintable(), message
    assert not mark.exists() and CANARY not in os.environ
    assert not {
        name for name in set(sys.modules) - modules if name.split(".")[0] in ("dnnlib", "torch_utils", "antigravity")
    }
    assert time.process_time() - started < SECONDS
    return message


def refused(data: bytes, folder: Path, read: Callable[[Path], object] = read_official) -> str:
    path = folder / "a.pkl"
    path.write_bytes(data)
    message = examined(read, path, folder / "mark")
    assert message is not None
    return message


CALLS = list(calls(Path("x")))
PLACES = list(within(None))


@pytest.mark.parametrize("place", PLACES)
def test_foreign_names_anywhere(place: str, tmp_path: Path):
    """13 names in each of 15 places."""
    for call, hostile in calls(tmp_path / "mark").items():
        path = tmp_path / "a.pkl"
        path.write_bytes(pickled(within(hostile, place)[place]))
        message = examined(read_official, path, tmp_path / "mark")
        # Bytes for torch's own reader are looked at only where a tensor or an argument is wanted.
        looked_at = call != "bytes of torch.save" or place in LOOKED_AT
        assert (message is not None) == looked_at, (call, place, message)


LOOKED_AT = ("top", "argument", "parameter", "buffer", "module", "deep module", "instead")


@pytest.mark.parametrize("protocol", range(6))
def test_foreign_names_in_any_protocol(protocol: int, tmp_path: Path):
    for hostile in calls(tmp_path / "mark").values():
        refused(pickled(hostile, protocol), tmp_path)


def test_foreign_names_in_training_states(tmp_path: Path):
    table = training_table(network(0), {0.05: network(1)}, 64)
    for call, hostile in calls(tmp_path / "mark").items():
        for place in ("state", "net", "ema", "optimizer", "loss_fn"):
            path = tmp_path / "a.pt"
            key = "cur_nimg" if place == "state" else "a"
            path.write_bytes(archived({**table, place: {**table[place], key: hostile}}))
            message = examined(read_state, path, tmp_path / "mark")
            assert message is not None or (call == "bytes of torch.save" and place not in ("net", "state")), place


def test_source_code_is_text(tmp_path: Path):
    """The file converts, whatever its source code would do."""
    source = f"import os\nos.environ[{CANARY!r}] = '1'\nopen({str(tmp_path / 'mark')!r}, 'w').close()\n"
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(snapshot_table(network(0), NETWORK, source=source)))
    assert examined(read_official, path, tmp_path / "mark") is None


NEEDED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
          "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_TUPLE",
          "EMPTY_DICT", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE",
          "NEWOBJ", "BINPERSID", "BUILD", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BINPUT",
          "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "PROTO", "FRAME", "STOP"}  # fmt: skip


@pytest.mark.parametrize("operation", [o for o in pickletools.opcodes if o.name not in NEEDED], ids=lambda o: o.name)
def test_other_operations(operation: pickletools.OpcodeInfo, tmp_path: Path):
    refused(
        b"\x80\x02]K\x01" + operation.code.encode("latin-1") + b"\x01\n\x00\n\x00\x00\x00\x00\x00\x00" + b".", tmp_path
    )


short = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731
TABLE = short(b"dnnlib.util") + short(b"EasyDict") + b"\x93)\x81"
POWERS = b")\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
"""A tuple of the same tuple twice, and so on: its hash is that of 2^60 parts."""
RAW = {
    "nothing": b"",
    "garbage": b"\xff\x00\x01",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "bytes of exabytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "text of exabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "bytes of 4 GB": b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"a.",
    "text of 4 GB": b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"a.",
    "a frame of exabytes": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "a number of 2 GB": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"a.",
    "an array of exabytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
    "a memory of 4 G": b"\x80\x04}r\xff\xff\xff\xff.",
    "memory that is not there": b"\x80\x04j\xff\xff\xff\xff.",
    "attributes of text": b"\x80\x04" + short(b"a") + b"}b.",
    "attributes of a name": b"\x80\x04" + short(b"dnnlib.util") + short(b"EasyDict") + b"\x93}b.",
    "attributes twice": b"\x80\x04" + TABLE + b"}b}b.",
    "entries of a list": b"\x80\x04](K\x01K\x02u.",
    "an odd number of entries": b"\x80\x04}(K\x01u.",
    "elements of a table": b"\x80\x04}(K\x01e.",
    "members of a list": b"\x80\x04](K\x01\x90.",
    "a call of a number": b"\x80\x04K\x01)R.",
    "a call without arguments": b"\x80\x04" + short(b"dnnlib.util") + short(b"EasyDict") + b"\x93NR.",
    "a call of a call": b"\x80\x04" + TABLE + b")R)R)R.",
    "an end too early": b"\x80\x04}}.",
    "an end within a mark": b"\x80\x04(}.",
    "no end": b"\x80\x04}",
    "an empty stack": b"\x80\x04.",
    "a tuple of what is not there": b"\x80\x04K\x01\x87.",
    "two pickles": pickle.dumps({}) + pickle.dumps({}),
    "depth without end": b"\x80\x02" + b"(" * 100_000 + b".",
    "lists in lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a name of two lines": b"\x80\x04" + short(b"os\nsystem") + short(b"x\x1b[2J") + b"\x93.",
    "a dotted name": b"\x80\x04" + short(b"collections") + short(b"OrderedDict.__init__.__globals__") + b"\x93.",
    "a name of numbers": b"\x80\x04K\x01K\x02\x93.",
    "a key that takes for ever": b"\x80\x04}" + POWERS + b"K\x01s.",
    "a member that takes for ever": b"\x80\x04\x8f(" + POWERS + b"\x90.",
    "keys that collide": b"\x80\x04}(" + b"\x8a\x08" + struct.pack("<q", 2**61 - 1) + b"Nu.",
    "too many operations": b"\x80\x04" + b"N" * (MOST_OPERATIONS + 1) + b".",
}


WELL_FORMED = ("a frame of exabytes", "a memory of 4 G", "lists in lists")
"""Of these only the contents are refused: the reader makes no room for what a file announces."""


@pytest.mark.parametrize("name", RAW)
def test_pickles_that_pickle_does_not_write(name: str, tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(RAW[name], tmp_path)
    assert ("holds no" in message) == (name in WELL_FORMED), message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def loops() -> dict[str, Any]:
    """Tables whose objects hold themselves, or more than can be counted."""
    found = {}
    for name in (
        "module",
        "state",
        "modules",
        "table",
        "arguments",
        "twice",
        "powers",
        "powers of lists",
    ):
        table = snapshot_table(network(0), NETWORK)
        state = table["ema"].meta["state"]
        unet = state["_modules"]["unet"]
        powers: Any = ["a"]
        for _ in range(60):
            powers = [powers, powers]
        match name:
            case "module":
                state["_modules"]["unet"].meta["state"]["_modules"]["again"] = unet.meta["state"]["_modules"]["enc"]
            case "state":
                table["ema"].meta["state"]["_modules"]["unet"] = Persistent("UNet", state)
            case "modules":
                unet.meta["state"]["_modules"]["enc"]._modules["a"] = unet.meta["state"]["_modules"]["enc"]
            case "table":
                table["ema"] = table
            case "arguments":
                state["_init_kwargs"]["channel_mult"] = state["_init_kwargs"]
            case "twice":
                state["_modules"]["also"] = unet
            case "powers":
                tree: Any = Persistent("Block", {"_modules": {}})
                for _ in range(60):
                    tree = Persistent("Block", {"_modules": {"a": tree, "b": tree}})
                state["_modules"]["unet"] = tree
            case "powers of lists":
                state["_init_kwargs"]["attn_resolutions"] = powers
        found[name] = table
    return found


@pytest.mark.parametrize("name", loops())
def test_loops_and_powers(name: str, tmp_path: Path):
    refused(pickled(loops()[name]), tmp_path)


def described(reference: Any, offset: Any = 0, shape: Any = (), strides: Any = ()) -> Any:
    return Calls("torch._utils._rebuild_tensor_v2", reference, offset, shape, strides, False, {})


def bytes_of(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensor.storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def storage(data: Any) -> Any:
    return Calls("torch.storage._load_from_bytes", data)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def tensors() -> dict[str, Any]:
    whole = bytes_of(torch.zeros(1, dtype=torch.float16))
    large = bytes_of(torch.zeros(8 * 2 * 9, dtype=torch.float16))
    zipped = io.BytesIO()
    torch.save(torch.zeros(1), zipped)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 2**24)
    return {
        "no storage": described(None),
        "bytes for a storage": described(whole),
        "a storage of text": described(storage("text")),
        "a storage of nothing": described(storage(b"")),
        "half a storage": described(storage(whole[: len(whole) // 2])),
        "a byte too few": described(storage(whole[:-1])),
        "a byte too many": described(storage(whole + b"a")),
        "another magic number": described(storage(whole.replace(b"\x19.", b"\x18.", 1))),
        "an archive": described(storage(zipped.getvalue())),
        "an archive that is a bomb": described(storage(bomb.getvalue())),
        "a length of exabytes": described(storage(whole[:-10] + struct.pack("<q", 2**60) + whole[-2:])),
        "a negative length": described(storage(whole[:-10] + struct.pack("<q", -1) + whole[-2:])),
        "beyond the end": described(storage(whole), 1),
        "before the begin": described(storage(whole), -1),
        "a shape of exabytes": described(storage(whole), 0, (2**40, 2**20), (0, 0)),
        "a shape without end": described(storage(whole), 0, (2**100,), (1,)),
        "strides of 0": described(storage(large), 0, (8, 2, 3, 3), (0, 0, 0, 0)),
        "overlapping strides": described(storage(large), 0, (8, 2, 3, 3), (18, 9, 3, 2)),
        "overlapping strides of the right span": described(storage(large), 0, (8, 2, 3, 3), (19, 6, 1, 1)),
        "negative strides": described(storage(large), 0, (8, 2, 3, 3), (-18, 9, 3, 1)),
        "strides of text": described(storage(large), 0, (8, 2, 3, 3), ("a", "b", "c", "d")),
        "too few strides": described(storage(large), 0, (8, 2, 3, 3), (18, 9, 3)),
        "a truth for a size": described(storage(whole), 0, (True,), (1,)),
        "no arguments": Calls("torch._utils._rebuild_tensor_v2"),
        "a tensor in a parameter in a parameter": Calls(
            "torch._utils._rebuild_parameter", Calls("torch._utils._rebuild_parameter", described(storage(whole)))
        ),
    }


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_that_are_none(tmp_path: Path):
    code = io.BytesIO()
    torch.save(calls(tmp_path / "mark")["system"], code, _use_new_zipfile_serialization=False)
    for name, value in {**tensors(), "code": described(storage(code.getvalue()))}.items():
        table = snapshot_table(network(0), NETWORK)
        unet = table["ema"].meta["state"]["_modules"]["unet"].meta["state"]
        wide = "stride" in name
        target = unet["_modules"]["enc"]._modules["8x8_conv"].meta["state"] if wide else unet
        target["_parameters"]["weight" if wide else "out_gain"] = value
        assert "tensor" in (message := refused(pickled(table), tmp_path)) or "it has" in message, name


def test_small_files_of_large_networks(tmp_path: Path):
    """Tensors may not share their numbers: 2 MB would become any size."""
    table = snapshot_table(network(0), NETWORK)
    unet = table["ema"].meta["state"]["_modules"]["unet"].meta["state"]
    blocks = unet["_modules"]["enc"]._modules
    first = blocks["8x8_block0"].meta["state"]["_modules"]
    first["conv_res0"].meta["state"]["_parameters"]["weight"] = first["conv_res1"].meta["state"]["_parameters"][
        "weight"
    ]
    assert "share" in refused(pickled(table), tmp_path)


@functools.cache
def genuine() -> bytes:
    return pickled(snapshot_table(network(0), NETWORK))


@functools.cache
def genuine_state() -> bytes:
    return archived(training_table(network(0), {0.05: network(1)}, 64))


def test_cut_short(tmp_path: Path):
    for part in range(25):
        refused(genuine()[: len(genuine()) * part // 25], tmp_path)
        refused(genuine_state()[: len(genuine_state()) * part // 25], tmp_path, read_state)


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=pytest.mark.soak)])
def test_damage_anywhere(count: int, tmp_path: Path):
    """Changed bytes: refused in one line, or numbers only, which still make a network."""
    generator, found = random.Random(count), []
    for index in range(count):
        read, whole = ((read_official, genuine()), (read_state, genuine_state()))[index % 2]
        data = bytearray(whole)
        for _ in range(generator.choice((1, 4, 100))):
            data[generator.randrange(len(data))] = generator.randrange(256)
        (tmp_path / "a.pkl").write_bytes(data)
        found.append(examined(read, tmp_path / "a.pkl", tmp_path / "mark"))
    assert sum(message is not None for message in found) > count // 2


def rezipped(change: Callable[[zipfile.ZipInfo, bytes], tuple[str, bytes, int]], more: dict[str, bytes]) -> bytes:
    """The genuine training state with other files in its archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(genuine_state())) as source, zipfile.ZipFile(buffer, "w") as target:
        for entry in source.infolist():
            name, data, packing = change(entry, source.read(entry))
            target.writestr(name, data, packing)
        for name, data in more.items():
            target.writestr(name, data)
    return buffer.getvalue()


def same(entry: zipfile.ZipInfo, data: bytes) -> tuple[str, bytes, int]:
    return entry.filename, data, zipfile.ZIP_STORED


def archives() -> dict[str, bytes]:
    packed = lambda entry, data: (entry.filename, data, zipfile.ZIP_DEFLATED)  # noqa: E731
    bomb = lambda entry, data: (entry.filename, data + bytes(2**26) * entry.filename.endswith("pkl"), 8)  # noqa: E731
    moved = lambda entry, data: (entry.filename.replace("data/", "data/../"), data, zipfile.ZIP_STORED)  # noqa: E731
    flat = lambda entry, data: (entry.filename.split("/", 1)[1], data, zipfile.ZIP_STORED)  # noqa: E731
    halved = lambda entry, data: (entry.filename, data[: len(data) // 2], zipfile.ZIP_STORED)  # noqa: E731
    of_exabytes = stated(genuine_state(), 2**31)
    return {
        "packed": rezipped(packed, {}),
        "a bomb": rezipped(bomb, {}),
        "files elsewhere": rezipped(moved, {}),
        "no folder": rezipped(flat, {}),
        "half of each file": rezipped(halved, {}),
        "two pickles": rezipped(same, {"other/data.pkl": b"."}),
        "no pickle": rezipped(lambda entry, data: (entry.filename + "x", data, 0), {}),
        "sizes that are not there": of_exabytes,
        "a bomb that says it is none": stated(rezipped(bomb, {}), 1000),
        "an archive of nothing": b"PK\x05\x06" + bytes(18),
        "old format": bytes_of_old(),
    }


def stated(archive: bytes, size: int) -> bytes:
    """The archive, whose directory gives data.pkl another size."""
    data, start = bytearray(archive), archive.rindex(b"data.pkl") - 46
    while data[start : start + 4] != b"PK\x01\x02":
        start -= 1
    data[start + 24 : start + 28] = struct.pack("<I", size)
    return bytes(data)


def bytes_of_old() -> bytes:
    buffer = io.BytesIO()
    with official_modules():
        torch.save(training_table(network(0), {}, 1), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_archives(tmp_path: Path):
    for name, data in archives().items():
        tracemalloc.start()
        assert refused(data, tmp_path, read_state), name
        assert tracemalloc.get_traced_memory()[1] < 2**25, name
        tracemalloc.stop()


def test_the_genuine_ones_pass(tmp_path: Path):
    """The mutants are refused for what was changed."""
    path = write_published(tmp_path / "a.pkl", network(0), NETWORK)
    assert examined(read_official, path, tmp_path / "mark") is None
    (tmp_path / "b.pt").write_bytes(rezipped(same, {}))
    assert examined(read_state, tmp_path / "b.pt", tmp_path / "mark") is None
