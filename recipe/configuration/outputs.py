"""The part of the schema about what a run writes beside its averages: checkpoints, grids of samples, metrics."""

from typing import TYPE_CHECKING, Literal

from recipe.configuration.keys import FREE, Section, key
from recipe.configuration.values import (
    Address,
    CheckpointsKept,
    GuidanceInterval,
    Interval,
    LocalPath,
    Restarts,
    SigmaRels,
)
from recipe.edm2.samplers.names import RESTART, Name

if TYPE_CHECKING:
    from recipe.edm2.samplers.generate import SamplerSettings


class Checkpoints(Section):
    """What a run needs to go on exactly where it stopped."""

    interval: Interval = key("8Mi", FREE, "images between checkpoints")
    keep: CheckpointsKept = key(2, FREE, "how many checkpoints stay on disk; -1 = all")


class Samples(Section):
    """Grids of samples drawn during training, by the raw weights and by each average."""

    interval: Interval | None = key(None, FREE, "images between grids; null = none", "64Mi")
    count: int = key(40, FREE, "images in a grid; image i has seed i and class i mod label_dim", ge=1)
    sampler: Name = key("heun", FREE, "how images are drawn; docs/sampling.md compares them")
    num_steps: int = key(32, FREE, "noise levels of the sampler", ge=1)
    sigma_min: float = key(0.002, FREE, "last noise level above 0", gt=0)
    sigma_max: float = key(80.0, FREE, "first noise level", gt=0)
    rho: float = key(7.0, FREE, "spacing of the noise levels; larger = more of them are low", gt=0)
    churn: float = key(0.0, FREE, "of heun: S_churn, noise added over the whole way; 0 = deterministic", ge=0)
    eta: float = key(1.0, FREE, "of the ancestral and SDE samplers: their noise; 0 = deterministic", ge=0)
    s_noise: float = key(1.0, FREE, "scale of the noise that a sampler adds", ge=0)
    order: int = key(2, FREE, "of unipc: order of its predictor, 1 to 3", ge=1, le=3)
    restart: Restarts = key(
        [list(interval) for interval in RESTART],
        FREE,
        "of restart: [N, K, t_min, t_max] each: noise levels, times, lowest and highest level",
    )
    guidance: float = key(
        1.0, FREE, "classifier-free guidance, for networks trained with label_dropout; 1 = none", ge=0
    )
    guidance_interval: GuidanceInterval | None = key(
        None, FREE, "[lo, hi]: guidance only at noise levels lo < sigma <= hi; null = everywhere", [0.28, 2.9]
    )
    vae: Address | None = key(
        None,
        FREE,
        "of latents: the autoencoder that decodes them, a folder or OWNER/NAME on the Hugging Face hub; "
        "null = the images are pixels",
        "stabilityai/sd-vae-ft-mse",
    )
    batch_size: int = key(40, FREE, "images drawn at once; changes memory, not the result", ge=1)

    def settings(self) -> "SamplerSettings":
        """What the sampler is asked for."""
        # here, as a bad configuration must be refused before torch loads
        from recipe.edm2.samplers.generate import SamplerSettings
        from recipe.edm2.samplers.guidance import EVERYWHERE, Interval

        lo_hi = self.guidance_interval
        return SamplerSettings(
            self.num_steps,
            self.sigma_min,
            self.sigma_max,
            self.rho,
            self.churn,
            S_noise=self.s_noise,
            guidance=self.guidance,
            interval=EVERYWHERE if lo_hi is None else Interval(*lo_hi),
            in_one_batch=False,  # training has the memory: a grid must not need twice as much as batch_size says
            sampler=self.sampler,
            eta=self.eta,
            order=self.order,
            restart=self.restart,
        )


class Metrics(Section):
    """Metrics of what the averages draw, during training; images are drawn as the grids of `samples` are, as many at
    once on each rank."""

    reference: Address = key(
        ..., FREE, "statistics of data that recipe/evaluate.py ref wrote, local or s3://", "data/ref.safetensors"
    )
    names: list[Literal["fd", "kid", "pr", "dc", "is"]] = key(
        ["fd"], FREE, "what is measured; docs/evaluation.md", min_length=1
    )
    features: str = key("inception", FREE, "network of the features: inception, dinov2, dinov2-pil or MODULE:FUNCTION")
    weights: LocalPath | None = key(
        None, FREE, "folder of its published weights; null = fetched once into torch's cache", "weights"
    )
    accept_weights: str | None = key(
        None, FREE, "SHA-256 of weights to use although they are not known, or any; null = known ones", "any"
    )
    interval: Interval = key("64Mi", FREE, "images between measurements")
    num_images: int = key(10_000, FREE, "images that are drawn by each average, of seeds from 0 on", ge=2)
    sigma_rels: SigmaRels | None = key(None, FREE, "averages that are measured; null = all", [0.05])


class WandB(Section):
    """Weights & Biases; the key enters by the environment only (WANDB_API_KEY)."""

    project: str = key("edm2", FREE, "project that the run appears in", min_length=1)
    entity: str | None = key(
        None, FREE, "team or user; null = default of the account of WANDB_API_KEY", "my-team", min_length=1
    )
    mode: Literal["online", "offline"] = key("online", FREE, "offline = write to the run's folder only")


class MLflow(Section):
    """MLflow; credentials enter by the environment only (MLFLOW_TRACKING_USERNAME, ..._PASSWORD)."""

    experiment: str = key("edm2", FREE, "experiment that the run appears in", min_length=1)
    tracking_uri: str | None = key(
        None,
        FREE,
        "server; null = MLFLOW_TRACKING_URI or a local folder; credentials: environment",
        "http://host:5000",
        min_length=1,
    )


class Logging(Section):
    """Where metrics and sample grids go."""

    progress_bar: bool = key(True, FREE, "show Composer's progress bar; false = a line per interval")
    tensorboard: bool = key(True, FREE, "write TensorBoard events below save_folder")
    wandb: WandB | None = key(None, FREE, "log to Weights & Biases; null = off", {"project": "edm2"})
    mlflow: MLflow | None = key(None, FREE, "log to MLflow; null = off", {"experiment": "edm2"})
    interval: Interval = key("100ba", FREE, "images between lines of the console log, without progress_bar")
