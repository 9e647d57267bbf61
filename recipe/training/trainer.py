"""What a Trainer is made of: network, optimizer, algorithms, callbacks, loggers."""

from types import SimpleNamespace
from typing import Any

import torch
from composer import Trainer
from composer.callbacks import LRMonitor, MemoryMonitor, NaNMonitor, RuntimeEstimator, SpeedMonitor
from composer.callbacks.speed_monitor import get_gpu_flops_available
from composer.core import Algorithm, Callback
from composer.devices import Device
from composer.loggers import LoggerDestination, MLFlowLogger, WandBLogger
from composer.utils import dist
from composer.utils.parallelism import ParallelismConfig

from recipe.configuration.schema import Config, Numerics, Optimizer
from recipe.data.loader import training_loader
from recipe.edm2.networks.precond import Precond
from recipe.edm2.precision import DTYPES, activations_dtype
from recipe.storage.ownership import Ownership
from recipe.training.algorithms import training_algorithms
from recipe.training.callbacks import EMASnapshots, SampleGrid, grid_pictures
from recipe.training.checkpointing import Checkpoints, FileUploads, restore_from
from recipe.training.curves import Curves
from recipe.training.folder import RunFolder, local_folder
from recipe.training.initial_weights import load_initial_weights
from recipe.training.metrics import average_metrics
from recipe.training.model import DiffusionModel
from recipe.training.preflight import Start
from recipe.training.sharding import shard_
from recipe.training.stopping import GracefulStop


def build_trainer(start: Start, device: Device, ownership: Ownership | None) -> tuple[Trainer, RunFolder, GracefulStop]:
    """The Trainer of a run; loads its latest checkpoint if there is one. `ownership` is None on ranks other than 0."""
    config, on_gpu = start.config, device.name == "gpu"
    set_numerics(config.numerics, on_gpu)
    folder = RunFolder(start.place, local_folder(config, start.place))
    if dist.get_local_rank() == 0:
        folder.empty_scratch()
    loader = training_loader(config, start.data, config.global_batch_size // dist.get_world_size())
    model, parallelism = build_model(config, device)
    restore = restore_from(folder, start.checkpoint, start.epoch)
    if restore is None and config.init is not None:
        load_initial_weights(model, config, start.data.facts)
    stop = GracefulStop(folder.uploads, ownership, loader.waited)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        train_subset_num_batches=start.steps_per_epoch,  # streaming pads the rest for the ranks, perhaps to a batch
        optimizers=optimizer(config.optimizer, model),
        max_duration=start.batches(config.duration),
        algorithms=algorithms(start),
        callbacks=[
            *([] if restore is None else [restore]),
            *callbacks(start, folder, device),
            stop,
            Checkpoints(folder, start.batches(config.checkpoints.interval), config.checkpoints.keep),
        ],
        loggers=loggers(config, folder),
        device=device,
        precision="fp32",  # the network casts its own activations
        parallelism_config=parallelism,
        device_train_microbatch_size=config.device_train_microbatch_size,
        run_name=config.run_name,
        seed=config.seed,
        dist_timeout=1800,
        **console(start),
    )
    dist.barrier()
    if dist.get_local_rank() == 0 and start.checkpoint is not None:
        folder.forget(f"checkpoints/{start.checkpoint.name}")
    return trainer, folder, stop


def algorithms(start: Start) -> list[Algorithm]:
    """The method's algorithms, as the configuration and the data ask for."""
    return training_algorithms(start.config, dist.get_global_rank(), start.data.facts.latent_whitening)


def console(start: Start) -> dict[str, Any]:
    """Arguments of Trainer that say what it prints: a bar or lines."""
    bar = start.config.logging.progress_bar
    every = start.batches(start.config.logging.interval)
    return {"progress_bar": bar, "log_to_console": not bar, "console_log_interval": every}


def optimizer(settings: Optimizer, model: DiffusionModel) -> torch.optim.Adam:
    """Adam over the network's parameters; `InverseSqrtLR` sets the learning rate."""
    first, second = settings.betas
    return torch.optim.Adam(model.parameters_to_train(), betas=(first, second), eps=settings.eps, fused=True)


def set_numerics(numerics: Numerics, on_gpu: bool) -> None:
    """Make every shortcut that trades precision for speed an explicit choice (official defaults: off)."""
    torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
    torch.backends.cudnn.allow_tf32 = numerics.tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = numerics.reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = numerics.reduced_precision_reduction
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # shapes never change


def speed_monitor(config: Config, on_gpu: bool) -> SpeedMonitor:
    """Images per second and MFU, against the GPU's peak in the precision that the network really computes in."""
    # Composer would take its own precision, fp32, and report several times the true utilisation.
    names = {"float16": "amp_fp16", "bfloat16": "amp_bf16", "float32": "tf32" if config.numerics.tf32 else "fp32"}
    precision: Any = SimpleNamespace(
        precision=SimpleNamespace(value=names[activations_dtype(config.model.dtype, on_gpu)])
    )
    return SpeedMonitor(window_size=20, gpu_flops_available=get_gpu_flops_available(precision) if on_gpu else 0)


def build_model(config: Config, device: Device) -> tuple[DiffusionModel, ParallelismConfig | None]:
    """The network with weights drawn from the run's seed, and its averages; and how it is sharded, None = it is not.

    Built on the meta device and sharded there: the whole network never exists on one device.
    """
    dtype = DTYPES[activations_dtype(config.model.dtype, device.name == "gpu")]
    with torch.device("meta"):
        net = Precond(**config.network_arguments(), dtype=dtype)
        model = DiffusionModel(net, config.ema.sigma_rels)
    parallelism = None
    if config.fsdp is not None:
        net.unet.activation_checkpointing = config.fsdp.activation_checkpointing
        parallelism = shard_(model, config.fsdp, "cuda" if device.name == "gpu" else "cpu")
    model.to_empty(device=f"cuda:{torch.cuda.current_device()}" if device.name == "gpu" else "cpu")
    model.initialize_(config.seed)
    return model, parallelism


def callbacks(start: Start, folder: RunFolder, device: Device) -> list[Callback]:
    """Composer's monitors and the recipe's own writers."""
    config, on_gpu = start.config, device.name == "gpu"
    ema, samples = config.ema, config.samples
    own: list[Callback] = [
        EMASnapshots(
            folder,
            start.images(ema.snapshot_interval),
            config.network_arguments(),
            DTYPES[ema.snapshot_dtype],
            start.data.facts,
            ema.snapshot_keep,
            config.loss.label_dropout,
            start.run,
        ),
        SampleGrid(
            folder,
            None if samples.interval is None else start.images(samples.interval),
            samples.count,
            samples.settings(),
            samples.batch_size,
            grid_pictures(samples, start.data.facts, device),
        ),
    ]
    if config.metrics is not None:
        own.append(average_metrics(config, start.data.facts, start.images(config.metrics.interval), device))
    monitors = [NaNMonitor(), LRMonitor(), speed_monitor(config, on_gpu), RuntimeEstimator()]
    return own + monitors + ([MemoryMonitor()] if on_gpu else [])


def loggers(config: Config, folder: RunFolder) -> list[LoggerDestination]:
    """The configured destinations of metrics, images and files."""
    found: list[LoggerDestination] = [] if folder.place.is_local else [FileUploads(folder)]
    if config.logging.tensorboard:
        found.append(Curves(folder))
    if config.logging.wandb is not None:
        wandb = config.logging.wandb
        init = {"mode": wandb.mode, "dir": str(folder.local), "resume": "allow", "id": config.run_name}
        found.append(WandBLogger(project=wandb.project, entity=wandb.entity, name=config.run_name, init_kwargs=init))
    if config.logging.mlflow is not None:
        mlflow = config.logging.mlflow
        found.append(
            MLFlowLogger(mlflow.experiment, run_name=config.run_name, tracking_uri=mlflow.tracking_uri, resume=True)
        )
    return found
