"""A run's folder holds one run, on the data that it began with; what else lies there is the user's."""

import json
from pathlib import Path

import pytest

from helpers.commands import train_arguments
from helpers.small_shards import digests, write_shards
from recipe.command_line import UserError
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Config
from recipe.data.checks import check_data
from recipe.data.facts import DataError, DataFacts
from recipe.data.meaning import differences
from recipe.training.initial_weights import InitError, compare
from recipe.training.origin import NAME, Origin
from recipe.training.preflight import prepare

BATCHES = ("global_batch_size=8", "duration=8ba", "ema.snapshot_interval=8ba", "checkpoints.interval=8ba")
CATS = {"class_names": [f"cat{number}" for number in range(10)]}
DOGS = {"class_names": [f"dog{number}" for number in range(10)]}


def config_for(data: Path | None, folder: Path, *overrides: str) -> Config:
    local = "null" if data is None else str(data)
    return read_config(
        train_arguments(Path(local), folder, *BATCHES, "logging.interval=8ba", f"data.local={local}", *overrides)
    )


def start(config: Config) -> str:
    """Begin a run as rank 0 does, and end; returns its name."""
    found, ownership = prepare(config)
    ownership.release()
    assert found.run is not None
    return found.run


def stored(folder: Path, checkpoint: bool = True, snapshots: bool = True) -> None:
    """What a run leaves, as far as its start looks at it."""
    import torch

    for name, wanted in (("checkpoints/ba8-rank0.pt", checkpoint), ("snapshots/snapshot-00000000064-0.050", snapshots)):
        path = folder / (name if name.endswith(".pt") else f"{name}.safetensors")
        if wanted:
            path.parent.mkdir(exist_ok=True)
            torch.save({}, path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", facts=CATS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_the_same_run_has_the_same_name(data: Path, folder: Path, tmp_path: Path):
    name = start(config_for(data, folder))
    assert start(config_for(data, folder)) == name
    assert start(config_for(data, tmp_path / "other", "data.num_workers=1", "run_name=other")) == name
    assert start(config_for(data, tmp_path / "third", "seed=1")) != name


def test_a_run_killed_before_its_first_checkpoint_begins_again(data: Path, folder: Path):
    name = start(config_for(data, folder))
    stored(folder, checkpoint=False)
    assert start(config_for(data, folder)) == name


@pytest.mark.parametrize("how", ["seed", "data", "no note", "changed on the way", "autoresume"])
def test_a_new_run_among_snapshots_of_another(how: str, data: Path, folder: Path):
    start(config_for(data, folder))
    stored(folder)
    overrides = {"seed": ["seed=1", "allow_changes=[seed]"], "autoresume": ["autoresume=false"]}.get(how, [])
    if how == "changed on the way":
        changed = ["optimizer.ref_lr=0.5", "allow_changes=[optimizer.ref_lr]"]
        start(config_for(data, folder, *changed))
        overrides = changed
    (folder / "checkpoints" / "ba8-rank0.pt").unlink()
    if how == "data":
        data = write_shards(data.with_name("others"), seed=1)
    if how == "no note":
        (folder / NAME).unlink()
    before = digests(folder)
    with pytest.raises(UserError, match=r"save_folder .*run: a run would begin here, but snapshots/ holds those of"):
        start(config_for(data, folder, *overrides))
    assert digests(folder) == before


def test_a_run_goes_on_with_its_own_data_alone(data: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    name = start(config_for(data, folder))
    stored(folder)
    moved = data.rename(data.with_name("moved"))
    assert start(config_for(moved, folder)) == name
    others = write_shards(data, seed=1, facts=DOGS)
    with pytest.raises(UserError, match=r'^data: are others .*class 0 was "cat0" and is "dog0".*and 7 more classes'):
        start(config_for(others, folder))
    assert start(config_for(others, folder, "allow_changes=[data]")) == name
    assert 'goes on with other data than it began with (class 0 was "cat0"' in capsys.readouterr().out
    assert start(config_for(others, folder)) == name
    assert json.loads((folder / NAME).read_text())["changed"] == ["data"]


def test_a_run_of_an_earlier_version_goes_on(data: Path, folder: Path):
    start(config_for(data, folder))
    stored(folder)
    (folder / NAME).unlink()
    start(config_for(data, folder))
    assert (folder / NAME).exists()


def test_a_damaged_note(data: Path, folder: Path):
    start(config_for(data, folder))
    (folder / NAME).write_text('{"run": 3')
    with pytest.raises(UserError, match=r"origin\.json: is damaged"):
        start(config_for(data, folder))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("config.yaml", "database: production\n", r"holds a config\.yaml that is not of a run of this recipe"),
        ("config.yaml", "", r"holds a config\.yaml that is not"),
        ("checkpoints/ba8-rank0.pt", "x", r"holds checkpoints/ba8-rank0\.pt, but no config\.yaml"),
        ("checkpoints/ep0-ba8/__0_0.distcp", "x", "holds checkpoints/ep0-ba8, but no config"),
        ("snapshots/snapshot-00000000064-0.050.safetensors", "x", "snapshots/ holds those of another one"),
    ],
)
def test_a_folder_of_something_else_stays_as_it_is(name: str, text: str, match: str, data: Path, folder: Path):
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    before = digests(folder, data)
    with pytest.raises(UserError, match=rf"save_folder .*{match}"):
        start(config_for(data, folder))
    assert digests(folder, data) == before


def test_data_in_the_scratch_folder(tmp_path: Path):
    data = write_shards(tmp_path / "scratch" / "tiny" / "data")
    from recipe.storage.addresses import open_place
    from recipe.training.folder import take_scratch
    from recipe.training.preflight import check_scratch_folder

    config = config_for(data, Path("s3:/bucket/run"), f"scratch_folder={tmp_path / 'scratch'}")
    place = open_place("s3://bucket/run")
    with pytest.raises(UserError, match=r"scratch_folder: .*tiny holds files that no run put there, such as data"):
        check_scratch_folder(config, place)
    empty = tmp_path / "empty" / "tiny"
    take_scratch(empty, place.address)
    inside = config_for(write_shards(empty / "data"), Path("x"), f"scratch_folder={tmp_path / 'empty'}")
    with pytest.raises(UserError, match=r"data\.local .*: lies in .*, which the run empties"):
        check_scratch_folder(inside, place)


FACTS = DataFacts.from_json({"kind": "latents", "vae": "a/b", "vae_sha256": "1" * 64, **CATS}, "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"vae": "c/d"}, []),  # another name of the same weights
        ({"vae_sha256": "2" * 64}, ["the autoencoder was a/b (11111111) and is a/b (22222222)"]),
        ({"vae_sha256": None, "vae": "c/d"}, ["the vae was a/b and is c/d"]),
        ({"class_names": None}, []),
        ({"class_names": CATS["class_names"][:9]}, ["there were 10 classes and are 9"]),
        ({"class_names": ["yak", *CATS["class_names"][1:]]}, ['class 0 was "cat0" and is "yak"']),
        ({"kind": "pixels"}, ["the kind was latents and is pixels"]),
        ({"whitening": {"mean": [0.0], "std": [1.0]}}, []),
    ],
)
def test_differences_in_words(change: dict, said: list[str]):
    now = DataFacts.from_json({**FACTS.to_json(), **change}, "there")
    assert differences(FACTS, now, labels=True) == said
    assert [text for text in differences(FACTS, now, labels=False) if "class" in text] == []


@pytest.mark.parametrize("case", ["names", "unconditional", "silent"])
def test_streams_of_other_classes(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folders = [write_shards(tmp_path / "a", facts=CATS)]
    folders.append(write_shards(tmp_path / "b", seed=1, facts={} if case == "silent" else DOGS))
    sections = [{"local": str(folder), "proportion": 1} for folder in folders]
    labels = ["model.label_dim=0", "loss.label_dropout=0"] if case == "unconditional" else []
    config = config_for(None, tmp_path / "run", f"data.streams={json.dumps(sections)}", *labels)
    if case == "names":
        with pytest.raises(DataError, match=r'data\.streams\[1\].*means other things than .*class 0 was "cat0" and is'):
            check_data(config)
    else:
        assert check_data(config).samples == 240
        assert ("does not say the names of its classes" in caplog.text) == (case == "silent")


def test_fine_tuning_on_other_data_is_told(capsys: pytest.CaptureFixture[str]):
    compare(DataFacts.from_json(CATS, ""), DataFacts.from_json(DOGS, ""), "runs/cats", labels=True)
    assert 'init: other data than those of runs/cats: class 0 was "cat0" and is "dog0"' in capsys.readouterr().out
    compare(DataFacts(), DataFacts.from_json(DOGS, ""), "runs/cats", labels=True)
    assert capsys.readouterr().out == ""
    with pytest.raises(InitError, match=r"init\.path runs/cats: is of latents, but the data are pixels"):
        compare(DataFacts(kind="latents"), DataFacts(kind="pixels"), "runs/cats", labels=True)


def test_an_origin_is_read_as_it_was_written(tmp_path: Path):
    from recipe.storage.addresses import open_place

    origin = Origin("abc", ["1", "2"], {"class_names": ["a"]}, ["seed"])
    origin.write(open_place(tmp_path))
    assert Origin.read(open_place(tmp_path)) == origin
