"""The result of a run does not depend on how many ranks trained it, nor how its state was sharded.

The ranks are forked; Composer's launcher and torchrun start the same training for real in test_launch.py.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from streaming import MDSWriter, StreamingDataset

from helpers.commands import train_arguments
from helpers.forks import run_forked, train
from helpers.golden_data import check_final_weights, load, under
from helpers.runs import difference, losses, part, snapshots, state

pytestmark = pytest.mark.slow
STEPS = 9
SABOTAGE = Path(__file__).with_name("sabotage.py")
LIKE = (
    f"duration={STEPS}ba",
    "optimizer.ref_batches=5",  # so that the learning rate also falls
    f"ema.snapshot_interval={STEPS}ba",
    f"checkpoints.interval={STEPS}ba",
    "ema.snapshot_dtype=float32",
    "loss.label_dropout=0.1",
)


@dataclasses.dataclass
class Result:
    """What a run ended in."""

    folder: Path

    def assert_like(self, other: "Result", loss: float = 1e-5, weights: float = 1e-5) -> None:
        own, others = losses(self.folder), losses(other.folder)
        assert own.keys() == others.keys()
        assert [own[step] for step in sorted(own)] == pytest.approx([others[step] for step in sorted(own)], rel=loss)
        ends = state(self.folder), state(other.folder)
        for prefix in ("net.", "emas.0_050.", "emas.0_100."):
            assert difference(*(part(end, prefix) for end in ends)) < weights, prefix
        stored = snapshots(self.folder), snapshots(other.folder)
        assert stored[0].keys() == stored[1].keys()
        for name in stored[0]:
            assert difference(stored[0][name], stored[1][name]) < weights, name


@pytest.fixture(scope="module")
def one_rank(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("one") / "run"
    done = train(digits, folder, *LIKE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(losses(folder)) == list(range(STEPS))
    return Result(folder)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ["device_train_microbatch_size=4"]),
        (1, ["fsdp={}", "device_train_microbatch_size=8"]),
        (2, []),
        (2, ["fsdp={}"]),
        (2, ["fsdp.activation_checkpointing=true", "device_train_microbatch_size=4"]),
        (2, ["fsdp.reshard_after_forward=false", "device_train_microbatch_size=2"]),
        pytest.param(4, ["device_train_microbatch_size=2"], marks=pytest.mark.soak),
        pytest.param(4, ["fsdp={}"], marks=pytest.mark.soak),
        (4, ["fsdp.shard=2"]),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else ",".join(value) or "ddp",
)
def test_same_result_on_any_ranks(ranks: int, overrides: list[str], one_rank: Result, digits: Path, tmp_path: Path):
    done = train(digits, tmp_path / "run", *LIKE, *overrides, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    Result(tmp_path / "run").assert_like(one_rank)


@pytest.mark.parametrize("mistake", ["drop_projection_on_one_rank", "key_noise_by_rank", "sum_gradients"])
def test_the_comparison_notices(mistake: str, one_rank: Result, digits: Path, tmp_path: Path):
    """The test above can fail: each mistake that only several ranks can show does make it red."""
    arguments = train_arguments(digits, tmp_path / "run", *LIKE, "fsdp={}")
    done = run_forked(SABOTAGE, mistake, *arguments, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(AssertionError):
        Result(tmp_path / "run").assert_like(one_rank)


def test_same_augmentation_on_any_ranks(digits: Path, tmp_path: Path):
    """Augmented, mirrored and balanced on 1 rank, and on 2 that share the state; keyed by place, it would differ."""
    overrides = (*LIKE, "augment={p: 0.3}", "data.x_flip=true", "data.class_balanced=true", "model.sigma_data=auto")
    wrong = train_arguments(digits, tmp_path / "wrong", *overrides)
    for done in (
        train(digits, tmp_path / "one", *overrides),
        train(digits, tmp_path / "two", *overrides, "fsdp={}", ranks=2),
        run_forked(SABOTAGE, "key_augmentation_by_rank", *wrong, ranks=2),
    ):
        assert done.returncode == 0, done.stdout + done.stderr
    one = Result(tmp_path / "one")
    assert state(one.folder)["net.unet.emb_augment_gain"].item() != 0
    Result(tmp_path / "two").assert_like(one)
    with pytest.raises(AssertionError):
        Result(tmp_path / "wrong").assert_like(one)


def test_gathering_in_16_bits_still_learns(one_rank: Result, digits: Path, tmp_path: Path):
    """gather_dtype rounds the weights, so the losses agree to that rounding only, and do not agree exactly."""
    done = train(digits, tmp_path / "run", *LIKE, "fsdp.gather_dtype=bfloat16", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    rounded, exact = losses(tmp_path / "run"), losses(one_rank.folder)
    assert [rounded[step] for step in range(STEPS)] == pytest.approx([exact[step] for step in range(STEPS)], rel=2e-2)
    assert rounded != exact


def test_resume_on_other_ranks(one_rank: Result, digits: Path, tmp_path: Path):
    """2 sharded ranks, then 1 without sharding, then 4 sharded: the same end as one that was never interrupted."""
    folder = tmp_path / "run"
    for ranks, steps, overrides in ((2, 3, ["fsdp={}"]), (1, 6, []), (4, STEPS, ["fsdp={}"])):
        settings = [
            *LIKE,
            f"duration={steps}ba",
            "ema.snapshot_interval=3000ba",
            "checkpoints.interval=3ba",
            *overrides,
        ]
        done = train(digits, folder, *settings, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    for path in (folder / "snapshots").iterdir():  # of the ends in between
        if f"{STEPS * 16:011d}" not in path.name:
            path.unlink()
    Result(folder).assert_like(one_rank)


def test_epochs_end_alike_on_any_ranks(digits: Path, tmp_path: Path):
    """31 images, batches of 16: two ranks get 16 each, padded, which must not make a second batch."""
    few = tmp_path / "few"
    with MDSWriter(out=str(few), columns={"image": "png", "label": "int"}) as writer:
        for sample in StreamingDataset(local=str(digits), batch_size=1, num_canonical_nodes=1):
            if len(writer.new_samples) < 31:
                writer.write({"image": sample["image"], "label": sample["label"]})
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2)}
    for ranks, folder in folders.items():
        for steps in (3, 5):  # in between it is resumed at the end of an epoch
            settings = (*LIKE, f"duration={steps}ba", "checkpoints.interval=3ba", "ema.snapshot_interval=5ba")
            done = train(few, folder, *settings, ranks=ranks)
            assert done.returncode == 0, done.stdout + done.stderr
    Result(folders[2]).assert_like(Result(folders[1]))


def test_golden_training_sharded(tmp_path: Path):
    """The reference training under FSDP2 on 2 ranks: the official code's losses, weights and averages."""
    golden, _ = load("training")
    done = run_forked(Path(__file__).with_name("golden_ranks.py"), tmp_path / "out.pt", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    out = torch.load(tmp_path / "out.pt")
    assert out["sharded"]
    assert out["losses"] == pytest.approx(golden["out/loss"].tolist(), rel=1e-5)
    assert out["weights"].keys() == {"final", "ema_0.050", "ema_0.100"}
    for key, weights in out["weights"].items():
        check_final_weights(weights, under(golden, key))
