"""Snapshot files: what they hold, and which files are refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.small_snapshots import DATASET, NETWORK, outputs, small_network, stored
from recipe.weights import snapshots, tensor_writing
from recipe.weights.snapshots import (
    SnapshotError,
    SnapshotFile,
    SnapshotInfo,
    SnapshotReader,
    buffer_names,
    list_snapshots,
    load_network,
    save_snapshot,
    snapshot_name,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / snapshot_name(1000, 0.05)
    save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05, DATASET))
    return path


def header_length(data: bytes | bytearray) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_float32_round_trip_is_exact(tmp_path: Path):
    net = small_network(3)
    path = tmp_path / "new" / "folder" / snapshot_name(8 << 20, 0.1)
    extra = {"profile_error": 1.5e-3, "snapshots": 16}
    save_snapshot(path, stored(net, torch.float32), SnapshotInfo(NETWORK, 8 << 20, 0.1, DATASET, extra))
    loaded, info = load_network(path)
    assert info == SnapshotInfo(NETWORK, 8 << 20, 0.1, DATASET, extra)
    assert loaded.state_dict().keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(outputs(loaded), outputs(net))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_float16_round_trip(tmp_path: Path):
    net = small_network(3)
    path = tmp_path / snapshot_name(1000, 0.05)
    save_snapshot(path, stored(net, torch.float16), SnapshotInfo(NETWORK, 1000, 0.05))
    loaded, _ = load_network(path, torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    loaded, _ = load_network(path)
    buffers = buffer_names(NETWORK)
    assert len(buffers) == 4
    for name, tensor in net.state_dict().items():
        ours = loaded.state_dict()[name]
        assert ours.dtype == torch.float32
        if name in buffers:
            assert torch.equal(ours, tensor), name
        else:
            torch.testing.assert_close(ours, tensor, rtol=2**-11, atol=2**-25)
    reference = outputs(net)
    assert 0 < (outputs(loaded) - reference).norm() <= 1e-3 * reference.norm()
    assert path.stat().st_size < 0.6 * 4 * sum(t.numel() for t in net.state_dict().values())


def test_reader_names_and_part_of_the_tensors(snapshot: Path):
    with SnapshotReader(snapshot) as reader:
        assert reader.names() == sorted(small_network(0).state_dict())
        assert reader.read_all(["unet.out_gain"]).keys() == {"unet.out_gain"}
        assert reader.info.dataset == DATASET


def test_list_is_sorted_and_of_one_kind(tmp_path: Path):
    wanted = [(500, 0.05), (500, 0.1), (2000, 0.05), (10**11, 0.015)]
    for nimg, sigma_rel in reversed(wanted):
        (tmp_path / snapshot_name(nimg, sigma_rel)).touch()
    for other in (
        snapshot_name(500, 0.2, "posthoc"),
        f".tmp-{snapshot_name(700, 0.05)}",
        snapshot_name(800, 0.05) + ".part",
        "copy-of-" + snapshot_name(800, 0.05),
        "snapshot-abc-0.050.safetensors",
        "snapshot-00000000900.safetensors",
        "checkpoint.pt",
    ):
        (tmp_path / other).touch()
    assert list_snapshots(tmp_path) == [
        SnapshotFile(nimg, sigma_rel, tmp_path / snapshot_name(nimg, sigma_rel)) for nimg, sigma_rel in wanted
    ]
    assert [(s.nimg, s.sigma_rel) for s in list_snapshots(tmp_path, "posthoc")] == [(500, 0.2)]
    assert list_snapshots(tmp_path / "missing") == []


def test_equal_snapshots_are_equal_files(snapshot: Path, tmp_path: Path):
    path = tmp_path / snapshot.name
    save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05, DATASET))
    assert path.read_bytes() == snapshot.read_bytes()


def test_names():
    assert snapshot_name(8 << 20, 0.05) == "snapshot-00008388608-0.050.safetensors"
    assert snapshot_name(0, 0.125, "posthoc") == "posthoc-00000000000-0.125.safetensors"


def write_truncated(data: bytes, path: Path) -> None:
    path.write_bytes(data[:-1000])


def write_half_a_header(data: bytes, path: Path) -> None:
    path.write_bytes(data[: header_length(data) // 2])


def write_nothing(data: bytes, path: Path) -> None:
    path.touch()


def write_text(data: bytes, path: Path) -> None:
    path.write_text("<html><body>404 Not Found</body></html>\n" * 100)


def write_foreign_safetensors(data: bytes, path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path)


def write_foreign_metadata(data: bytes, path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {"format": "pt"})


def write_metadata_without_network(data: bytes, path: Path) -> None:
    save_file({"weight": torch.ones(3)}, path, {snapshots.METADATA_KEY: json.dumps({"format": snapshots.FORMAT})})


def write_folder(data: bytes, path: Path) -> None:
    path.mkdir()


def write_nowhere(data: bytes, path: Path) -> None:
    pass


@pytest.mark.parametrize(
    "damage",
    [
        write_truncated,
        write_half_a_header,
        write_nothing,
        write_text,
        write_foreign_safetensors,
        write_foreign_metadata,
        write_metadata_without_network,
        write_folder,
        write_nowhere,
    ],
)
def test_file_that_is_no_snapshot(damage, snapshot: Path, tmp_path: Path):
    path = tmp_path / snapshot_name(1000, 0.05)
    damage(snapshot.read_bytes(), path)
    with pytest.raises(SnapshotError) as caught:
        load_network(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("bit", [0, 7])
def test_flipped_bit_in_a_tensor(place: float, bit: int, snapshot: Path, tmp_path: Path):
    data = bytearray(snapshot.read_bytes())
    start = header_length(data)
    data[start + int(place * (len(data) - 1 - start))] ^= 1 << bit
    path = tmp_path / snapshot.name
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=r"the checksum of .* does not match") as caught:
        load_network(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"\"digests\"", rb"\"digestt\""),
        (rb"\"nimg\": 1000", rb"\"nimg\": 1001"),
        (b'"unet.out_gain"', b'"unet.out_gaim"'),
        (rb"\"model_channels\": 16", rb"\"model_channels\": 17"),
        (rb"\"model_channels\": 16", rb"\"model_channels\" 16"),
    ],
)
def test_damaged_header(old: bytes, new: bytes, snapshot: Path, tmp_path: Path):
    data = snapshot.read_bytes()
    length = header_length(data)
    header = data[8:length]
    assert header.count(old) == 1
    path = tmp_path / snapshot.name
    path.write_bytes(data[:8] + header.replace(old, new.ljust(len(old))) + data[length:])
    with pytest.raises(SnapshotError) as caught:
        load_network(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"model_channels": 32}, {"channel_mult": [1]}, {"model_width": 3}, {"channels_per_head": 24}]
)
def test_network_that_does_not_fit_the_tensors(changes: dict, tmp_path: Path):
    path = tmp_path / snapshot_name(1000, 0.05)
    save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo({**NETWORK, **changes}, 1000, 0.05))
    with pytest.raises(SnapshotError, match="its tensors do not fit its network") as caught:
        load_network(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / snapshot_name(1000, 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "FORMAT", 99)
        save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05))
    with pytest.raises(SnapshotError, match="has format 99; this version of the recipe reads 1"):
        load_network(path)


def fail_while_writing(tensors, path: Path, metadata) -> None:
    path.write_bytes(b"half of it")
    raise OSError("No space left on device")


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tensor_writing, "save_file", fail_while_writing)
    path = tmp_path / snapshot_name(1000, 0.05)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / snapshot_name(1000, 0.05)
    save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    before = path.read_bytes()
    monkeypatch.setattr(tensor_writing, "save_file", fail_while_writing)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(path, {"a": torch.zeros(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_no_temporary_file(tmp_path: Path):
    path = tmp_path / snapshot_name(1000, 0.05)
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    assert list(tmp_path.iterdir()) == [path]


def test_file_appears_only_when_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listed = []
    real_replace = os.replace

    def watch(source: Path, target: Path) -> None:
        listed.append(list_snapshots(tmp_path))
        real_replace(source, target)

    monkeypatch.setattr(snapshots.os, "replace", watch)
    path = tmp_path / snapshot_name(1000, 0.05)
    save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    assert listed == [[]]
    assert [found.path for found in list_snapshots(tmp_path)] == [path]


def test_metadata_is_json_without_pickle(snapshot: Path):
    data = snapshot.read_bytes()
    metadata = json.loads(data[8 : header_length(data)])["__metadata__"]
    facts = json.loads(metadata[snapshots.METADATA_KEY].split(" ", 1)[1])
    assert facts["format"] == 1
    assert facts["network"] == NETWORK
    assert facts["digests"].keys() == small_network(0).state_dict().keys()
