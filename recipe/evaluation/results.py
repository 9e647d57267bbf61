"""What evaluate.py found: a table for people, and a JSON file with all that the numbers depend on."""

import importlib.metadata
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.command_line import rank
from recipe.command_options import OptionError, check_folder
from recipe.evaluation.features import title_of
from recipe.evaluation.metrics import Values
from recipe.storage.addresses import split_address

FORMAT = "edm2-recipe metrics"
LOWEST = ("fd", "kid")  # of several runs the lowest is the best
NAMES = {
    "kid_std": "  its spread over subsets", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "is": "Inception score", "is_std": "  its spread over parts",
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Metrics of one set of pictures or of several.

    Attributes:
        command: that found them: calc, gen or compare.
        features: name of the network.
        runs: a name, such as the seeds, and the values of each set.
        settings: all else that the values depend on, as JSON can hold it.
    """

    command: str
    features: str
    runs: Sequence[tuple[str, Values]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> Mapping[str, Mapping[str, float]]:
        """Of each value over several runs: mean, standard deviation (n - 1) and, where low is good, the best."""
        found = {}
        for name in self.runs[0][1]:
            values = [values[name] for _, values in self.runs]
            best = {"best": min(values)} if name in LOWEST else {}
            found[name] = best | {"mean": statistics.fmean(values), "std": statistics.stdev(values)}
        return found

    def table(self) -> str:
        """Rows of metrics, a column for each run and, of several, their best, mean and standard deviation."""
        names = list(self.runs[0][1])
        columns = [("", [title(name, self.features) for name in names])]
        columns += [(run, [_figure(values[name]) for name in names]) for run, values in self.runs]
        if len(self.runs) > 1:
            summary = self.summary()
            for what in "best", "mean", "std":
                columns.append((what, [_figure(summary[name].get(what)) for name in names]))
        widths = [max(map(len, [head, *cells])) for head, cells in columns]
        rows = [[head for head, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
        lines = []
        for first, *others in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
        return "\n".join(lines)

    def write(self, place: str) -> None:
        """Write a JSON file, local or in object storage, whole or not at all. Raises StorageError."""
        folder, name = split_address(place)
        folder.write(name, self.text().encode())

    def text(self) -> str:
        """The JSON of `--out`."""
        version = importlib.metadata.version("edm2-recipe")
        found: dict[str, Any] = {"format": FORMAT, "version": version, "command": self.command}
        found |= {"features": self.features, "title": title_of(self.features), **self.settings}
        found["runs"] = [{"name": name, **values} for name, values in self.runs]
        if len(self.runs) > 1:
            found["summary"] = self.summary()
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def title(name: str, features: str) -> str:
    """What a value is called for people; KID is of Inception's features alone."""
    if name == "fd":
        return title_of(features)
    if name == "kid":
        return "KID" if features == "inception" else title_of(features).replace("FD", "KD", 1)
    return NAMES[name]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def check_result_place(address: str | None, endings: Sequence[str], overwrite: bool) -> None:
    """Raises OptionError or StorageError if a file cannot go to `--out`, or is there and must not be replaced."""
    if address is None:
        return
    if Path(address).suffix.lower() not in endings:
        raise OptionError(f"--out {address}: must end with the kind of file, {', '.join(endings)}")
    place, name = split_address(address)
    if place.is_local and Path(address).is_dir():
        raise OptionError(f"--out {address}: is a folder; name a file in it")
    if not overwrite and place.size(name) is not None:
        raise OptionError(f"--out {address}: is there already; name another file, or add --overwrite")
    if place.is_local:
        check_folder(Path(address).parent, "--out")
    elif rank() == 0:
        place.check_access()
