"""The one schema of a run: every key with its type, unit, range and default.

    python recipe/config.py yamls/edm2.yaml [more.yaml ...] [key=value ...]      prints the resolved configuration

Defaults are the paper's CONFIG G for ImageNet-512 at size S. How files and the command line are read and merged, and
how problems are worded, is in `config_reader.py`; rules that span several keys are in `config_rules.py`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator

from recipe.configuration.spans import Span

Images = Annotated[Span, BeforeValidator(Span.parse), PlainSerializer(str)]
SigmaRel = Annotated[float, Field(gt=0, lt=12**-0.5)]
AUGMENT_DIM = 9  # conditions of the augmentation
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of keys: unknown ones are errors, and so are values of another type than declared."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, protected_namespaces=(),
        allow_inf_nan=False,
    )  # fmt: skip

    @field_validator("*", mode="before")
    @classmethod
    def given(cls, value: object) -> object:
        """Neither spaces nor `???`, which OmegaConf reads as a string, are a value of any key."""
        if isinstance(value, str) and value.strip() in ("", "???"):
            raise ValueError("must not be blank")
        return value


def key(default, description: str, example=None, **rules):
    """One key of the schema; `example` is what an error suggests if there is no default to show."""
    examples = [default if example is None else example]
    return Field(default, description=description, examples=examples, validate_default=True, **rules)


class Stream(Section):
    """One of several data sets that are mixed."""

    local: str = key(..., "folder of its shards, or of their cache if remote is set", "data/digits", min_length=1)
    remote: str | None = key(None, "folder of its shards in object storage; null = local has them",
                             "s3://bucket/shards", min_length=1)  # fmt: skip
    proportion: float = key(..., "its share of the samples, relative to the others' proportions", 1.0, gt=0)


class Data(Section):
    """Where the images are: a folder of MDS shards that `recipe/prepare.py` wrote, or several of them."""

    local: str | None = key(None, "folder of the shards, or of their cache if data.remote is set", "data/digits",
                            min_length=1)  # fmt: skip
    remote: str | None = key(None, "folder of the shards in object storage; null = data.local has them",
                             "s3://bucket/shards", min_length=1)  # fmt: skip
    streams: list[Stream] | None = key(None, "data sets to mix, instead of data.local and data.remote",
                                       [{"local": "data/digits", "proportion": 1.0}], min_length=1)  # fmt: skip
    shuffle: bool = key(True, "shuffle each epoch anew")
    class_balanced: bool = key(False, "draw each class equally often, whatever its number of images")
    x_flip: bool = key(False, "mirror half of the images; the network is not told, so that samples are mirrored too")
    num_canonical_nodes: int = key(64, "fixes the order of the samples whatever the number of nodes", ge=1)
    num_workers: int = key(2, "decoding processes per rank; 0 = decode in the training process", ge=0)
    cache_limit: str | None = key(None, "disk space for the cache on each node; null = no limit", "200gb")


class Model(Section):
    """The network, under the published keywords (Appendix B; arguments of `Precond` and `UNet`)."""

    img_resolution: int = key(64, "height and width of the images, in pixels or latent pixels", ge=1)
    img_channels: int = key(4, "channels of the images: 3 for RGB, 4 for latents", ge=1)
    label_dim: int = key(1000, "number of classes; 0 = unconditional", ge=0)
    model_channels: int = key(192, "base width of the network", ge=1)
    channel_mult: list[Annotated[int, Field(ge=1)]] = key(
        [1, 2, 3, 4], "width of each level, times model_channels", min_length=1)  # fmt: skip
    channel_mult_noise: int | None = key(None, "width of the noise embedding's input; null = channel_mult[0]", 1, ge=1)
    channel_mult_emb: int | None = key(None, "width of the embedding; null = the largest of channel_mult", 4, ge=1)
    num_blocks: int = key(3, "residual blocks per level of the encoder", ge=1)
    attn_resolutions: list[Annotated[int, Field(ge=1)]] = key([16, 8], "resolutions with self-attention")
    label_balance: Probability = key(0.5, "share of the class in the embedding")
    concat_balance: Probability = key(0.5, "share of the skip connection in a concatenation")
    channels_per_head: int = key(64, "width of an attention head", ge=1)
    dropout: float = key(0.0, "dropout probability in the residual branches", ge=0, lt=1)
    res_balance: Probability = key(0.3, "share of the residual branch")
    attn_balance: Probability = key(0.3, "share of the attention branch")
    clip_act: float | None = key(256.0, "activations are clipped to +- this; null = not at all", 256.0, gt=0)
    sigma_data: Annotated[float, Field(gt=0)] | Literal["auto"] = key(
        0.5, "standard deviation of the images as the network sees them; auto = the data's own, of its stats.json"
    )
    logvar_channels: int = key(128, "Fourier features of the uncertainty", ge=1)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = key(
        "auto", "precision of the activations; auto = float16 on CUDA, float32 on CPU")  # fmt: skip


class Augment(Section):
    """Transforms of pixels that the network is told about (Karras et al. 2022, Appendix F.2); off when sampling.

    Each is applied with probability p times its multiplier, or always if that is above 1.
    """

    p: Probability = key(0.12, "probability of each transform; EDM: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2")
    x_flip: float = key(1e8, "multiplier of mirroring left-right, half of the images that it applies to", ge=0)
    y_flip: float = key(1.0, "multiplier of mirroring upside down, half of the images that it applies to", ge=0)
    scale: float = key(1.0, "multiplier of scaling, by 2^(0.2 z), z ~ N(0, 1)", ge=0)
    rotation: float = key(1.0, "multiplier of rotation by any angle", ge=0)
    anisotropy: float = key(1.0, "multiplier of stretching in one direction, by 2^(0.2 z)", ge=0)
    translation: float = key(1.0, "multiplier of translation, by z/8 of the image's width and height", ge=0)


class Loss(Section):
    """Which noise levels are trained (Table 6)."""

    P_mean: float = key(-0.4, "mean of ln sigma")
    P_std: float = key(1.0, "standard deviation of ln sigma", gt=0)
    label_dropout: Probability = key(0.0, "share of examples shown without their class")


class Optimizer(Section):
    """Adam, and the learning rate (eq. 67)."""

    ref_lr: float = key(0.01, "alpha_ref: the highest learning rate", gt=0)
    ref_batches: float = key(70000.0, "t_ref: batches before the 1/sqrt decay sets in; 0 = constant", ge=0)
    rampup: Images = key("10M", "images over which the learning rate rises from 0")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = key(
        [0.9, 0.99], "Adam's decay rates", min_length=2, max_length=2)  # fmt: skip
    eps: float = key(1e-8, "Adam's epsilon", gt=0)


class EMA(Section):
    """Power-function averages of the weights (Section 3) and their snapshots."""

    sigma_rels: list[SigmaRel] = key([0.05, 0.1], "relative lengths of the tracked averages", min_length=1)
    snapshot_interval: Images = key("8Mi", "images between snapshots")
    snapshot_dtype: Literal["float16", "float32"] = key("float16", "precision of the stored averages")
    snapshot_keep: int = key(-1, "how many of the newest snapshots of each average stay; -1 = all, which post-hoc "
                                 "averages need", ge=-1)  # fmt: skip


class FSDP(Section):
    """Sharding of weights, gradients, Adam's moments and averages over the ranks with FSDP2."""

    shard: int | None = key(None, "ranks that share one copy of the state; the others hold replicas (HSDP); null = all",
                            8, ge=1)  # fmt: skip
    reshard_after_forward: bool = key(True, "free a block's weights between forward and backward")
    activation_checkpointing: bool = key(False, "compute each block twice instead of storing its activations")
    gather_dtype: Literal["float32", "float16", "bfloat16"] = key(
        "float32", "precision of gathered weights; 16 bits halve the traffic and round the weights")  # fmt: skip


class Init(Section):
    """Weights to start from, for fine-tuning: only weights, at images seen = 0."""

    path: str = key(..., "a snapshot (.safetensors) or a run's folder, local or s3://, whose newest checkpoint counts",
                    "runs/edm2/snapshots/snapshot-00000051200-0.100.safetensors", min_length=1)  # fmt: skip


class Checkpoints(Section):
    """What a run needs to go on exactly where it stopped."""

    interval: Images = key("8Mi", "images between checkpoints")
    keep: int = key(2, "how many checkpoints stay on disk; -1 = all", ge=-1)


class Samples(Section):
    """Grids of samples drawn during training, by the raw weights and by each average."""

    interval: Images | None = key(None, "images between grids; null = none", "64Mi")
    count: int = key(40, "images in a grid; image i has seed i and class i mod label_dim", ge=1)
    num_steps: int = key(32, "noise levels of the sampler", ge=1)
    guidance: float = key(1.0, "classifier-free guidance, for networks trained with label_dropout; 1 = none", ge=0)
    vae: str | None = key(None, "of latents: the autoencoder that decodes them, a folder or OWNER/NAME on the Hugging "
                                "Face hub; null = the images are pixels", "stabilityai/sd-vae-ft-mse",
                          min_length=1)  # fmt: skip
    batch_size: int = key(40, "images drawn at once; changes memory, not the result", ge=1)


class WandB(Section):
    """Weights & Biases; the key enters by the environment only (WANDB_API_KEY)."""

    project: str = key("edm2", "project that the run appears in", min_length=1)
    entity: str | None = key(None, "team or user; null = the account's default", "my-team", min_length=1)
    mode: Literal["online", "offline"] = key("online", "offline = write to the run's folder only")


class MLflow(Section):
    """MLflow; credentials enter by the environment only (MLFLOW_TRACKING_USERNAME, ..._PASSWORD)."""

    experiment: str = key("edm2", "experiment that the run appears in", min_length=1)
    tracking_uri: str | None = key(None, "server; null = MLFLOW_TRACKING_URI or a local folder", "http://host:5000",
                                   min_length=1)  # fmt: skip


class Logging(Section):
    """Where metrics and sample grids go."""

    progress_bar: bool = key(True, "show Composer's progress bar")
    tensorboard: bool = key(True, "write TensorBoard events below save_folder")
    wandb: WandB | None = key(None, "log to Weights & Biases; null = off", {"project": "edm2"})
    mlflow: MLflow | None = key(None, "log to MLflow; null = off", {"experiment": "edm2"})
    interval: Images = key("100ba", "images between two lines of the console log, if progress_bar is off")


class Numerics(Section):
    """Shortcuts of the GPU that trade precision for speed; off in the official code."""

    tf32: bool = key(False, "allow TensorFloat-32 in float32 matrix products and convolutions")
    reduced_precision_reduction: bool = key(False, "allow float16 and bfloat16 accumulation in matrix products")


class Config(Section):
    """A training run."""

    run_name: str = key(..., "name of the run: letters, digits, . _ -", "img512-s", pattern=r"^[A-Za-z0-9][\w.-]*$")
    save_folder: str = key("runs/{run_name}", "folder of everything the run writes", min_length=1)
    scratch_folder: str | None = key(
        None, "where files wait for their upload if save_folder is in object storage; null = below /tmp",
        "/scratch", min_length=1)  # fmt: skip
    seed: int = key(0, "seed of the weights, the order of the data and the noise", ge=0, lt=2**32)
    device: Literal["auto", "cpu", "gpu"] = key("auto", "auto = GPUs if there are any")
    duration: Images = key("2Gi", "images to train for")
    global_batch_size: int = key(2048, "images per step, over all ranks", ge=1)
    device_train_microbatch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = key(
        None, "images per forward pass on one device; null = all of its share, auto = what fits (CUDA only)", 64
    )
    autoresume: bool = key(True, "go on from the run's latest checkpoint; false = the folder must be new")
    allow_changes: list[str] = key([], "hyper-parameters that may differ from those the run began with",
                                   ["optimizer.ref_lr"])  # fmt: skip
    dry_run: bool = key(False, "only check the configuration and print sizes")
    world_size: int | str | None = key(None, "of a dry run: the ranks to plan for, as a number or as nodes x ranks per "
                                             "node; null = this launch's", "128x8")  # fmt: skip
    gpu: str | None = key(None, "of a dry run: the GPU to plan for; null = some common ones", "H100-80GB")
    init: Init | None = key(None, "weights to start from; null = random ones", {"path": "runs/edm2"})
    data: Data = key(..., "the data set", {"local": "data/digits"})
    augment: Augment | None = key(None, "augmentation; null = none", {"p": 0.12})
    model: Model = key(Model(), "the network", {"model_channels": 192})
    loss: Loss = key(Loss(), "the loss", {"P_mean": -0.4})
    optimizer: Optimizer = key(Optimizer(), "the optimizer", {"ref_lr": 0.01})
    ema: EMA = key(EMA(), "the averages", {"sigma_rels": [0.05, 0.1]})
    fsdp: FSDP | None = key(None, "sharding; null = every rank holds everything (DDP)", {"shard": 8})
    checkpoints: Checkpoints = key(Checkpoints(), "checkpoints", {"interval": "8Mi"})
    samples: Samples = key(Samples(), "sample grids", {"interval": "64Mi"})
    logging: Logging = key(Logging(), "loggers", {"tensorboard": True})
    numerics: Numerics = key(Numerics(), "precision of the GPU", {"tf32": False})

    def run_folder(self) -> str:
        """`save_folder` with the run's name filled in."""
        return self.save_folder.replace("{run_name}", self.run_name).rstrip("/")

    def network_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Precond`, without `dtype`, which is not part of the weights' meaning.

        `model.sigma_data` must not be auto any more.
        """
        assert self.model.sigma_data != "auto"
        return self.model.model_dump(exclude={"dtype"}) | {"augment_dim": 0 if self.augment is None else AUGMENT_DIM}

    def planned_ranks(self) -> tuple[int, int | None] | None:
        """(ranks, ranks per node) of `world_size`, if it is given; None for what is not. Raises ValueError."""
        if self.world_size is None:
            return None
        match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(self.world_size))
        if match is None:
            raise ValueError("must be a number of ranks, or nodes x ranks per node")
        per_node = None if match[2] is None else int(match[2])
        return int(match[1]) * (per_node or 1), per_node
