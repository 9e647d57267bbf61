"""The command that draws images from a snapshot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import assert_refused
from helpers.small_snapshots import (
    DATASET,
    NETWORK,
    command,
    damaged_copy,
    refused_in_process,
    small_network,
    stored,
    write_run,
)
from recipe import sample
from recipe.edm2.images import to_pixels
from recipe.edm2.samplers.generate import SamplerSettings, generate
from recipe.weights.snapshots import SnapshotInfo, load_network, save_snapshot, snapshot_name


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / snapshot_name(1000, 0.05)
    save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05, DATASET))
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 8, dtype=torch.float16)
    return folder


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


def test_sample_command_refuses_a_damaged_snapshot(run_folder: Path, tmp_path: Path):
    """The only refusal in a process of its own: no traceback reaches the user."""
    path = damaged_copy(run_folder, tmp_path) / "snapshots" / snapshot_name(1000, 0.05)
    done = command("sample.py", path, "--out", tmp_path / "images", "--device", "cpu")
    assert_refused(done, str(path), "checksum")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "10"], "--labels 10: the network knows the classes 0 to 9"),
        (["--seeds", "5-3"], "'5-3' is a range that falls; write 3-5"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
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
