"""Snapshot files, averages made of them after training, and the two commands that read them."""

import json
import os
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from helpers.commands import command_line, run
from recipe import reconstruct as reconstruct_command
from recipe import sample
from recipe.command_line import parse_integers, parse_numbers, unique
from recipe.edm2.images import to_pixels
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings, generate
from recipe.weights import snapshots
from recipe.weights.posthoc import PosthocError, reconstruct, solve, usable_snapshots
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

NETWORK = dict(img_resolution=8, img_channels=1, label_dim=10, model_channels=16, channel_mult=[1, 2], num_blocks=1,
               attn_resolutions=[4], channels_per_head=16)  # fmt: skip
DATASET = {"name": "digits", "mean": [0.25], "classes": 10}
TRACKED = (0.05, 0.10)


def small_network(seed: int, **changes) -> Precond:
    torch.manual_seed(seed)
    net = Precond(**{**NETWORK, **changes}).eval().requires_grad_(False)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.fill_(0.5 + 0.1 * seed)
    return net


def stored(net: Precond, dtype: torch.dtype) -> dict[str, Tensor]:
    buffers = {name for name, _ in net.named_buffers()}
    return {name: t.clone() if name in buffers else t.to(dtype) for name, t in net.state_dict().items()}


def outputs(net: Precond) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1, net.img_resolution, net.img_resolution, generator=generator)
    return net(x, torch.tensor([0.1, 0.5, 2.0, 8.0]), torch.tensor([0, 3, 9, -1]))  # pyright: ignore


def write_run(folder: Path, count: int, dtype: torch.dtype = torch.float32, **changes) -> list[dict[str, Tensor]]:
    """Snapshots at 1000, 2000, ... images, with one set of buffers; returns the tensors in their order."""
    buffers = {name: tensor for name, tensor in small_network(0, **changes).named_buffers()}
    written = []
    for index in range(count):
        for sigma_rel in TRACKED:
            net = small_network(len(written), **changes)
            tensors = {**stored(net, dtype), **buffers}
            nimg = 1000 * (index + 1)
            info = SnapshotInfo({**NETWORK, **changes}, nimg, sigma_rel, DATASET)
            save_snapshot(folder / "snapshots" / snapshot_name(nimg, sigma_rel), tensors, info)
            written.append(tensors)
    return written


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
        f".{snapshot_name(700, 0.05)}.123.tmp",
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
    monkeypatch.setattr(snapshots, "save_file", fail_while_writing)
    path = tmp_path / snapshot_name(1000, 0.05)
    with pytest.raises(OSError, match="No space left"):
        save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / snapshot_name(1000, 0.05)
    save_snapshot(path, {"a": torch.ones(2)}, SnapshotInfo(NETWORK, 1000, 0.05))
    before = path.read_bytes()
    monkeypatch.setattr(snapshots, "save_file", fail_while_writing)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_reconstruct_is_the_weighted_sum_in_float64(dtype: torch.dtype, tmp_path: Path):
    written = write_run(tmp_path, 3, dtype=torch.float16)
    # Large weights of alternating sign, as those of short averages: a float32 sum would be off by 1e-5.
    coefficients = np.array([[80.0, -79.5, 60.25, -60.0, 0.125, 0.125], [0, 0, 0.5, 0, 0.25, 0.25]]).T
    results, last = reconstruct(list_snapshots(tmp_path / "snapshots"), coefficients, dtype)
    assert last == SnapshotInfo(NETWORK, 3000, 0.1, DATASET)
    assert len(results) == 2
    buffers = buffer_names(NETWORK)
    for result, column in zip(results, coefficients.T, strict=True):
        assert result.keys() == written[0].keys()
        for name, tensor in result.items():
            if name in buffers:
                assert tensor.dtype == torch.float32
                assert torch.equal(tensor, written[-1][name]), name
                continue
            each = torch.stack([tensors[name].double() for tensors in written])
            exact = (torch.from_numpy(column).reshape(-1, *[1] * (each.ndim - 1)) * each).sum(dim=0)
            assert tensor.dtype == dtype
            rounding = torch.finfo(dtype).eps / 2
            smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert ((tensor.double() - exact).abs() <= 1.01 * rounding * exact.abs() + smallest + 1e-12).all(), name


def test_reconstructing_a_tracked_average_gives_it_back(tmp_path: Path):
    written = write_run(tmp_path, 4)
    found = list_snapshots(tmp_path / "snapshots")
    coefficients, errors = solve(found, 4000, [0.10, 0.05])
    assert errors.max() <= 1e-7
    results, _ = reconstruct(found, coefficients, torch.float32)
    for result, tensors in zip(results, (written[-1], written[-2]), strict=True):
        for name, tensor in result.items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("changes", [{"model_channels": 32}, {"sigma_data": 0.7}, {"label_dim": 0}])
def test_networks_are_not_mixed(changes: dict, tmp_path: Path):
    write_run(tmp_path, 2)
    odd = tmp_path / "snapshots" / snapshot_name(1500, 0.05)
    save_snapshot(
        odd, stored(small_network(0, **changes), torch.float32), SnapshotInfo({**NETWORK, **changes}, 1500, 0.05)
    )
    found = list_snapshots(tmp_path / "snapshots")
    with pytest.raises(SnapshotError, match="holds another network") as caught:
        reconstruct(found, np.full((5, 1), 0.2), torch.float32)
    assert str(odd) in str(caught.value)


def test_reconstruct_checks_every_tensor(tmp_path: Path):
    write_run(tmp_path, 2)
    found = list_snapshots(tmp_path / "snapshots")
    damaged = Path(found[1].path)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(SnapshotError, match="checksum") as caught:
        reconstruct(found, np.full((4, 1), 0.25), torch.float32)
    assert str(found[1].path) in str(caught.value)


def given(times: list[int]) -> list[SnapshotFile]:
    return [SnapshotFile(time, length, Path(snapshot_name(time, length))) for time in times for length in TRACKED]


def test_unsupported_lengths_are_refused_unless_forced():
    found = given([1000, 2000, 3000])
    solve(found, 3000, [0.08])
    with pytest.raises(PosthocError, match=r"sigma_rel 0\.015 \(\d+\.\d%\): .* 6 snapshots up to nimg 3000"):
        solve(found, 3000, [0.08, 0.015])
    coefficients, errors = solve(found, 3000, [0.08, 0.015], force=True)
    assert coefficients.shape == (6, 2)
    assert errors[0] < 0.05 < errors[1]
    assert coefficients.sum(axis=0) == pytest.approx([1, 1])


def test_time_must_be_that_of_a_snapshot():
    found = given([0, 1000, 2000, 3000])
    assert usable_snapshots(found, None) == (found[2:], 3000)
    assert usable_snapshots(found, 2000) == (found[2:6], 2000)
    for nimg in (0, 1500, 4000):
        with pytest.raises(PosthocError, match=rf"nimg {nimg}: .* there are 1000, 2000, 3000"):
            usable_snapshots(found, nimg)
    with pytest.raises(PosthocError, match=r"there are 1, 2, 3, \.\.\., 7, 8, 9$"):
        usable_snapshots(given(list(range(1, 10))), 10)
    for nothing in ([], given([0])):
        with pytest.raises(PosthocError, match="there are no snapshots"):
            usable_snapshots(nothing, None)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("7", [7]), ("0-3", [0, 1, 2, 3]), ("5-5", [5]), ("0-2,50, 1", [0, 1, 2, 50, 1]), ("007", [7])],
)
def test_lists_of_integers(text: str, numbers: list[int]):
    assert parse_integers(text) == numbers


@pytest.mark.parametrize("text", ["", ",", "1,", "-1", "1-", "a", "1.5", "1-2-3", "0:3", "1 2"])
def test_bad_lists_of_integers(text: str):
    with pytest.raises(ValueError, match="is not a list of whole numbers and ranges such as 0-39,50"):
        parse_integers(text)


def test_integers_too_large_for_a_seed():
    assert parse_integers(str(2**63 - 1)) == [2**63 - 1]
    with pytest.raises(ValueError, match=r"goes beyond 2\^63 - 1"):
        parse_integers(str(2**63))


def test_falling_range_of_integers():
    with pytest.raises(ValueError, match="'5-3' is a range that falls; write 3-5"):
        parse_integers("1,5-3")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.05", [0.05]),
        ("0.05,0.10:0.20:0.05", [0.05, 0.1, 0.15, 0.2]),
        ("0.1:0.3:0.1", [0.1, 0.2, 0.3]),
        ("0.1:0.29:0.1", [0.1, 0.2]),
        ("0.2:0.2:0.1", [0.2]),
        ("0.015:0.25:0.005", [round(0.005 * index, 3) for index in range(3, 51)]),
    ],
)
def test_lists_of_numbers(text: str, numbers: list[float]):
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "a", "0.1,", "0.1:0.2", "0.1:0.2:0", "0.1:0.2:-0.1", "0.2:0.1:0.05", "0.1:inf:0.1", "1:2:3:4", "1-2"]
)
def test_bad_lists_of_numbers(text: str):
    with pytest.raises(ValueError, match="is not a list of numbers and ranges start:end:step"):
        parse_numbers(text)


def test_unique_keeps_the_order():
    assert unique([0.2, 0.1, 0.2, 0.3, 0.1]) == [0.2, 0.1, 0.3]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 8, dtype=torch.float16)
    return folder


@pytest.fixture(scope="module")
def damaged(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one snapshot, whose last byte is wrong."""
    folder = tmp_path_factory.mktemp("damaged")
    source = run_folder / "snapshots" / snapshot_name(1000, 0.05)
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / source.name).write_bytes(data)
    return folder


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(command_line(name, *map(str, arguments)), timeout=120)


def assert_refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for words in said:
        assert words in done.stderr


def test_reconstruct_command(run_folder: Path, tmp_path: Path):
    done = command(
        "reconstruct.py", run_folder, "--sigma-rel", "0.05,0.10:0.13:0.03", "--nimg", "6k", "--out", tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    found = list_snapshots(tmp_path, "posthoc")
    assert [(one.nimg, one.sigma_rel) for one in found] == [(6000, 0.05), (6000, 0.1), (6000, 0.13)]
    assert len(list(tmp_path.iterdir())) == 3
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(one.path) for one in found]
    inputs, _ = usable_snapshots(list_snapshots(run_folder / "snapshots"), 6000)
    coefficients, errors = solve(inputs, 6000, [0.13])
    expected, _ = reconstruct(inputs, coefficients, torch.float16)
    with SnapshotReader(found[2].path) as reader:
        ours, info = reader.read_all(), reader.info
    extra = {"profile_error": pytest.approx(float(errors[0])), "snapshots": 12}
    assert info == SnapshotInfo(NETWORK, 6000, 0.13, DATASET, extra)
    assert ours.keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        assert torch.equal(ours[name], tensor), name
    tracked, _ = load_network(run_folder / "snapshots" / snapshot_name(6000, 0.05))
    again, _ = load_network(found[0].path)
    torch.testing.assert_close(outputs(again), outputs(tracked), rtol=1e-3, atol=1e-3)


def test_sample_command(run_folder: Path, tmp_path: Path):
    snapshot = run_folder / "snapshots" / snapshot_name(8000, 0.1)
    options = ("--seeds", "0-4,12", "--labels", "3,7", "--steps", 3, "--batch-size", 4, "--device", "cpu")
    out, grid = tmp_path / "images", tmp_path / "more" / "grid.png"
    done = command("sample.py", snapshot, *options, "--out", out, "--grid", grid, "--columns", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    seeds = [0, 1, 2, 3, 4, 12]
    assert sorted(path.name for path in out.iterdir()) == [f"{seed:06d}.png" for seed in seeds]
    net, _ = load_network(snapshot)
    labels = torch.tensor([[3, 7][seed % 2] for seed in seeds])
    expected = to_pixels(generate(net, torch.tensor(seeds), labels, SamplerSettings(num_steps=3)))
    with Image.open(grid) as image:
        assert (image.size, image.mode) == ((4 * 8, 2 * 8), "L")
        sheet = np.array(image)
    assert not sheet[8:, 16:].any()
    for index, seed in enumerate(seeds):
        with Image.open(out / f"{seed:06d}.png") as image:
            assert (image.size, image.mode) == ((8, 8), "L")
            pixels = np.array(image)
        # Other batches round differently, by up to one level of grey.
        assert np.abs(pixels.astype(int) - expected[index, 0].numpy().astype(int)).max() <= 1
        assert pixels.std() > 1
        top, left = index // 4 * 8, index % 4 * 8
        assert np.array_equal(sheet[top : top + 8, left : left + 8], pixels)


def test_sample_command_with_a_guide(run_folder: Path, tmp_path: Path):
    snapshot, guide = (run_folder / "snapshots" / snapshot_name(nimg, 0.05) for nimg in (8000, 1000))
    options = ("--seeds", 5, "--labels", "none", "--steps", 3, "--churn", 4, "--guidance", 2, "--guide", guide)
    done = command("sample.py", snapshot, *options, "--out", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    nets = [load_network(path)[0] for path in (snapshot, guide)]
    settings = SamplerSettings(num_steps=3, S_churn=4, guidance=2)
    expected = to_pixels(generate(nets[0], torch.tensor([5]), torch.tensor([-1]), settings, nets[1]))
    with Image.open(tmp_path / "000005.png") as image:
        assert np.abs(np.array(image).astype(int) - expected[0, 0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sigma-rel", "0.3"], "sigma_rel 0.3 must be above 0 and below 12^-0.5"),
        (["--sigma-rel", "0.05", "--nimg", "8500"], "nimg 8500: must be the time of a snapshot"),
        (["--sigma-rel", "0.05", "--nimg", "100ba"], "--nimg 100ba: must be in images"),
    ],
)
def test_reconstruct_command_refuses(options: list[str], said: str, run_folder: Path):
    assert_refused(command("reconstruct.py", run_folder, *options), said)
    assert not (run_folder / "posthoc").exists()


def test_reconstruct_command_refuses_a_missing_run(tmp_path: Path):
    folder = tmp_path / "nowhere"
    assert_refused(command("reconstruct.py", folder, "--sigma-rel", "0.05"), f"{folder}: no such folder")


def test_reconstruct_command_refuses_a_damaged_snapshot(damaged: Path):
    path = damaged / "snapshots" / snapshot_name(1000, 0.05)
    assert_refused(command("reconstruct.py", damaged, "--sigma-rel", "0.05"), str(path), "checksum")
    assert not (damaged / "posthoc").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "10"], "--labels 10: the network knows the classes 0 to 9"),
        (["--seeds", "5-3"], "'5-3' is a range that falls; write 3-5"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
    ],
)
def test_sample_command_refuses(options: list[str], said: str, run_folder: Path, tmp_path: Path):
    snapshot = run_folder / "snapshots" / snapshot_name(8000, 0.1)
    done = command("sample.py", snapshot, "--out", tmp_path / "images", "--device", "cpu", *options)
    assert_refused(done, said)
    assert not (tmp_path / "images").exists()


def test_sample_command_refuses_a_damaged_snapshot(damaged: Path, tmp_path: Path):
    path = damaged / "snapshots" / snapshot_name(1000, 0.05)
    done = command("sample.py", path, "--out", tmp_path / "images", "--device", "cpu")
    assert_refused(done, str(path), "checksum")


def refused_in_process(
    module: ModuleType, arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The message of a command that exits with 2, without the seconds that a process of its own takes to start."""
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "teapot"], "--device teapot: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--seeds", "9" * 20], "goes beyond 2^63 - 1"),
        (["--columns", "0"], "--columns 0: must be at least 1"),
        (["--batch-size", "-1"], "--batch-size -1: must be at least 1"),
        (["--sigma-min", "100"], "sigma_min 100.0 and sigma_max 80.0"),
        (["--guide", "nowhere.safetensors"], "nowhere.safetensors: no such snapshot"),
    ],
)
def test_sample_refuses_options(options: list[str], said: str, snapshot: Path, tmp_path: Path, monkeypatch, capsys):
    arguments = [snapshot, "--device", "cpu", "--seeds", "0", "--steps", "1", "--out", tmp_path / "images", *options]
    assert said in refused_in_process(sample, arguments, monkeypatch, capsys)
    assert not (tmp_path / "images").exists()


def test_sample_refuses_a_guide_of_other_images(snapshot: Path, tmp_path: Path, monkeypatch, capsys):
    guide = tmp_path / snapshot_name(1000, 0.05)
    network = {**NETWORK, "img_resolution": 16}
    save_snapshot(guide, stored(small_network(0, img_resolution=16), torch.float32), SnapshotInfo(network, 1000, 0.05))
    options = ["--device", "cpu", "--guidance", 2, "--guide", guide, "--out", tmp_path / "images"]
    message = refused_in_process(sample, [snapshot, *options], monkeypatch, capsys)
    assert f"--guide {guide}: makes images of another shape than {snapshot}" in message


def test_output_folder_that_is_a_file(snapshot: Path, tmp_path: Path, monkeypatch, capsys):
    occupied = tmp_path / "file"
    occupied.touch()
    options = ["--device", "cpu", "--seeds", "0", "--steps", "1", "--out", occupied]
    assert str(occupied) in refused_in_process(sample, [snapshot, *options], monkeypatch, capsys)
    write_run(tmp_path, 1)
    options = ["--sigma-rel", "0.05", "--out", occupied]
    assert str(occupied) in refused_in_process(reconstruct_command, [tmp_path, *options], monkeypatch, capsys)


def test_metadata_is_json_without_pickle(snapshot: Path):
    data = snapshot.read_bytes()
    metadata = json.loads(data[8 : header_length(data)])["__metadata__"]
    facts = json.loads(metadata[snapshots.METADATA_KEY].split(" ", 1)[1])
    assert facts["format"] == 1
    assert facts["network"] == NETWORK
    assert facts["digests"].keys() == small_network(0).state_dict().keys()
