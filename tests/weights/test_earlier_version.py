"""Files that an earlier version wrote, before a snapshot named its network's kind."""

from pathlib import Path

import pytest
import torch

from recipe.weights.snapshots import (
    SnapshotError,
    SnapshotInfo,
    SnapshotReader,
    list_snapshots,
    load_network,
    save_snapshot,
)

EARLIER = Path(__file__).parent / "earlier"
SNAPSHOTS = [EARLIER / "snapshot-00000000640-0.050.safetensors", EARLIER / "snapshot-00000000640-0.100.safetensors"]


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.stem)
def test_snapshots_load_as_config_g(path: Path):
    net, info = load_network(path)
    assert (info.config, info.nimg, info.sigma_rel) == ("G", 640, float(path.stem.rpartition("-")[2]))
    assert b'config\\":' not in path.read_bytes()[:20_000]  # it is such a file
    with SnapshotReader(path) as reader:
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, reader.read(name).float()), name
    shape = (2, net.img_channels, net.img_resolution, net.img_resolution)
    denoised = net(torch.zeros(shape), torch.ones(2), torch.tensor([0, -1]))
    assert isinstance(denoised, torch.Tensor) and denoised.shape == shape and denoised.isfinite().all()


def test_they_are_listed():
    assert [snapshot.path for snapshot in list_snapshots(EARLIER)] == SNAPSHOTS


def test_new_files_name_the_kind_and_unknown_kinds_are_refused(tmp_path: Path):
    net, info = load_network(SNAPSHOTS[0])
    path = tmp_path / "new.safetensors"
    save_snapshot(path, net.state_dict(), info)
    assert b'\\"config\\": \\"G\\"' in path.read_bytes()
    assert load_network(path)[1] == info
    other = SnapshotInfo(info.network, info.nimg, info.sigma_rel, config="Z")
    save_snapshot(path, net.state_dict(), other)
    with pytest.raises(SnapshotError, match="holds a network of config Z; this version of the recipe knows G"):
        load_network(path)
