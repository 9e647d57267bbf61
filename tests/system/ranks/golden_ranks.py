"""Replays golden/training.safetensors sharded over the ranks that run it: golden_ranks.py OUT.pt"""

import sys

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.utils import dist
from torch.utils.data import DataLoader

from helpers.training import golden_run
from recipe.configuration.schema import FSDP
from recipe.edm2.sharded_tensors import gather
from recipe.training.sharding import shard_


def main() -> None:
    dist.initialize_dist("cpu")
    model, examples, algorithms, _, metadata = golden_run()
    parallelism = shard_(model, FSDP(), "cpu")
    batch, rank, ranks = int(metadata["batch_size"]), dist.get_global_rank(), dist.get_world_size()
    share = batch // ranks
    betas = [float(value) for value in metadata["adam_betas"].split(",")]
    logger = InMemoryLogger()
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(examples, batch_size=share, sampler=dist.get_sampler(examples, shuffle=False)),
        optimizers=torch.optim.Adam(model.parameters_to_train(), betas=(betas[0], betas[1])),
        max_duration=f"{int(metadata['steps'])}ba",
        algorithms=algorithms,
        loggers=[logger],
        device="cpu",
        precision="fp32",
        parallelism_config=parallelism,
        device_train_microbatch_size=share // 2,
        progress_bar=False,
        seed=1,
    )
    trainer.fit()
    networks = {"final": model.net} | {f"ema_{sigma_rel:.3f}": ema for sigma_rel, ema in model.averages()}
    weights = {
        key: {name: gather(parameter.detach()) for name, parameter in net.named_parameters()}
        for key, net in networks.items()
    }
    sharded = all(hasattr(parameter, "placements") for parameter in model.net.parameters())
    if rank == 0:
        losses = [float(value) for _, value in logger.data["loss/train/total"]]
        torch.save({"losses": losses, "weights": weights, "sharded": sharded}, sys.argv[1])
    trainer.close()


if __name__ == "__main__":
    main()
