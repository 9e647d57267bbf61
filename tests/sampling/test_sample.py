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
    assert sorted(path.name for path in out.glob("*.png")) == [f"{seed:06d}.png" for seed in seeds]
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


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


REFUSED = {
    "unknown class": (["--labels", "10"], "--labels 10: the network knows the classes 0 to 9"),
    "falling range": (["--seeds", "5-3"], "'5-3' is a range that falls; write 3-5"),
    "no steps": (["--steps", "0"], "--steps 0: must be at least 1"),
    "part of a step": (["--steps", "1.5"], "--steps 1.5: must be a whole number"),
    "octal steps": (["--steps", "010"], "--steps 010: must not begin with a 0, which could mean"),
    "octal seeds": (["--seeds", "0-09"], "'0-09' must not begin with a 0, which could mean an octal number: write 9"),
    "full-width seeds": (["--seeds", "\uff11"], "must be in the digits 0 to 9: write 1"),
    "blank seeds": (["--seeds", ""], "--seeds '': must not be blank"),
    "a seed twice": (["--seeds", "1,0-2"], "--seeds 1,0-2: names a seed twice"),
    "seeds without end": (["--seeds", "0-99999999999"], "are more than 10000000 numbers"),
    "no device": (["--device", "teapot"], "--device teapot: "),
    "device that is not there": (["--device", "cuda:99"], "--device cuda:99: "),
    "large seed": (["--seeds", "9" * 20], "goes beyond 2^63 - 1"),
    "no columns": (["--grid", "GRID", "--columns", "0"], "--columns 0: must be at least 1"),
    "columns of no grid": (["--columns", "5"], "--columns 5: is of the grid, and there is none; add --grid"),
    "zoom of no grid": (["--zoom", "1"], "--zoom 1: is of the grid, and there is none; add --grid"),
    "negative batch": (["--batch-size", "-1"], "--batch-size -1: must be at least 1"),
    "noise levels": (["--sigma-min", "100"], "sigma_min 100.0 and sigma_max 80.0"),
    "no noise": (["--sigma-max", "0"], "--sigma-max 0: must be above 0"),
    "infinite": (["--rho", ".inf"], "--rho .inf: must be finite"),
    "not a number": (["--churn", "nan"], "--churn nan: must be a number"),
    "negative guidance": (["--guidance", "-2"], "--guidance -2: must be at least 0"),
    "no guide": (["--guidance", "2", "--guide", "nowhere.safetensors"], "nowhere.safetensors: no such snapshot"),
    "idle guide": (["--guide", "nowhere.safetensors"], "does nothing at --guidance 1; add for example --guidance 2"),
    "itself as guide": (["--guidance", "2", "--guide", "SNAPSHOT"], "is the snapshot itself, and would do nothing"),
    "guidance without labels": (["--guidance", "2", "--labels", "none"], "--guidance 2: does nothing without labels"),
    "grid without a kind": (["--grid", "grid"], "--grid grid: must end with the kind of file, .png"),
    "grid of an unknown kind": (["--grid", "grid.pgn"], "--grid grid.pgn: must end with the kind of file"),
    "grid that is a folder": (["--grid", "OUT/.."], "must end with the kind of file"),
    "grid in an image's place": (["--grid", "OUT/000000.png"], "is the place of one of the images"),
    "grid elsewhere": (["--grid", "gs://bucket/grid.png"], "gs://bucket/grid.png: is not a folder that can be used"),
    "images elsewhere": (["--out", "gs://bucket/images"], "gs://bucket/images: is not a folder that can be used"),
    "grid without a kind in S3": (["--grid", "s3://bucket/grid"], "--grid s3://bucket/grid: must end with the kind"),
    "subfolders of a file": (
        ["--out", "OUT.zip", "--subdirs"],
        "is of a folder, and --out OUT.zip is a file",
    ),
    "archive of an unknown folder": (["--out", "SNAPSHOT/a.zip"], "--out SNAPSHOT: SNAPSHOT is a file, not a folder"),
    "class by name": (
        ["--labels", "cat"],
        "does not say how its classes are called; name 'cat' by its id",
    ),
    "falling classes": (["--labels", "5-3"], "--labels 5-3: '5-3' is a range that falls; write 3-5"),
    "blank folder": (["--out", ""], "--out '': must not be blank"),
    "a space that nobody sees": (["--out", "images "], "--out 'images ': must not be blank, begin or end with a space"),
    "home of nobody": (["--out", "~nobody-of-that-name/a"], "whose home folder is not known"),
    "variable in single quotes": (["--out", "$HOME/images"], "names the variable HOME, which nobody has filled in"),
    "misspelt": (["--seed", "3"], "unrecognized arguments: --seed 3; did you mean --seeds?"),
    "twice": (["--seeds", "3", "--seeds", "4"], "--seeds: is given 2 times; keep one of them"),
    "autoencoder for pixels": (["--vae", "a"], "--vae a: SNAPSHOT makes pictures, not latents; leave it out"),
    "precision": (["--dtype", "half"], "--dtype half: must be one of float32, float16, bfloat16"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_sample_refuses_options(options: list[str], said: str, snapshot: Path, tmp_path: Path, monkeypatch, capsys):
    """Each before anything is drawn or written."""
    monkeypatch.setattr("recipe.sample.Job", None)
    names = {"SNAPSHOT": str(snapshot), "OUT": str(tmp_path / "images"), "GRID": str(tmp_path / "grid.png")}
    for name, value in names.items():
        options = [option.replace(name, value) for option in options]
        said = said.replace(name, value)
    others = {"--device": "cpu", "--seeds": "0", "--steps": "1", "--out": names["OUT"]}
    others = {option: value for option, value in others.items() if option not in options}
    arguments = [snapshot, *(word for pair in others.items() for word in pair), *options]
    assert said in refused_in_process(sample, arguments, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_others_stay(snapshot: Path, tmp_path: Path, monkeypatch, capsys):
    """A file that sample.py did not write is replaced by --overwrite alone; its own are drawn anew."""
    holiday, grid = tmp_path / "images" / "000001.png", tmp_path / "grid.jpg"
    holiday.parent.mkdir()
    Image.new("L", (3, 3)).save(holiday)
    grid.write_bytes(b"notes")
    options = [snapshot, "--device", "cpu", "--seeds", "0-1", "--steps", "1", "--out", holiday.parent]
    said = refused_in_process(sample, options, monkeypatch, capsys)
    assert f"{holiday}: is there, and not from this command; name another place, or add --overwrite" in said
    options[4] = "2-3"
    assert f"{grid}: is there" in refused_in_process(sample, [*options, "--grid", grid], monkeypatch, capsys)
    assert (size_of(holiday), grid.read_bytes()) == ((3, 3), b"notes")
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["sample.py", *map(str, options)])
        sample.main()
    options[4] = "0-1"
    monkeypatch.setattr("sys.argv", ["sample.py", *map(str, options), "--grid", str(grid), "--overwrite"])
    sample.main()
    assert (size_of(holiday), size_of(grid)) == ((8, 8), (80, 8))


@pytest.mark.parametrize(("dropout", "refused"), [(0.0, True), (0.1, False), (None, False)])
def test_guidance_by_itself(tmp_path: Path, monkeypatch, capsys, dropout: float | None, refused: bool):
    """It wants a network that was trained without labels, too; of a file that does not say so, one line does."""
    path = tmp_path / snapshot_name(1000, 0.05)
    extra = {} if dropout is None else {"label_dropout": dropout}
    save_snapshot(path, stored(small_network(0), torch.float32), SnapshotInfo(NETWORK, 1000, 0.05, DATASET, extra))
    out = tmp_path / "images"
    arguments = [path, "--device", "cpu", "--seeds", "0", "--steps", "1", "--guidance", "2", "--out", out]
    if refused:
        assert "was trained with loss.label_dropout 0" in refused_in_process(sample, arguments, monkeypatch, capsys)
        return
    monkeypatch.setattr("sys.argv", ["sample.py", *map(str, arguments)])
    sample.main()
    assert ("supposes label dropout in training" in capsys.readouterr().err) == (dropout is None)


def test_home_folder(snapshot: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--device", "cpu", "--seeds", "0", "--steps", "1"]
    options += ["--out", "~/Äpfel und mehr", "--grid", "~/a b/grid.PNG"]
    monkeypatch.setattr("sys.argv", ["sample.py", str(snapshot), *options])
    sample.main()
    assert (tmp_path / "Äpfel und mehr" / "000000.png").is_file() and (tmp_path / "a b" / "grid.PNG").is_file()


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
