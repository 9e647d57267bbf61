"""What is known of the stored pictures, from sums over chunks that merge without rounding."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Sums(Protocol):
    """Statistics of the samples of one chunk, which chunks merge in their order."""

    def add(self, images: NDArray[np.uint8], samples: list[dict[str, Any]]) -> None:
        """Add a batch: pictures [N, C, H, W] and the samples that are stored of them."""

    def note(self) -> dict[str, Any]:
        """The sums as JSON can hold them, without rounding."""
        ...

    def merge(self, note: dict[str, Any]) -> None:
        """Add what the `note` of the next chunk holds."""

    def facts(self) -> dict[str, Any]:
        """The entries of stats.json."""
        ...


class PixelSums:
    """Sums over pixels in whole numbers, so that the order and the number of parts do not matter.

    Args:
        channels: of the pictures.
    """

    def __init__(self, channels: int):
        self.count = 0  # pixels per channel
        self.sums = [0] * channels
        self.squares = [0] * channels

    def add(self, images: NDArray[np.uint8], samples: Sequence[dict[str, Any]] = ()) -> None:
        """Add pictures [N, C, H, W]; they are stored without loss, so that `samples` says nothing more."""
        values = images.astype(np.int64)
        self.count += values[:, 0].size
        for channel in range(len(self.sums)):
            self.sums[channel] += int(values[:, channel].sum())
            self.squares[channel] += int(np.square(values[:, channel]).sum())

    def note(self) -> dict[str, Any]:
        """The sums as JSON can hold them."""
        return {"count": self.count, "sums": self.sums, "squares": self.squares}

    def merge(self, note: dict[str, Any]) -> None:
        """Add the sums of another chunk, as its `note` says them."""
        self.count += note["count"]
        self.sums = [a + b for a, b in zip(self.sums, note["sums"], strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, note["squares"], strict=True)]

    def facts(self) -> dict[str, Any]:
        """Entries of stats.json: mean and std of each channel and std of all, sigma_data, of pixels in [-1, 1]."""
        n, channels = self.count, len(self.sums)
        return {
            "mean": [total / n / 127.5 - 1 for total in self.sums],
            "std": [_std(n, total, squares) for total, squares in zip(self.sums, self.squares, strict=True)],
            "sigma_data": _std(n * channels, sum(self.sums), sum(self.squares)),
        }


def _std(n: int, total: int, squares: int) -> float:
    """Standard deviation of pixels / 127.5 - 1. The difference is taken in whole numbers, where nothing cancels."""
    return (n * squares - total * total) ** 0.5 / n / 127.5


def images_per_class(labels: NDArray[np.int64]) -> dict[str, int]:
    """How many samples have each label, in order of class id."""
    ids, counts = np.unique(labels, return_counts=True)
    return {str(label): int(count) for label, count in zip(ids, counts, strict=True)}
