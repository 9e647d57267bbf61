"""The documented commands as they stand: their own text, with places and sizes put in alone.

What needs a cluster or a download is read, checked and planned as it stands.
"""

import argparse
import glob
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from streaming import MDSWriter

from helpers.commands import ROOT
from helpers.documented import ALL, after_script, matching, placed, sized
from helpers.forks import run_forked
from helpers.object_store import ObjectStore
from helpers.picture_sets import messy_folder
from recipe import prepare, report, sample, sweep
from recipe.command_line import parse_numbers
from recipe.configuration.reader import read_config
from recipe.data.facts import DataFacts
from recipe.evaluation import sweep_options
from recipe.planning.plan import print_plan
from recipe.storage.addresses import open_place

NETWORK = {
    "model.model_channels": 16, "model.num_blocks": 1, "model.channels_per_head": 16, "global_batch_size": 8,
    "device_train_microbatch_size": "null", "data.num_workers": 0, "optimizer.rampup": 8,
}  # fmt: skip
STEPS = {
    "duration": "16ba", "ema.snapshot_interval": "1ba", "checkpoints.interval": "8ba", "samples.interval": "16ba",
    "samples.count": 4, "samples.num_steps": 2, "logging.progress_bar": "false", "logging.interval": "16ba",
}  # fmt: skip
SIZES = NETWORK | STEPS


class Workplace:
    """A folder in which the documented places lie.

    Attributes:
        places: what stands for them.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        names = ("data", "runs", "out", "photos", "grid.png", "ILSVRC2012", "cifar10-32x32.zip", "datasets")
        self.places: dict[str, object] = {name: folder / name for name in names}

    def run(self, command: str, sizes: Mapping[str, object], ranks: int = 1) -> str:
        """Run the script of a command; returns what it printed."""
        script, words = after_script(command)
        words = placed(words, self.places)
        if script.endswith("train.py") and not any(word.startswith("save_folder=") for word in words):
            words.append(f"save_folder={self.folder}/runs/{{run_name}}")
        words = [match for word in sized(words, sizes) for match in sorted(glob.glob(word)) or [word]]
        done = run_forked(ROOT / script, *words, ranks=ranks, timeout=300)
        assert done.returncode == 0, (command, done.stdout + done.stderr)
        return done.stdout

    def one(self, pattern: str, sizes: Mapping[str, object], ranks: int = 1) -> str:
        """Run the one command that all pages have of this pattern."""
        (command,) = matching(pattern)
        return self.run(command, sizes, ranks)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Where somebody has made shards of a folder of all kinds of pictures, and trained on them: two commands."""
    workplace = Workplace(tmp_path_factory.mktemp("somebody's place"))
    photos = workplace.folder / "photos"
    for name in messy_folder(photos):
        (photos / name).unlink()  # what is no picture is refused, and tested elsewhere
    said = workplace.one(r"python recipe/prepare\.py photos/ --out data/photos --resolution 64", {})
    assert "images of 3x64x64 in 4 classes" in said
    said = workplace.one(r"composer recipe/train\.py \S+ data\.local=data/photos run_name=photos", SIZES)
    assert "trained to 128 images" in said
    return workplace


@pytest.mark.slow
def test_own_pictures(workplace: Workplace):
    """The sizes came from the data, and training drew samples; so do averages made after it."""
    run = workplace.folder / "runs" / "photos"
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert [model[key] for key in ("img_resolution", "img_channels", "label_dim")] == [64, 3, 4]
    assert model["attn_resolutions"] == [16, 8] and 0.1 < model["sigma_data"] < 1
    assert list((run / "samples").glob("*.png"))
    workplace.one(r"python recipe/reconstruct\.py runs/photos .*", {})
    workplace.one(r"python recipe/sample\.py runs/photos.*", {"--steps": 2})
    assert len(list((workplace.folder / "out").glob("*.png"))) == 40 and (workplace.folder / "grid.png").is_file()


@pytest.mark.slow
def test_data_page(workplace: Workplace):
    sheet = workplace.folder / "sheet.png"
    said = workplace.one(r"python recipe/prepare\.py --inspect data/photos", {"--sheet": sheet})
    assert re.search(r"Äpfel 🍎", said) and sheet.is_file()
    few = {"global_batch_size": 8, "device_train_microbatch_size": 8}
    said = workplace.one(r"composer recipe/train\.py yamls/pixels-64\.yaml .*dry_run=true", few)
    assert re.search(r"data +\d+ images of 3x64x64 pixels, network of 4 classes", said)
    assert re.search(r"parameters +124\.\d+ M", said)


@pytest.mark.slow
def test_object_storage(workplace: Workplace, object_store: ObjectStore, bucket_folder: str):
    run, place = workplace.folder / "runs" / "photos", open_place(f"{bucket_folder}/runs/img512-xl")
    for path in run.rglob("*"):
        if path.is_file():
            place.upload(path.relative_to(run).as_posix(), path)
    workplace.places["s3://BUCKET"] = bucket_folder
    for command in matching(r"python recipe/(prepare|fetch|reconstruct)\.py .*s3://BUCKET/(digits|runs/img512-xl).*"):
        if command not in MARKED:
            workplace.run(command, {})
    assert open_place(f"{bucket_folder}/digits").size("index.json") is not None
    assert list((workplace.folder / "runs" / "xl" / "checkpoints").iterdir())
    assert open_place(f"{bucket_folder}/runs/img512-xl/posthoc").list()


@pytest.mark.slow
def test_the_embedded_run(workplace: Workplace, digits: Path):
    """On one rank and, sharded, on two, whatever launches them."""
    sizes = SIZES | {"model.img_resolution": 8, "model.channel_mult": "[1,2]", "model.attn_resolutions": "[4]"}
    sizes |= {"data.local": digits, "duration": "2ba", "checkpoints.interval": "2ba", "samples.interval": "null"}
    said = workplace.run("composer recipe/train.py yamls/edm2.yaml", sizes | {"run_name": "one"})
    assert "composer recipe/train.py yamls/edm2.yaml" in matching(r"composer recipe/train\.py .*")
    assert "trained to 16 images" in said
    texts = {tuple(after_script(command)[1]) for command in matching(r"(composer -n 2|torchrun --nproc-per-node=2) .*")}
    for number, words in enumerate(texts):
        command = shlex.join(["recipe/train.py", *words])
        assert "trained to 16 images" in workplace.run(command, sizes | {"run_name": f"two-{number}"}, ranks=2)


# What needs a cluster or a download

MARKED = [command for _, command, marked in ALL if marked]
RUNS = [command for _, command, _ in ALL if re.search(r"\b(recipe/train\.py|launch/run\.sh)( (?!recipe/)|$)", command)]
"""Commands that start a run, or plan one."""
OTHERS = [
    command
    for command in MARKED
    if re.search(r"recipe/(prepare|sample|sweep|report)\.py|launch/(array_eval|sweep)\.sh", command)
]


def shards_in_name(folder: Path, facts: dict[str, object]) -> None:
    """A data set of empty samples, for what looks at its facts alone."""
    pixels = facts["kind"] == "pixels"
    columns = {"image": "bytes", "label": "int"} if pixels else {"mean": "bytes", "std": "bytes", "label": "int"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for index in range(600):
            writer.write({name: b"" for name in columns if name != "label"} | {"label": index % 4})
    (folder / "stats.json").write_text(DataFacts.from_json({"sigma_data": 0.5, **facts}, "here").text())


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The data sets that the pages have people make, as far as a plan looks at them."""
    workplace = Workplace(tmp_path_factory.mktemp("planned"))
    for name, kind, resolution, channels, label_dim in (
        ("photos", "pixels", 64, 3, 4),
        ("cifar10", "pixels", 32, 3, 10),
        ("photos-latents", "latents", 32, 4, 4),
        ("digits", "pixels", 16, 1, 10),
    ):
        facts = {"kind": kind, "img_resolution": resolution, "img_channels": channels, "label_dim": label_dim}
        shards_in_name(workplace.folder / "data" / name, facts)
    return workplace


PLANNED_BY_SIZE = ("img512-s", "img512-xl")  # by test_docs.py, which also runs what says dry_run=true
PLACES_ALONE = ("run_name", "save_folder", "data.remote", "data.local")


@pytest.mark.slow
def test_runs_are_planned(at_hand: Workplace, monkeypatch: pytest.MonkeyPatch, capsys):
    """The configuration has no mistake, and fits the data where these are at hand. Fewer blocks are planned quickly."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TMPDIR", "/tmp")  # which one of them refers to
    planned = set()
    for command in RUNS:
        _, words = after_script(command)
        if not any(word.startswith("data.") for word in words):
            words.append("data.local=data/digits")
        config = read_config(sized(placed(words, at_hand.places), {"dry_run": "true", "model.num_blocks": 1}))
        like_it = tuple(word for word in words if word.partition("=")[0] not in PLACES_ALONE)
        elsewhere = "dry_run=true" in words or f"{Path(words[0]).stem}" in PLANNED_BY_SIZE
        if like_it not in planned and not elsewhere:
            print_plan(config)
            assert re.search(r"^parameters +\d", capsys.readouterr().out, re.MULTILINE), command
        planned.add(like_it)
    assert len(RUNS) > 15


@pytest.mark.parametrize("command", dict.fromkeys(OTHERS))
def test_options_are_checked(command: str, at_hand: Workplace):
    script, words = after_script(command)
    words = placed(words, at_hand.places | {"SNAPSHOT": "s3://bucket/snapshot.safetensors"})
    if script.endswith("prepare.py"):
        arguments = prepare.arguments_parser().parse_args(words)
        prepare.check(arguments)
        prepare.settings_of(arguments)
        return
    if script.endswith(("sweep.py", "sweep.sh")):
        sweep_options.check(sweep.arguments_parser().parse_args(words))
        return
    if script.endswith("report.py"):
        report.arguments_parser().parse_args(words)
        return
    if script.endswith("array_eval.sh"):
        _, lengths, *words = words
        assert parse_numbers(lengths)
        words = ["snapshot.safetensors", "--out", str(at_hand.folder / "out"), *words]
    arguments = sample.arguments_parser().parse_args(words)
    assert isinstance(arguments, argparse.Namespace) and sample.check(arguments)
