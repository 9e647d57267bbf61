"""Going on with a training elsewhere: what does not go together is refused before anything begins."""

from pathlib import Path

import pytest

from helpers.commands import train_arguments
from helpers.published_pickles import archived, training_table
from helpers.small_snapshots import NETWORK, small_network
from recipe import convert
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config
from recipe.training.continuation import find_continuation
from recipe.training.initial_weights import InitError

WEIGHTS = "weights-00000004096.safetensors"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    nets = [small_network(seed) for seed in range(3)]
    table = training_table(nets[0], {0.05: nets[1], 0.10: nets[2]}, 4096)
    (folder / "training-state-0000004.pt").write_bytes(archived(table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["convert.py", str(folder / "training-state-0000004.pt"), "--out", str(folder)])
        patch.setattr(convert, "read_training_state", lambda path, network: READ(path, NETWORK))
        convert.main()
    return folder


READ = convert.read_training_state


def config(path: Path | str, *more: str) -> Config:
    given = (f"init.path={path}", "init.whole=true", *more)
    return read_config(train_arguments(Path("none"), Path("none"), *given))


def test_what_is_found(converted: Path):
    found = find_continuation(config(converted / WEIGHTS))
    assert (found.nimg, found.steps) == (4096, 1)
    assert {Path(path).name for path in found.files.values()} == {
        WEIGHTS,
        "adam-00000004096.safetensors",
        "snapshot-00000004096-0.050.safetensors",
        "snapshot-00000004096-0.100.safetensors",
    }


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "average": ("snapshot-00000004096-0.100.safetensors", [], "is not the raw weights of a training"),
    "lengths": (WEIGHTS, ["ema.sigma_rels=[0.05,0.15]"], "-0.150.safetensors: no such snapshot"),
    "batch": (
        WEIGHTS,
        ["global_batch_size=48", "logging.interval=8ba"],
        "at 4096 images, which are no whole number of steps of 48",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, converted: Path):
    file, more, said = REFUSED[name]
    with pytest.raises(InitError) as caught:
        find_continuation(config(converted / file, *more))
    assert said in str(caught.value) and "init.whole=false" in str(caught.value)


def test_without_moments(converted: Path, tmp_path: Path):
    for path in converted.glob("*4096*"):
        if not path.name.startswith("adam"):
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InitError, match=r"adam-00000004096\.safetensors: no such snapshot.*convert it again"):
        find_continuation(config(tmp_path / WEIGHTS))
