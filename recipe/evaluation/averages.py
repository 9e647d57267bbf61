"""The networks of a sweep: averages of any length at any snapshot's time, made in memory from a run's snapshots.

What they draw is what sample.py draws from the file that reconstruct.py makes of that one length, bit for bit: the same
sums in the same order, rounded to float16 as those files are. No file is written.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recipe.edm2.networks.kinds import build_network
from recipe.sampling.networks import Sampled
from recipe.weights.posthoc import PosthocError, reconstruct, solve, usable_snapshots
from recipe.weights.snapshots import SnapshotReader, list_snapshots, network_from

HELD_BYTES = 4 * 2**30
"""Of averages that wait in memory: of one pass over the snapshots, 7 of an S network (280 M parameters), 1 of XXL."""
Key = tuple[int, float]
"""Time and length of an average."""


class Averages:
    """The averages of one run.

    Memory: what `HELD_BYTES` holds of averages in float16, at least one; while they are made about 100 MB more
    (`recipe.weights.posthoc`); and the one network that was asked for last, in float32.

    Args:
        run: its folder, local or s3://.
        device, dtype: of the networks.
        force: also averages that the snapshots support poorly.

    Attributes:
        latest: time of the last snapshot.
        identity: of the run, whatever it has been trained to.
        outline: a network of the run without weights, for what can be checked before there are any.

    Raises:
        PosthocError: no snapshots.
        SnapshotError, StorageError: snapshots that cannot be read.
    """

    def __init__(self, run: str, device: torch.device, dtype: torch.dtype, force: bool = False):
        self.run = run
        self.device, self.dtype, self.force = device, dtype, force
        self.snapshots, self.latest = usable_snapshots(list_snapshots(f"{run}/snapshots"), None)
        with SnapshotReader(self.snapshots[0].path) as first:
            self.info = first.info
            self.identity = first.info.run or first.identity
            with torch.device("meta"):
                net = build_network(self.info.config, **self.info.network)
            self.outline = Sampled(run, net, self.info.dataset, self.info.extra.get("label_dropout"), self.identity)
            parameters = sum(math.prod(shape) for shape in first.shapes().values())
        self.at_once = max(1, HELD_BYTES // (2 * parameters))
        self._expected: list[Key] = []
        self._likely: list[float] = []
        self._held: dict[Key, dict[str, Tensor]] = {}
        self._last: tuple[Key, Sampled] | None = None
        self.passes = 0  # over the snapshots

    def times(self) -> list[int]:
        """The times of the snapshots, rising."""
        return sorted({snapshot.nimg for snapshot in self.snapshots})

    def check(self, nimgs: Sequence[int], sigma_rels: Sequence[float]) -> None:
        """Raises PosthocError for a time without a snapshot, or a length that the snapshots support poorly."""
        for nimg in nimgs:
            usable, _ = usable_snapshots(self.snapshots, nimg)
            try:
                solve(usable, nimg, sigma_rels, self.force)
            except PosthocError as error:
                raise PosthocError(f"{self.run}: {error}") from None

    def expect(self, keys: Sequence[Key], likely: Sequence[float] = ()) -> None:
        """Say which averages will be asked for, so that one pass over the snapshots makes several.

        Args:
            keys: those that will, in order.
            likely: lengths that may be; the nearest to those above are made as far as there is room.
        """
        self._expected = list(dict.fromkeys(keys))
        self._likely = list(likely)

    def network(self, nimg: int, sigma_rel: float) -> Sampled:
        """The network of an average, on the device. Raises SnapshotError, StorageError."""
        key = nimg, sigma_rel
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        if key not in self._held:
            self._make(key)
        name = f"{self.run}, nimg {nimg}, sigma_rel {sigma_rel:.3f}"
        net = network_from(self.info, self._held[key], self.dtype, name).to(self.device)
        identity = hashlib.sha256(f"{self.identity} {nimg} {sigma_rel:.3f}".encode()).hexdigest()[:16]
        sampled = dataclasses.replace(self.outline, path=name, net=net, identity=identity)
        self._last = key, sampled
        return sampled

    def _make(self, key: Key) -> None:
        """Make an average, and with it those of the same time that are expected next, in place of those held."""
        self._held = {}
        later = [each for each in self._expected[self._place(key) :] if each[0] == key[0] and each != key]
        near = sorted(self._likely, key=lambda length: (abs(length - key[1]), length))
        keys = list(dict.fromkeys([key, *later, *((key[0], length) for length in near)]))[: self.at_once]
        usable, nimg = usable_snapshots(self.snapshots, key[0])
        # One by one, since the bits of a solution depend on how many others are solved for beside it, and so on what
        # was measured before. Poor ones were refused by `check`.
        columns = [solve(usable, nimg, [length], force=True)[0] for _, length in keys]
        coefficients = np.concatenate(columns, axis=1)
        weights, _ = reconstruct(usable, coefficients, torch.float16)
        self._held = dict(zip(keys, weights, strict=True))
        self.passes += 1

    def _place(self, key: Key) -> int:
        return self._expected.index(key) if key in self._expected else len(self._expected)
