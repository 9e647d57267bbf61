"""Small trainings inside a real Composer Trainer: of given examples, and of the golden run."""

import json
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.callbacks import LRMonitor, NaNMonitor
from composer.core import Algorithm, Callback
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader, Dataset

from helpers.commands import train_arguments
from helpers.golden_data import load, under
from helpers.small_snapshots import NETWORK
from recipe.configuration.reader import read_config
from recipe.configuration.schema import Loss
from recipe.edm2.loss import sample_sigma
from recipe.edm2.networks.precond import Precond
from recipe.training.algorithms import (
    ForcedWeightNorm,
    InverseSqrtLR,
    PowerEMA,
    ScrubGradients,
    training_algorithms,
)
from recipe.training.inputs import ExampleInputs
from recipe.training.model import DiffusionModel


class Examples(Dataset):
    """Images and labels in order; an example's id is its position."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index], "label": self.labels[index], "id": torch.tensor(index)}


class GivenNoise(ExampleInputs):
    """Takes an example's noise from a table instead of drawing it."""

    def __init__(self, rnd_normal: torch.Tensor, noise: torch.Tensor, loss: Loss):
        super().__init__(0, loss)
        self.table = rnd_normal, noise

    def draw_noise(self, ids: torch.Tensor, shape: torch.Size, batch_number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rnd_normal, noise = (values[ids] for values in self.table)
        return sample_sigma(rnd_normal, self.loss.P_mean, self.loss.P_std), noise


def fit(
    model: DiffusionModel,
    examples: Examples,
    algorithms: list[Algorithm],
    batch_size: int,
    steps: int,
    betas: tuple[float, float] = (0.9, 0.99),
    microbatch: int | None = None,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, list[float]]:
    """Train for some steps; returns every logged metric's values in order."""
    logger = InMemoryLogger()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(examples, batch_size=batch_size),
        optimizers=torch.optim.Adam(model.parameters_to_train(), betas=betas),
        max_duration=f"{steps}ba",
        algorithms=algorithms,
        callbacks=[LRMonitor(), NaNMonitor(), *callbacks],
        loggers=[logger],
        device="cpu",
        precision="fp32",
        device_train_microbatch_size=microbatch,
        progress_bar=False,
        seed=1,
    )
    try:
        trainer.fit()
    finally:
        trainer.close()
    return {name: [float(value) for _, value in values] for name, values in logger.data.items() if name != "x"}


def golden_run() -> tuple[DiffusionModel, Examples, list[Algorithm], dict[str, torch.Tensor], dict[str, str]]:
    golden, metadata = load("training")
    net = Precond(**json.loads(metadata["config"]))
    net.load_state_dict(under(golden, "weights"))
    model = DiffusionModel(net, [float(value) for value in metadata["ema_sigma_rels"].split(",")])
    data = {name: golden[f"data/{name}"].flatten(0, 1) for name in ("images", "labels", "rnd_normal", "noise")}
    overrides = {
        "global_batch_size": metadata["batch_size"],
        "optimizer.ref_lr": metadata["ref_lr"],
        "optimizer.ref_batches": metadata["ref_batches"],
        "optimizer.rampup": metadata["rampup_images"],
        "loss.P_mean": metadata["P_mean"],
        "loss.P_std": metadata["P_std"],
        "loss.label_dropout": "0",
    }
    items = (f"{key}={value}" for key, value in overrides.items())
    config = read_config(train_arguments(Path("none"), Path("none"), *items))
    given = GivenNoise(data["rnd_normal"], data["noise"], config.loss)
    algorithms = training_algorithms(config, rank=0)
    algorithms = [given if isinstance(algorithm, ExampleInputs) else algorithm for algorithm in algorithms]
    return model, Examples(data["images"], data["labels"]), algorithms, golden, metadata


def tiny_run(microbatch: int | None, **callbacks: Any) -> tuple[DiffusionModel, dict[str, list[float]]]:
    torch.manual_seed(3)
    model = DiffusionModel(Precond(**NETWORK), [0.05, 0.1])
    examples = Examples(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10)
    algorithms: list[Algorithm] = [
        ForcedWeightNorm(),
        InverseSqrtLR(16, ref_lr=0.01, ref_batches=8, rampup_nimg=32),
        ExampleInputs(5, Loss(label_dropout=0.2)),
        ScrubGradients(),
        PowerEMA(),
    ]
    return model, fit(model, examples, algorithms, 16, 12, microbatch=microbatch, **callbacks)


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
