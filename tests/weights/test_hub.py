"""A network's folder for others: loaded by this recipe, and by the script in it with torch and safetensors alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.published_pickles import write_published
from helpers.small_snapshots import DATASET, NETWORK, refused_in_process, small_network, stored
from recipe import convert
from recipe.weights.hub_loader import EDM2
from recipe.weights.snapshots import SnapshotInfo, load_network, save_snapshot

FILES = ["README.md", "config.json", "load_edm2.py", "model.safetensors", "model_index.json", "pipeline_edm2.py"]


def hub_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, source: Path | None = None, **changes: Any) -> Path:
    if source is None:
        source = folder / "s.safetensors"
        info = SnapshotInfo({**NETWORK, **changes}, 4096, 0.1, DATASET, {"label_dropout": 0.1})
        save_snapshot(source, stored(small_network(2, **changes), torch.float32), info)
    monkeypatch.setattr("sys.argv", ["convert.py", str(source), "--to", "hub", "--out", str(folder / "hub")])
    convert.main()
    return folder / "hub"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_dim": 0, "attn_resolutions": []},
        {"num_blocks": 2, "channel_mult": [1, 2, 2], "img_channels": 3, "channel_mult_emb": 3},
        {"clip_act": 0.5, "sigma_data": 0.3, "label_balance": 0.4, "res_balance": 0.35, "attn_balance": 0.2},
        {"clip_act": None, "concat_balance": 0.4},
    ],
    ids=str,
)
def test_both_loaders_compute_the_same(changes: dict[str, Any], tmp_path: Path, monkeypatch, capsys):
    folder = hub_folder(tmp_path, monkeypatch, **changes)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == FILES
    own, info = load_network(folder / "model.safetensors")
    assert (info.nimg, info.dataset, info.extra) == (4096, DATASET, {"label_dropout": 0.1})
    x = torch.randn(4, own.img_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    given = x, torch.tensor([0.01, 0.5, 2.0, 60.0]), torch.tensor([0, 3, 9, -1])
    reference = small_network(2, **changes)(*given)
    assert isinstance(reference, torch.Tensor)
    assert torch.equal(own(*given), reference)  # pyright: ignore
    assert torch.equal(EDM2(folder)(*given), reference)


ALONE = """
import sys, torch
from load_edm2 import EDM2
net, x = EDM2("."), torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
torch.save(net(x, torch.tensor([0.5]), torch.tensor([3])), sys.argv[1])
print(sorted({name.split(".")[0] for name in sys.modules} & {"recipe", "composer", "streaming", "diffusers"}))
"""


@pytest.mark.slow
def test_the_script_in_the_folder_stands_alone(tmp_path: Path, monkeypatch, capsys):
    """Fewer than 61 lines, and nothing of this project is imported: it is not even to be found."""
    folder = hub_folder(tmp_path, monkeypatch)
    assert len((folder / "load_edm2.py").read_text().splitlines()) <= 60
    command = [sys.executable, "-c", ALONE, str(tmp_path / "out.pt")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # kernels as here
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    reference = load_network(folder / "model.safetensors")[0](x, torch.tensor([0.5]), torch.tensor([3]))
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), reference)  # pyright: ignore


def test_what_the_folder_says(tmp_path: Path, monkeypatch, capsys):
    folder = hub_folder(tmp_path, monkeypatch)
    config = json.loads((folder / "config.json").read_text())
    assert config["recipe"] == {"config": "G", "network": NETWORK, "nimg": 4096, "sigma_rel": 0.1}
    assert config["dataset"] == DATASET.to_json()
    card = (folder / "README.md").read_text()
    for said in ("license: other\n", "4,096 images seen; an average of relative length 0.1", "| label dropout | 0.1 |"):
        assert said in card


def test_published_weights_keep_their_licence(tmp_path: Path, monkeypatch, capsys):
    published = write_published(tmp_path / "edm2-img8-xs-0008388-0.050.pkl", small_network(0), NETWORK)
    monkeypatch.setattr("sys.argv", ["convert.py", str(published), "--out", str(tmp_path / "s.safetensors")])
    convert.main()
    card = (hub_folder(tmp_path, monkeypatch, tmp_path / "s.safetensors") / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-sa-4.0\n") and "whose terms hold" in card
    assert f"| made from | {published.name} |" in card


def test_nothing_there_is_replaced(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("mine")
    source = tmp_path / "s.safetensors"
    save_snapshot(source, stored(small_network(0), torch.float16), SnapshotInfo(NETWORK, 64, 0.1))
    said = refused_in_process(convert, [source, "--to", "hub", "--out", tmp_path / "hub"], monkeypatch, capsys)
    assert "README.md: is there already" in said
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["README.md"]
    said = refused_in_process(convert, [source, "--to", "hub", "--out", tmp_path / "a.pt"], monkeypatch, capsys)
    assert "a.pt: must be a folder" in said
