"""The learning-rate schedule: linear ramp-up, then inverse square root (eq. 67)."""


def learning_rate(
    nimg: int,
    global_batch_size: int,
    ref_lr: float = 100e-4,
    ref_batches: float = 70_000,
    rampup_nimg: float = 10_000_000,
) -> float:
    """Learning rate of the step that starts after `nimg` images were seen; 0 at nimg = 0 if there is a ramp-up.

    Args:
        nimg: images seen before the step, >= 0.
        global_batch_size: images per step, over all ranks.
        ref_lr: alpha_ref, the highest learning rate.
        ref_batches: t_ref, the step at which decay begins; 0 = never decay.
        rampup_nimg: length of the linear ramp-up in images; 0 = none. Not in eq. 67, but in the paper's tables.
    """
    lr = ref_lr
    if ref_batches > 0:
        lr /= max(nimg / (ref_batches * global_batch_size), 1) ** 0.5
    if rampup_nimg > 0:
        lr *= min(nimg / rampup_nimg, 1)
    return lr
