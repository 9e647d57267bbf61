"""The parts of the method that happen around a step: each class decides when, and calls `recipe.edm2` for what.

Order within a step: weights are projected, the learning rate is set and dropout is seeded (BATCH_START); each
microbatch gets its images and noise (BEFORE_FORWARD); non-finite gradients are scrubbed after the last backward
(AFTER_TRAIN_BATCH); the optimizer steps; the averages move (BATCH_END, when the clock has advanced).
"""

import logging

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from recipe.configuration.schema import Config
from recipe.edm2.augment import Augmentation
from recipe.edm2.ema import power_function_beta, update_ema_
from recipe.edm2.latents import Whitening
from recipe.edm2.lr import learning_rate
from recipe.edm2.networks.precond import project_weights_
from recipe.edm2.sharded_tensors import local
from recipe.training.inputs import ExampleInputs
from recipe.training.model import unwrap

log = logging.getLogger(__name__)


class ForcedWeightNorm(Algorithm):
    """Projects the network's weights to unit RMS per output unit before each step (Algorithm 1)."""

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BATCH_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        project_weights_(unwrap(state.model).net)


class InverseSqrtLR(Algorithm):
    """Sets the learning rate from the images seen before the step (eq. 67).

    An algorithm and not a Composer scheduler, because those run one batch late: batches 0 and 1 would share a rate.

    Args:
        global_batch_size, ref_lr, ref_batches, rampup_nimg: see `learning_rate`.
    """

    def __init__(self, global_batch_size: int, ref_lr: float, ref_batches: float, rampup_nimg: float):
        self.schedule = dict(
            global_batch_size=global_batch_size, ref_lr=ref_lr, ref_batches=ref_batches, rampup_nimg=rampup_nimg
        )

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BATCH_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        lr = learning_rate(state.timestamp.sample.value, **self.schedule)  # pyright: ignore[reportArgumentType]
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr


class ScrubGradients(Algorithm):
    """Replaces NaN and infinite gradients by 0 before the optimizer steps, and logs how many there were.

    Metric `gradients/nonfinite`: elements replaced in this step.
    """

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> int:
        gradients = [local(p.grad) for p in unwrap(state.model).parameters_to_train() if p.grad is not None]
        count = scrub_(gradients)
        if state.fsdp_enabled:  # each rank saw its own rows; replicas of them count once
            total = torch.tensor(count, device=gradients[0].device)
            dist.all_reduce(total)
            replicas = 1 if state.device_mesh is None or state.device_mesh.ndim == 1 else state.device_mesh.size(0)
            count = int(total) // replicas
        logger.log_metrics({"gradients/nonfinite": count})
        if count > 0:
            log.warning("batch %d: %d non-finite gradient elements set to 0", state.timestamp.batch.value, count)
        return count


@torch.no_grad()
def scrub_(gradients: list[torch.Tensor]) -> int:
    """Set the NaN and infinite elements of `gradients` to 0 in place; returns how many there were."""
    # A finite sum of norms proves that every element is finite, with one synchronisation for all tensors. An infinite
    # one may also be an overflow of the norm itself, so the elements decide.
    norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
    if bool(norms.isfinite().all()):
        return 0
    count = sum(int((~gradient.isfinite()).sum()) for gradient in gradients)
    for gradient in gradients:
        torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    return count


class PowerEMA(Algorithm):
    """Moves the model's averages after each step, exactly, whatever the batch size (eq. 127)."""

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BATCH_END

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        model = unwrap(state.model)
        nimg = state.timestamp.sample.value
        assert state.previous_timestamp is not None
        nimg_delta = nimg - state.previous_timestamp.sample.value
        weights = list(model.net.parameters())
        for sigma_rel, ema in model.averages():
            update_ema_(list(ema.parameters()), weights, power_function_beta(sigma_rel, nimg, nimg_delta))


def training_algorithms(config: Config, rank: int, whitening: Whitening | None = None) -> list[Algorithm]:
    """The method's algorithms for a run, in the order in which they act; `whitening` = None for pixels."""
    batch, optimizer = config.global_batch_size, config.optimizer
    augmentation = None if config.augment is None else Augmentation(**config.augment.model_dump())
    return [
        ForcedWeightNorm(),
        InverseSqrtLR(batch, optimizer.ref_lr, optimizer.ref_batches, optimizer.rampup.images(batch)),
        ExampleInputs(config.seed, config.loss, whitening, config.data.x_flip, augmentation, rank),
        ScrubGradients(),
        PowerEMA(),
    ]
