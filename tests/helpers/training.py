"""Small trainings inside a real Composer Trainer: of given examples, and of the golden run."""

import json
from types import SimpleNamespace
from typing import Any

import torch
from composer import Trainer
from composer.callbacks import LRMonitor, NaNMonitor
from composer.core import Algorithm, Callback
from composer.loggers import InMemoryLogger
from torch.utils.data import DataLoader, Dataset

from helpers.golden_data import load, under
from recipe.edm2.loss import sample_sigma
from recipe.edm2.networks.precond import Precond
from recipe.training.algorithms import (
    ForcedWeightNorm,
    InverseSqrtLR,
    PowerEMA,
    ScrubGradients,
    training_algorithms,
)
from recipe.training.inputs import ExampleNoise
from recipe.training.model import DiffusionModel


class Examples(Dataset):
    """Images and labels in order; an example's id is its position."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index], "label": self.labels[index], "id": torch.tensor(index)}


class GivenNoise(ExampleNoise):
    """Takes an example's noise from a table instead of drawing it."""

    def __init__(self, rnd_normal: torch.Tensor, noise: torch.Tensor, P_mean: float, P_std: float):
        super().__init__(0, P_mean, P_std)
        self.table = rnd_normal, noise

    def draw(self, batch: dict[str, torch.Tensor], batch_number: int) -> dict[str, torch.Tensor]:
        rnd_normal, noise = (values[batch["id"]] for values in self.table)
        return {"sigma": sample_sigma(rnd_normal, self.P_mean, self.P_std), "noise": noise}


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
    trainer.fit()
    trainer.close()
    return {name: [float(value) for _, value in values] for name, values in logger.data.items() if name != "x"}


def golden_run() -> tuple[DiffusionModel, Examples, list[Algorithm], dict[str, torch.Tensor], dict[str, str]]:
    golden, metadata = load("training")
    net = Precond(**json.loads(metadata["config"]))
    net.load_state_dict(under(golden, "weights"))
    model = DiffusionModel(net, [float(value) for value in metadata["ema_sigma_rels"].split(",")])
    data = {name: golden[f"data/{name}"].flatten(0, 1) for name in ("images", "labels", "rnd_normal", "noise")}
    config = SimpleNamespace(
        seed=0,
        global_batch_size=int(metadata["batch_size"]),
        optimizer=SimpleNamespace(ref_lr=float(metadata["ref_lr"]), ref_batches=float(metadata["ref_batches"])),
        loss=SimpleNamespace(P_mean=-0.4, P_std=1.0, label_dropout=0.0),
        data=SimpleNamespace(x_flip=False),
        augment=None,
    )
    algorithms = training_algorithms(config, int(metadata["rampup_images"]), rank=0)
    given = GivenNoise(data["rnd_normal"], data["noise"], float(metadata["P_mean"]), float(metadata["P_std"]))
    algorithms = [given if isinstance(algorithm, ExampleNoise) else algorithm for algorithm in algorithms]
    return model, Examples(data["images"], data["labels"]), algorithms, golden, metadata


TINY: dict[str, Any] = dict(
    img_resolution=8, img_channels=1, label_dim=10, model_channels=16, channel_mult=[1, 2], num_blocks=1,
    attn_resolutions=[4], channels_per_head=16,
)  # fmt: skip


def tiny_run(microbatch: int | None, **callbacks: Any) -> tuple[DiffusionModel, dict[str, list[float]]]:
    torch.manual_seed(3)
    model = DiffusionModel(Precond(**TINY), [0.05, 0.1])
    examples = Examples(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10)
    algorithms: list[Algorithm] = [
        ForcedWeightNorm(),
        InverseSqrtLR(16, ref_lr=0.01, ref_batches=8, rampup_nimg=32),
        ExampleNoise(seed=5, P_mean=-0.4, P_std=1.0, label_dropout=0.2),
        ScrubGradients(),
        PowerEMA(),
    ]
    return model, fit(model, examples, algorithms, 16, 12, microbatch=microbatch, **callbacks)


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
