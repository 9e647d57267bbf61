"""Puts a run together from its configuration: model, data, optimizer, algorithms, callbacks, loggers, Trainer."""

import importlib.metadata
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from composer import Trainer
from composer.callbacks import LRMonitor, MemoryMonitor, NaNMonitor, RuntimeEstimator, SpeedMonitor
from composer.callbacks.speed_monitor import get_gpu_flops_available
from composer.core import Callback
from composer.devices import Device
from composer.loggers import LoggerDestination, MLFlowLogger, TensorboardLogger, WandBLogger
from composer.utils import dist, get_device
from composer.utils.parallelism import ParallelismConfig

from recipe.config import Config, Images
from recipe.config_reader import to_yaml
from recipe.edm2.generate import SamplerSettings
from recipe.edm2.precond import Precond
from recipe.training.algorithms import training_algorithms
from recipe.training.callbacks import EMASnapshots, SampleGrid
from recipe.training.checkpoints import clean_up_checkpoints
from recipe.training.data import check_data, training_loader
from recipe.training.model import DiffusionModel
from recipe.training.sharding import DTYPES, shard_

log = logging.getLogger(__name__)


class RunError(ValueError):
    """A run that cannot start or go on; the message says why and what to do."""


def train(config: Config) -> None:
    """Train until `config.duration`, from the run's latest checkpoint if there is one.

    Raises:
        DataError: bad data.
        RunError: a run folder or loss that does not allow to go on.
    """
    check_device(config)
    samples, statistics = check_data(config)
    trainer = build_trainer(config, samples, statistics)
    try:
        assert trainer.state.max_duration is not None
        if trainer.state.timestamp < trainer.state.max_duration:  # else it is a finished run, which `fit` would refuse
            trainer.fit()
    except RuntimeError as error:
        if "contains a NaN" not in str(error):  # NaNMonitor's words
            raise
        raise RunError(
            f"batch {trainer.state.timestamp.batch.value}: {error} The checkpoints in {config.run_folder()}/"
            "checkpoints are from before; lower optimizer.ref_lr or use model.dtype=float32, and start again"
        ) from None
    finally:
        trainer.close()
    if dist.get_global_rank() == 0:
        print(f"trained to {trainer.state.timestamp.sample.value} images; everything is in {config.run_folder()}")


def check_device(config: Config) -> None:
    """Raises RunError if the configuration asks for a GPU that is not there."""
    if torch.cuda.is_available() and config.device != "cpu":
        return
    if config.device == "gpu":
        raise RunError("device = gpu: PyTorch finds no usable CUDA device; use device=cpu, or mend the driver")
    if config.device_train_microbatch_size == "auto":
        raise RunError(
            "device_train_microbatch_size = auto: needs CUDA, whose memory limit it probes; use a number or null"
        )


def build_trainer(config: Config, samples: int, statistics: dict[str, Any]) -> Trainer:
    """The Trainer of a run; loads the latest checkpoint if there is one."""
    device = get_device(None if config.device == "auto" else config.device)
    on_gpu = device.name == "gpu"
    set_numerics(config, on_gpu)
    dist.initialize_dist(device)
    loader = training_loader(config, config.global_batch_size // dist.get_world_size())
    batch = config.global_batch_size
    epoch = samples // batch * batch

    def batches(span: Images) -> str:
        return f"{span.images(batch, epoch) // batch}ba"

    folder = Path(config.run_folder())
    model, parallelism = build_model(config, device)
    checkpoints = folder / "checkpoints"
    latest = [None]
    if dist.get_global_rank() == 0:
        claim_folder(config, folder)
        latest = [clean_up_checkpoints(checkpoints)]
    dist.broadcast_object_list(latest)
    optimizer = torch.optim.Adam(
        model.parameters_to_train(),
        betas=(config.optimizer.betas[0], config.optimizer.betas[1]),
        eps=config.optimizer.eps,
        fused=True,
    )
    return Trainer(
        model=model,
        train_dataloader=loader,
        optimizers=optimizer,
        max_duration=batches(config.duration),
        algorithms=training_algorithms(config, config.optimizer.rampup.images(batch), dist.get_global_rank()),
        callbacks=callbacks(config, folder, epoch, statistics, on_gpu),
        loggers=loggers(config, folder),
        device=device,
        precision="fp32",  # the network casts its own activations
        parallelism_config=parallelism,
        device_train_microbatch_size=config.device_train_microbatch_size,
        run_name=config.run_name,
        seed=config.seed,
        progress_bar=config.logging.progress_bar,
        log_to_console=not config.logging.progress_bar,
        console_log_interval=batches(config.logging.interval),
        save_folder=str(checkpoints),
        save_filename="ba{batch}-rank{rank}.pt",
        save_latest_filename="latest-rank{rank}.pt",
        save_interval=batches(config.checkpoints.interval),
        save_num_checkpoints_to_keep=config.checkpoints.keep,
        save_overwrite=True,  # a checkpoint cut short by a kill is written again
        # Not Composer's autoresume, which trusts a link that a kill can remove, and asks every logger for a checkpoint.
        load_path=None if latest[0] is None else str(latest[0]),
        dist_timeout=1800,
    )


def set_numerics(config: Config, on_gpu: bool) -> None:
    """Make every shortcut that trades precision for speed an explicit choice (official defaults: off)."""
    torch.backends.cuda.matmul.allow_tf32 = config.numerics.tf32
    torch.backends.cudnn.allow_tf32 = config.numerics.tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = config.numerics.reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = config.numerics.reduced_precision_reduction
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # shapes never change


def activations(config: Config, on_gpu: bool) -> str:
    """Name of the dtype of the network's activations."""
    name = config.model.dtype
    return ("float16" if on_gpu else "float32") if name == "auto" else name


def speed_monitor(config: Config, on_gpu: bool) -> SpeedMonitor:
    """Images per second and MFU, against the GPU's peak in the precision that the network really computes in."""
    # Composer would take its own precision, fp32, and report several times the true utilisation.
    names = {"float16": "amp_fp16", "bfloat16": "amp_bf16", "float32": "tf32" if config.numerics.tf32 else "fp32"}
    precision: Any = SimpleNamespace(precision=SimpleNamespace(value=names[activations(config, on_gpu)]))
    return SpeedMonitor(window_size=20, gpu_flops_available=get_gpu_flops_available(precision) if on_gpu else 0)


def build_model(config: Config, device: Device) -> tuple[DiffusionModel, ParallelismConfig | None]:
    """The network with weights drawn from the run's seed, and its averages; and how it is sharded, None = it is not.

    Built on the meta device and sharded there: the whole network never exists on one device.
    """
    dtype = DTYPES[activations(config, device.name == "gpu")]
    with torch.device("meta"):
        net = Precond(**config.model.network_arguments(), dtype=dtype)
        model = DiffusionModel(net, config.ema.sigma_rels)
    parallelism = None
    if config.fsdp is not None:
        net.unet.activation_checkpointing = config.fsdp.activation_checkpointing
        parallelism = shard_(model, config.fsdp, "cuda" if device.name == "gpu" else "cpu")
    model.to_empty(device=f"cuda:{torch.cuda.current_device()}" if device.name == "gpu" else "cpu")
    model.initialize_(config.seed)
    return model, parallelism


def callbacks(config: Config, folder: Path, epoch: int, statistics: dict[str, Any], on_gpu: bool) -> list[Callback]:
    """Composer's monitors and the recipe's own writers."""
    batch, grid = config.global_batch_size, config.samples.interval
    own: list[Callback] = [
        EMASnapshots(
            folder / "snapshots",
            config.ema.snapshot_interval.images(batch, epoch),
            config.model.network_arguments(),
            DTYPES[config.ema.snapshot_dtype],
            statistics,
        ),
        SampleGrid(
            folder / "samples",
            None if grid is None else grid.images(batch, epoch),
            config.samples.count,
            SamplerSettings(num_steps=config.samples.num_steps, guidance=config.samples.guidance),
            config.samples.batch_size,
        ),
    ]
    monitors = [NaNMonitor(), LRMonitor(), speed_monitor(config, on_gpu), RuntimeEstimator()]
    return own + monitors + ([MemoryMonitor()] if on_gpu else [])


def loggers(config: Config, folder: Path) -> list[LoggerDestination]:
    """The configured destinations of metrics and images."""
    found: list[LoggerDestination] = []
    if config.logging.tensorboard:
        found.append(TensorboardLogger(log_dir=str(folder / "tensorboard"), flush_interval=20))
    if config.logging.wandb is not None:
        wandb = config.logging.wandb
        init = {"mode": wandb.mode, "dir": str(folder), "resume": "allow", "id": config.run_name}
        found.append(WandBLogger(project=wandb.project, entity=wandb.entity, name=config.run_name, init_kwargs=init))
    if config.logging.mlflow is not None:
        mlflow = config.logging.mlflow
        found.append(
            MLFlowLogger(mlflow.experiment, run_name=config.run_name, tracking_uri=mlflow.tracking_uri, resume=True)
        )
    return found


def claim_folder(config: Config, folder: Path) -> None:
    """Make the run's folder and note its configuration. Raises RunError if it holds a run that must not be resumed."""
    if not config.autoresume and any((folder / "checkpoints").glob("*.pt")):
        raise RunError(
            f"save_folder {folder}: holds the checkpoints of a run, and autoresume is false; "
            "set autoresume=true to go on, or choose another run_name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# edm2-recipe {importlib.metadata.version('edm2-recipe')}\n{to_yaml(config)}"
    temporary = folder / ".config.yaml.tmp"
    temporary.write_text(text)
    os.replace(temporary, folder / "config.yaml")
