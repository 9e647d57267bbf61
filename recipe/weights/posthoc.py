"""Post-hoc EMA from stored snapshots, tensor by tensor (Section 3.2, Algorithm 3)."""

import collections
import concurrent.futures
import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from recipe.command_line import UserError
from recipe.edm2.ema import profile_error, solve_posthoc_coefficients
from recipe.progress import progress
from recipe.weights.snapshots import SnapshotError, SnapshotFile, SnapshotInfo, SnapshotReader, buffer_names

GROUP_BYTES = 8 * 2**20  # read at once from one snapshot
IN_FLIGHT_BYTES = 64 * 2**20
READERS = 8  # snapshots read at once
MAX_ERROR = 0.05  # relative L2 error of a profile above which a target counts as not supported by the snapshots


class PosthocError(UserError):
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

    Averages become `dtype`; float32 buffers, which never change, are copied. Neighbouring tensors are read together, up
    to `GROUP_BYTES`, from several snapshots at once, with at most about `IN_FLIGHT_BYTES` waiting to be added.

    Raises:
        SnapshotError: damaged files, or files of different networks.
        StorageError: an object store that cannot be used.
    """
    outputs: list[dict[str, Tensor]] = [{} for _ in range(coefficients.shape[1])]
    with _open_all(snapshots) as readers:
        last = readers[-1]
        for reader in readers:
            same = (reader.info.config, reader.info.network) == (last.info.config, last.info.network)
            if not same or set(reader.names()) != set(last.names()):
                raise SnapshotError(f"{reader.path}: holds another network than {last.path}; keep one run per folder")
            if None not in (reader.info.run, last.info.run) and reader.info.run != last.info.run:
                raise SnapshotError(
                    f"{reader.path}: is of another run than {last.path}, though of the same network; keep one run per "
                    "folder"
                )
        buffers = buffer_names(last.info.network, last.info.config)
        averaged = [name for name in last.names() if name not in buffers]
        for name in sorted(buffers):
            for output in outputs:
                output[name] = last.read(name)
        with progress(len(averaged), "reconstruct", "tensor") as bar:
            for group in _groups(averaged, last):
                for name, sums in zip(group, _combine(readers, group, coefficients), strict=True):
                    for output, total in zip(outputs, sums, strict=True):
                        output[name] = total.to(dtype)
                bar.update(len(group))
        return [dict(sorted(output.items())) for output in outputs], last.info


def _groups(names: Sequence[str], reader: SnapshotReader) -> Iterator[list[str]]:
    """`names` in order, cut so that each part has at most `GROUP_BYTES` in float32, or one tensor."""
    group, size = [], 0
    for name in names:
        needed = 4 * math.prod(reader.shapes()[name])
        if group and size + needed > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


def _combine(readers: Sequence[SnapshotReader], group: list[str], coefficients: np.ndarray) -> list[list[Tensor]]:
    """For each tensor of the group its weighted sums over the snapshots, one per output."""
    # float64: coefficients of short averages alternate in sign and reach 80, so their sum cancels
    shapes = readers[-1].shapes()
    count = coefficients.shape[1]
    sums = [[torch.zeros(shapes[name], dtype=torch.float64) for _ in range(count)] for name in group]
    size = 4 * sum(math.prod(shapes[name]) for name in group)
    workers = max(1, min(READERS, IN_FLIGHT_BYTES // max(size, 1)))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for tensors, row in zip(_in_order(pool, workers, readers, group), coefficients, strict=True):
            for tensor, totals in zip(tensors, sums, strict=True):
                wide = tensor.double()
                for total, weight in zip(totals, row, strict=True):
                    total.add_(wide, alpha=float(weight))
    return sums


def _in_order(
    pool: concurrent.futures.ThreadPoolExecutor, ahead: int, readers: Sequence[SnapshotReader], group: list[str]
) -> Iterator[list[Tensor]]:
    """The group's tensors of each snapshot, in order; at most `ahead` snapshots are read at once."""
    pending: collections.deque[concurrent.futures.Future[list[Tensor]]] = collections.deque()
    for reader in readers:
        pending.append(pool.submit(reader.read_some, group))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def _open_all(snapshots: Sequence[SnapshotFile]) -> Iterator[list[SnapshotReader]]:
    with contextlib.ExitStack() as stack:
        with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
            readers = list(pool.map(lambda snapshot: SnapshotReader(snapshot.path).__enter__(), snapshots))
        for reader in readers:
            stack.push(reader.__exit__)
        yield readers
