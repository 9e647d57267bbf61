"""What a Trainer is made of: network, optimizer, algorithms, callbacks, loggers."""

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

from recipe.configuration.schema import Config
from recipe.configuration.spans import Span
from recipe.data.checks import resolve
from recipe.data.facts import whitening_of
from recipe.data.loader import training_loader
from recipe.edm2.networks.precond import Precond
from recipe.edm2.samplers.generate import SamplerSettings
from recipe.storage.ownership import Ownership
from recipe.training.algorithms import training_algorithms
from recipe.training.callbacks import EMASnapshots, SampleGrid, decoder
from recipe.training.checkpointing import Checkpoints, FileUploads, restore_from
from recipe.training.folder import RunFolder
from recipe.training.initial_weights import load_initial_weights
from recipe.training.model import DiffusionModel
from recipe.training.preflight import Start
from recipe.training.sharding import DTYPES, shard_
from recipe.training.stopping import GracefulStop


def build_trainer(
    config: Config, start: Start | None, ownership: Ownership | None
) -> tuple[Trainer, RunFolder, GracefulStop]:
    """The Trainer of a run; loads its latest checkpoint if there is one. `start` and `ownership` are rank 0's."""
    device = get_device(None if config.device == "auto" else config.device)
    set_numerics(config, device.name == "gpu")
    dist.initialize_dist(device)
    told = [start]
    dist.broadcast_object_list(told)
    start = told[0]
    assert start is not None
    config = resolve(config, start.statistics)
    folder = RunFolder(config)
    if dist.get_local_rank() == 0:
        folder.empty_scratch()
    batch = config.global_batch_size
    epoch = start.samples // batch * batch

    def batches(span: Span) -> str:
        return f"{span.images(batch, epoch) // batch}ba"

    loader = training_loader(config, batch // dist.get_world_size())
    model, parallelism = build_model(config, device)
    restore = restore_from(folder, start.checkpoint, epoch)
    if restore is None and config.init is not None:
        load_initial_weights(model, config)
    stop = GracefulStop(folder.uploads, ownership)
    writers = [
        *([] if restore is None else [restore]),
        *callbacks(config, folder, epoch, start.statistics, device.name == "gpu"),
        stop,
    ]
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        train_subset_num_batches=start.samples // batch,  # streaming pads what is left to the ranks, perhaps to a batch
        optimizers=optimizer(config, model),
        max_duration=batches(config.duration),
        algorithms=training_algorithms(
            config, config.optimizer.rampup.images(batch), dist.get_global_rank(), whitening_of(start.statistics)
        ),
        callbacks=[*writers, Checkpoints(folder, batches(config.checkpoints.interval), config.checkpoints.keep)],
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
        dist_timeout=1800,
    )
    dist.barrier()
    if dist.get_local_rank() == 0 and start.checkpoint is not None:
        folder.forget(f"checkpoints/{start.checkpoint.name}")
    return trainer, folder, stop


def optimizer(config: Config, model: DiffusionModel) -> torch.optim.Adam:
    """Adam over the network's parameters; `InverseSqrtLR` sets the learning rate."""
    first, second = config.optimizer.betas
    return torch.optim.Adam(model.parameters_to_train(), betas=(first, second), eps=config.optimizer.eps, fused=True)


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
        net = Precond(**config.network_arguments(), dtype=dtype)
        model = DiffusionModel(net, config.ema.sigma_rels)
    parallelism = None
    if config.fsdp is not None:
        net.unet.activation_checkpointing = config.fsdp.activation_checkpointing
        parallelism = shard_(model, config.fsdp, "cuda" if device.name == "gpu" else "cpu")
    model.to_empty(device=f"cuda:{torch.cuda.current_device()}" if device.name == "gpu" else "cpu")
    model.initialize_(config.seed)
    return model, parallelism


def callbacks(
    config: Config, folder: RunFolder, epoch: int, statistics: dict[str, Any], on_gpu: bool
) -> list[Callback]:
    """Composer's monitors and the recipe's own writers."""
    batch, grid = config.global_batch_size, config.samples.interval
    own: list[Callback] = [
        EMASnapshots(
            folder,
            config.ema.snapshot_interval.images(batch, epoch),
            config.network_arguments(),
            DTYPES[config.ema.snapshot_dtype],
            statistics,
            config.ema.snapshot_keep,
        ),
        SampleGrid(
            folder,
            None if grid is None else grid.images(batch, epoch),
            config.samples.count,
            SamplerSettings(num_steps=config.samples.num_steps, guidance=config.samples.guidance),
            config.samples.batch_size,
            decoder(config, statistics),
        ),
    ]
    monitors = [NaNMonitor(), LRMonitor(), speed_monitor(config, on_gpu), RuntimeEstimator()]
    return own + monitors + ([MemoryMonitor()] if on_gpu else [])


def loggers(config: Config, folder: RunFolder) -> list[LoggerDestination]:
    """The configured destinations of metrics, images and files."""
    found: list[LoggerDestination] = [] if folder.place.is_local else [FileUploads(folder)]
    if config.logging.tensorboard:
        found.append(TensorboardLogger(log_dir=str(folder.local / "tensorboard"), flush_interval=20))
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
