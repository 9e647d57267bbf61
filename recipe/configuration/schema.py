"""The one schema of a run: every key with its type, default, meaning, and whether it may change when a run goes on.

    python recipe/config.py yamls/edm2.yaml [more.yaml ...] [key=value ...]      prints the resolved configuration

Defaults are the paper's CONFIG G for ImageNet-512 at size S. A key's text is written here and nowhere else: messages
show it, and `template.py` makes the comments of `yamls/edm2.yaml` from it. The sections of what a run reads are in
`inputs.py`, those of what it writes in `outputs.py`, types with rules of their own in `values.py`, rules between keys
in `rules.py`; `reader.py` merges files and the command line into a `Config`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from recipe.configuration.inputs import Augment, Data
from recipe.configuration.keys import FIXED, FREE, NAMED, Section, key
from recipe.configuration.outputs import Checkpoints, Logging, Metrics, Samples
from recipe.configuration.values import (
    GPU,
    Address,
    Attention,
    Interval,
    LocalPath,
    Positive,
    Probability,
    Rampup,
    Ranks,
    RunFolder,
    SigmaRels,
    SnapshotsKept,
    parse_ranks,
)

Auto = Literal["auto"]  # from the facts of the data, before anything is built
NotNegative = Annotated[int, Field(ge=0)]


class Model(Section):
    """Arguments of `Precond` and `UNet`, under the published keywords (Appendix B)."""

    img_resolution: Positive | Auto = key(
        64, FIXED, "height and width of the images, in pixels or latent pixels; auto = the data's"
    )
    img_channels: Positive | Auto = key(4, FIXED, "channels of the images: 1 grey, 3 RGB, 4 latents; auto = the data's")
    label_dim: NotNegative | Auto = key(1000, FIXED, "number of classes; 0 = unconditional; auto = the data's")
    model_channels: int = key(192, FIXED, "base width of the network", ge=1)
    channel_mult: list[Positive] = key(
        [1, 2, 3, 4], FIXED, "width of each level, times model_channels; the resolution halves per level", min_length=1
    )
    channel_mult_noise: int | None = key(
        None, FIXED, "noise embedding's width, times model_channels; null = channel_mult[0]", 1, ge=1
    )
    channel_mult_emb: int | None = key(
        None, FIXED, "embedding's width, times model_channels; null = the largest of channel_mult", 4, ge=1
    )
    num_blocks: int = key(3, FIXED, "residual blocks per level of the encoder; the decoder has one more", ge=1)
    attn_resolutions: list[Attention] = key(
        [16, 8],
        FIXED,
        "where self-attention is: resolutions, or levels: level0 is img_resolution, level1 half of it, level2 ...",
    )
    label_balance: Probability = key(0.5, FIXED, "share of the class in the embedding, 0 to 1")
    concat_balance: Probability = key(0.5, FIXED, "share of the skip connection in a concatenation, 0 to 1")
    channels_per_head: int = key(64, FIXED, "width of an attention head", ge=1)
    dropout: float = key(0.0, FIXED, "dropout probability in the residual branches", ge=0, lt=1)
    res_balance: Probability = key(0.3, FIXED, "share of the residual branch, 0 to 1")
    attn_balance: Probability = key(0.3, FIXED, "share of the attention branch, 0 to 1")
    clip_act: float | None = key(256.0, FIXED, "activations are clipped to +- this; null = not at all", 256.0, gt=0)
    sigma_data: Annotated[float, Field(gt=0)] | Auto = key(
        0.5,
        FIXED,
        "standard deviation of the images as the network sees them; auto = the data's own, of its stats.json",
    )
    logvar_channels: int = key(128, FIXED, "Fourier features of the learned uncertainty", ge=1)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = key(
        "auto", NAMED, "precision of the activations; auto = float16 on CUDA, float32 on CPU"
    )

    def shape(self) -> tuple[int, int, int]:
        """(img_resolution, img_channels, label_dim), none of which must be auto any more."""
        shape = self.img_resolution, self.img_channels, self.label_dim
        assert not any(isinstance(size, str) for size in shape), "auto is resolved from the data's facts first"
        return shape  # pyright: ignore[reportReturnType]

    def attention(self, img_resolution: int) -> list[int]:
        """`attn_resolutions` as resolutions: each once, in the order given."""
        found = [
            img_resolution >> int(given.removeprefix("level")) if isinstance(given, str) else given
            for given in self.attn_resolutions
        ]
        return list(dict.fromkeys(found))


class Loss(Section):
    """Which noise levels are trained (Table 6)."""

    P_mean: float = key(-0.4, NAMED, "mean of ln sigma in training")
    P_std: float = key(1.0, NAMED, "standard deviation of ln sigma in training", gt=0)
    label_dropout: Probability = key(0.0, NAMED, "share of examples shown without their class, for guidance")


class Optimizer(Section):
    """Adam, and the learning rate (eq. 67)."""

    ref_lr: float = key(0.01, NAMED, "alpha_ref: the highest learning rate", gt=0)
    ref_batches: float = key(70000.0, NAMED, "t_ref: batches before the 1/sqrt decay sets in; 0 = constant", ge=0)
    rampup: Rampup = key("10M", NAMED, "images over which the learning rate rises from 0")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = key(
        [0.9, 0.99], NAMED, "Adam's decay rates of the two moments", min_length=2, max_length=2
    )
    eps: float = key(1e-8, NAMED, "Adam's epsilon, added to the root of the second moment", gt=0)


class EMA(Section):
    """Power-function averages of the weights (Section 3) and their snapshots."""

    sigma_rels: SigmaRels = key([0.05, 0.1], FIXED, "relative lengths of the tracked averages, each below 0.2887")
    snapshot_interval: Interval = key("8Mi", FREE, "images between snapshots of the averages")
    snapshot_dtype: Literal["float16", "float32"] = key(
        "float16", FREE, "precision of the averages; bfloat16 is too coarse for post-hoc sums"
    )
    snapshot_keep: SnapshotsKept = key(
        -1, FREE, "newest snapshots of each average that stay; -1 = all, for post-hoc averages"
    )


class FSDP(Section):
    """Sharding of weights, gradients, Adam's moments and averages over the ranks with FSDP2."""

    shard: int | None = key(
        None, FREE, "ranks that share one copy of the state, others hold replicas; null = all", 8, ge=1
    )
    reshard_after_forward: bool = key(True, FREE, "free a block's weights between forward and backward")
    activation_checkpointing: bool = key(False, FREE, "compute each block twice instead of storing its activations")
    gather_dtype: Literal["float32", "float16", "bfloat16"] = key(
        "float32", FREE, "precision of gathered weights; 16 bits halve the traffic and round the weights"
    )


class Init(Section):
    """Weights to start from: for fine-tuning, only weights, at images seen = 0; or a whole training to go on with."""

    path: Address = key(
        ...,
        FREE,
        "a snapshot (.safetensors) or a run's folder, local or s3://, whose newest checkpoint counts",
        "runs/edm2",
    )
    whole: bool = key(
        False,
        FREE,
        "go on with a training that convert.py read: averages, Adam, clock too; path = its weights",
    )


class Numerics(Section):
    """Shortcuts of the GPU that trade precision for speed."""

    tf32: bool = key(False, NAMED, "allow TensorFloat-32 in float32 matrix products and convolutions")
    reduced_precision_reduction: bool = key(False, NAMED, "allow float16 and bfloat16 accumulation in matrix products")


class Config(Section):
    """A training run."""

    run_name: str = key(
        ..., FREE, "name of the run: letters, digits, . _ -", "img512-s", pattern=r"^[A-Za-z0-9][\w.-]*$"
    )
    save_folder: RunFolder = key(
        "runs/{run_name}", FREE, "folder of everything the run writes, local or s3://bucket/folder"
    )
    scratch_folder: LocalPath | None = key(
        None, FREE, "where files wait for upload if save_folder is s3://...; null = below /tmp", "/scratch"
    )
    seed: int = key(0, NAMED, "seed of the weights, the order of the data and the noise", ge=0, lt=2**32)
    device: Literal["auto", "cpu", "gpu"] = key("auto", FREE, "auto = GPUs if there are any")
    duration: Interval = key("2Gi", FREE, "images to train for")
    global_batch_size: int = key(2048, NAMED, "images per step, over all ranks", ge=1)
    device_train_microbatch_size: Positive | Literal["auto"] | None = key(
        None, FREE, "images per forward pass on one device; null = its share, auto = what fits (CUDA)", 64
    )
    autoresume: bool = key(True, FREE, "go on from the run's latest checkpoint; false = the folder must be new")
    allow_changes: list[str] = key(
        [], FREE, "hyper-parameters that may differ from those the run began with", ["optimizer.ref_lr"]
    )
    dry_run: bool = key(False, FREE, "only check the configuration and print sizes")
    world_size: Ranks | None = key(
        None,
        FREE,
        "of a dry run: ranks to plan for, or nodes x ranks per node; null = this launch's",
        "128x8",
    )
    gpu: GPU | None = key(None, FREE, "of a dry run: the GPU to plan for; null = some common ones", "H100-80GB")
    init: Init | None = key(
        None, FREE, "weights to start from, for fine-tuning; null = random ones", {"path": "runs/edm2"}
    )
    data: Data = key(..., None, "the data set, as shards that recipe/prepare.py wrote", {"local": "data/digits"})
    augment: Augment | None = key(
        None,
        FIXED,
        "random transforms of pixels, known to the network; off in sampling; null = none",
        {"p": 0.12},
    )
    model: Model = key(Model(), None, "the network, under the published keywords", {"model_channels": 192})
    loss: Loss = key(Loss(), None, "the noise levels that are trained", {"P_mean": -0.4})
    optimizer: Optimizer = key(Optimizer(), None, "Adam and its learning rate", {"ref_lr": 0.01})
    ema: EMA = key(EMA(), None, "the averages of the weights, and their snapshots", {"sigma_rels": [0.05, 0.1]})
    fsdp: FSDP | None = key(
        None, FREE, "sharding of the state over the ranks; null = every rank holds everything (DDP)", {"shard": 8}
    )
    checkpoints: Checkpoints = key(
        Checkpoints(), None, "what the run needs to go on where it stopped", {"interval": "8Mi"}
    )
    samples: Samples = key(
        Samples(), None, "grids drawn during training, by the raw weights and by each average", {"interval": "64Mi"}
    )
    metrics: Metrics | None = key(
        None,
        FREE,
        "metrics of what the averages draw, measured during training; null = none",
        {"reference": "data/ref.safetensors"},
    )
    logging: Logging = key(Logging(), None, "where metrics and sample grids go", {"tensorboard": True})
    numerics: Numerics = key(
        Numerics(),
        None,
        "shortcuts of the GPU that trade precision for speed; off in the official code",
        {"tf32": False},
    )

    def run_folder(self) -> str:
        """`save_folder` with the run's name filled in."""
        return self.save_folder.replace("{run_name}", self.run_name).rstrip("/")

    def network_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Precond`, without `dtype`, which is not part of the weights' meaning.

        No key of `model` must be auto any more.
        """
        from recipe.edm2.augment import CONDITIONS  # here, as a bad configuration must be refused before torch loads

        assert self.model.sigma_data != "auto"
        resolution, *_ = self.model.shape()
        own = {"attn_resolutions": self.model.attention(resolution)}
        conditions = {"augment_dim": 0 if self.augment is None else CONDITIONS}
        return self.model.model_dump(exclude={"dtype"}) | own | conditions

    def planned_ranks(self) -> tuple[int, int | None] | None:
        """(ranks, ranks per node) of `world_size`, if it is given; None for what is not."""
        return None if self.world_size is None else parse_ranks(self.world_size)
