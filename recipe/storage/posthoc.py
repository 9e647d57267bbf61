"""Post-hoc EMA from stored snapshots, tensor by tensor (Section 3.2, Algorithm 3)."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recipe.edm2.ema import profile_error, solve_posthoc_coefficients
from recipe.storage.snapshots import SnapshotError, SnapshotFile, SnapshotInfo, SnapshotReader, buffer_names

MAX_ERROR = 0.05  # relative L2 error of a profile above which a target counts as not supported by the snapshots


class PosthocError(ValueError):
    """Averages that the snapshots cannot give; the message says what they can."""


def usable_snapshots(snapshots: Sequence[SnapshotFile], nimg: int | None) -> tuple[list[SnapshotFile], int]:
    """The snapshots with 0 < time <= `nimg`, and that time; None = the latest.

    Raises:
        PosthocError: no snapshots, or none at `nimg`: the average's end would not be covered.
    """
    times = sorted({snapshot.nimg for snapshot in snapshots if snapshot.nimg > 0})
    if not times:
        raise PosthocError("there are no snapshots; train past ema.snapshot_interval first")
    target = times[-1] if nimg is None else nimg
    if target not in times:
        listed = ", ".join(map(str, times if len(times) <= 8 else [*times[:3], "...", *times[-3:]]))
        raise PosthocError(f"nimg {target}: must be the time of a snapshot; there are {listed}")
    return [snapshot for snapshot in snapshots if 0 < snapshot.nimg <= target], target


def solve(
    snapshots: Sequence[SnapshotFile], nimg: int, sigma_rels: Sequence[float], force: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [in, out] and the relative L2 error [out] of each wanted profile.

    Raises:
        PosthocError: a profile that the snapshots reproduce worse than `MAX_ERROR`, unless `force`.
    """
    given = [snapshot.nimg for snapshot in snapshots], [snapshot.sigma_rel for snapshot in snapshots]
    wanted = nimg, list(sigma_rels)
    coefficients = solve_posthoc_coefficients(*given, *wanted)
    errors = profile_error(*given, *wanted, coefficients)
    poor = [f"{length:g} ({error:.1%})" for length, error in zip(sigma_rels, errors, strict=True) if error > MAX_ERROR]
    if poor and not force:
        raise PosthocError(
            f"sigma_rel {', '.join(poor)}: the error of the profile exceeds {MAX_ERROR:.0%} with {len(snapshots)} "
            f"snapshots up to nimg {nimg}; ask for another length, snapshot more often, or insist with --force"
        )
    return coefficients, errors


def reconstruct(
    snapshots: Sequence[SnapshotFile], coefficients: np.ndarray, dtype: torch.dtype
) -> tuple[list[dict[str, Tensor]], SnapshotInfo]:
    """Combine the snapshots: one dict of tensors per column of `coefficients`, and what the latest snapshot says.

    Averages become `dtype`; float32 buffers, which never change, are copied. One tensor of every snapshot is in memory
    at a time.

    Raises:
        SnapshotError: damaged files, or files of different networks.
    """
    outputs: list[dict[str, Tensor]] = [{} for _ in range(coefficients.shape[1])]
    with _open_all(snapshots) as readers:
        last = readers[-1]
        for reader in readers:
            if reader.info.network != last.info.network or reader.names() != last.names():
                raise SnapshotError(f"{reader.path}: holds another network than {last.path}; keep one run per folder")
        buffers = buffer_names(last.info.network)
        for name in tqdm(last.names(), desc="reconstruct", unit="tensor", disable=None):
            if name in buffers:
                for output in outputs:
                    output[name] = last.read(name)
                continue
            # float64: coefficients of short averages alternate in sign and reach 80, so their sum cancels
            sums = [torch.zeros((), dtype=torch.float64) for _ in outputs]
            for reader, row in zip(readers, coefficients, strict=True):
                tensor = reader.read(name).double()
                sums = [total + float(weight) * tensor for total, weight in zip(sums, row, strict=True)]
            for output, total in zip(outputs, sums, strict=True):
                output[name] = total.to(dtype)
        return outputs, last.info


@contextlib.contextmanager
def _open_all(snapshots: Sequence[SnapshotFile]) -> Iterator[list[SnapshotReader]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(SnapshotReader(Path(snapshot.path))) for snapshot in snapshots]
