"""Averages made of snapshots after training, and the command that makes them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.small_snapshots import (
    DATASET,
    NETWORK,
    TRACKED,
    command,
    damaged_copy,
    outputs,
    refused_in_process,
    small_network,
    stored,
    write_run,
)
from recipe import reconstruct as reconstruct_command
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


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 8, dtype=torch.float16)
    return folder


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sigma-rel", "0.3"], "sigma_rel 0.3 must be above 0 and below 12^-0.5"),
        (["--sigma-rel", "0.05", "--nimg", "8500"], "nimg 8500: must be the time of a snapshot"),
        (["--sigma-rel", "0.05", "--nimg", "100ba"], "--nimg 100ba: must be in images"),
    ],
)
def test_reconstruct_refuses(options: list[str], said: str, run_folder: Path, monkeypatch, capsys):
    assert said in refused_in_process(reconstruct_command, [run_folder, *options], monkeypatch, capsys)
    assert not (run_folder / "posthoc").exists()


def test_reconstruct_refuses_a_missing_run(tmp_path: Path, monkeypatch, capsys):
    folder = tmp_path / "nowhere"
    message = refused_in_process(reconstruct_command, [folder, "--sigma-rel", "0.05"], monkeypatch, capsys)
    assert f"{folder}: no such folder" in message


def test_reconstruct_refuses_a_damaged_snapshot(run_folder: Path, tmp_path: Path, monkeypatch, capsys):
    path = damaged_copy(run_folder, tmp_path) / "snapshots" / snapshot_name(1000, 0.05)
    message = refused_in_process(reconstruct_command, [tmp_path, "--sigma-rel", "0.05"], monkeypatch, capsys)
    assert str(path) in message and "checksum" in message
    assert not (tmp_path / "posthoc").exists()


def test_output_folder_that_is_a_file(tmp_path: Path, monkeypatch, capsys):
    occupied = tmp_path / "file"
    occupied.touch()
    write_run(tmp_path, 1)
    options = ["--sigma-rel", "0.05", "--out", occupied]
    assert str(occupied) in refused_in_process(reconstruct_command, [tmp_path, *options], monkeypatch, capsys)
