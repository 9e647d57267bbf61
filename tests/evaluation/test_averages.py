"""Averages in memory: the networks that the files of reconstruct.py hold, several from one pass over the snapshots."""

from pathlib import Path

import pytest
import torch

from helpers.small_snapshots import write_run
from recipe import reconstruct
from recipe.evaluation import averages as module
from recipe.evaluation.averages import Averages
from recipe.weights.posthoc import PosthocError
from recipe.weights.snapshots import load_network, snapshot_name

CPU = torch.device("cpu")
LENGTHS = [0.08, 0.10, 0.12, 0.15]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 8)
    return folder


def averages(run: Path) -> Averages:
    return Averages(str(run), CPU, torch.float32)


def state(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in net.state_dict().values()])


def test_the_bits_of_files(run: Path, tmp_path: Path):
    found = averages(run)
    found.expect([(8000, length) for length in LENGTHS])
    for length in LENGTHS:
        reconstruct.run(run, [length], None, tmp_path, torch.float16, force=False)
        net, info = load_network(tmp_path / snapshot_name(8000, length, "posthoc"))
        ours = found.network(8000, length)
        assert torch.equal(state(ours.net), state(net)) and not ours.net.training
        assert ours.facts == info.dataset and ours.net.unet.out_gain.dtype == torch.float32
    assert found.passes == 1


def test_what_is_made_together_changes_nothing(run: Path):
    alone, together = averages(run), averages(run)
    together.expect([(8000, length) for length in LENGTHS])
    together.network(8000, 0.08)
    for length in reversed(LENGTHS):
        assert torch.equal(state(alone.network(8000, length).net), state(together.network(8000, length).net))
    assert (alone.passes, together.passes) == (4, 1)


def test_no_more_are_held_than_memory_allows(run: Path, monkeypatch: pytest.MonkeyPatch):
    parameters = sum(tensor.numel() for tensor in averages(run).outline.net.state_dict().values())
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 2 * parameters)
    found = averages(run)
    keys = [(5000, 0.1), *((8000, length) for length in LENGTHS)]
    found.expect(keys)
    for key in keys:
        found.network(*key)
        assert len(found._held) <= 2
    assert found.passes == 3  # 5000 alone, then twice two
    monkeypatch.setattr(module, "HELD_BYTES", 1)
    assert averages(run).at_once == 1


def test_a_search_gets_its_neighbours_along(run: Path, monkeypatch: pytest.MonkeyPatch):
    found = averages(run)
    found.expect([(8000, 0.1)], likely=LENGTHS)
    for length in LENGTHS:
        found.network(8000, length)
    assert found.passes == 1
    found.at_once = 3
    found.expect([(7000, 0.1)], likely=LENGTHS)
    found.network(7000, 0.1)
    assert set(found._held) == {(7000, 0.1), (7000, 0.08), (7000, 0.12)}


def test_the_outline_needs_no_weights(run: Path):
    outline = averages(run).outline
    assert outline.net.unet.out_gain.is_meta and outline.net.img_resolution == 8


def test_what_the_snapshots_do_not_support_is_refused(run: Path, tmp_path: Path):
    with pytest.raises(PosthocError, match=r"sigma_rel 0\.01.*--force"):
        averages(run).check([8000], [0.01, 0.1])
    Averages(str(run), CPU, torch.float32, force=True).check([8000], [0.01])
    with pytest.raises(PosthocError, match="nimg 1500: must be the time of a snapshot"):
        averages(run).check([1500], [0.1])
    with pytest.raises(PosthocError, match="there are no snapshots"):
        averages(tmp_path)
