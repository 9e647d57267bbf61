"""What the folder of a run says of the run, gathered for its page."""

import importlib.metadata
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from recipe.command_line import UserError
from recipe.data.facts import DataFacts
from recipe.evaluation.points import shown
from recipe.evaluation.sweep import SETTINGS, SWEEPS, Result, SweepError, read_results, read_settings
from recipe.evaluation.sweep_table import higher_is_better, metrics_of, optimum, varying
from recipe.reporting.curves import Curve, read_curves
from recipe.reporting.grids import MOST_BYTES, Grid, read_grids
from recipe.storage.addresses import open_place
from recipe.storage.places import Entry, Place
from recipe.weights.checkpoints import list_checkpoints
from recipe.weights.run_contents import SNAPSHOT_FOLDERS, snapshot_fields
from recipe.weights.snapshots import SnapshotError, SnapshotReader

CONFIG = "config.yaml"
MOST_TEXT = 2**20  # bytes of a configuration
MOST_ROWS = 2000  # of a list of files


class ReportError(UserError):
    """A folder of which no report can be made; the message says why."""


@dataclass
class Contents:
    """What a page shows. Lists of rows hold text as it is; the page escapes it.

    Attributes:
        name: of the run.
        address: of its folder.
        config: the text of config.yaml; "" = there is none.
        curves: by tag.
        grids: of samples, by time.
        facts: of the data, as the newest snapshot says; None = no snapshot says.
        notes: name and value, of the run as a whole.
        files: kind, images or batches, sigma_rel, MB and time of each snapshot and checkpoint.
        sweeps: name, settings, and results of each.
        remarks: what is left out, by section.
    """

    name: str
    address: str
    config: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    grids: Sequence[Grid] = ()
    facts: DataFacts | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, ...]] = field(default_factory=list)
    sweeps: list[tuple[str, Mapping[str, str], Sequence[Result]]] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)


def read_contents(address: str, sweeps: Sequence[str] = (), most_bytes: int = MOST_BYTES) -> Contents:
    """Gather what the folder of a run holds.

    Args:
        address: of the run, local or s3://.
        sweeps: addresses of further sweeps than those in the run's own folder.
        most_bytes: of all grids together.

    Raises:
        ReportError: it is no run.
        SweepError: a named sweep that is none.
        StorageError: a place that cannot be read.
    """
    place = open_place(address)
    entries = [entry for entry in place.list() if not entry.name.startswith("tensorboard/")]
    names = {entry.name for entry in entries}
    if CONFIG not in names and not any(snapshot_fields(name) for name in names):
        raise ReportError(f"{place.describe()}: holds no run: neither {CONFIG} nor snapshots; name the folder of a run")
    contents = Contents(address.rstrip("/").rpartition("/")[2] or address, place.address)
    if CONFIG in names:
        contents.config = place.read(CONFIG, 0, min(MOST_TEXT, place.size(CONFIG) or 0)).decode(errors="replace")
        contents.name = _run_name(contents.config) or contents.name
    contents.curves, contents.remarks["curves"] = read_curves(place)
    contents.grids, contents.remarks["grids"] = read_grids(place, most_bytes)
    _read_files(contents, place, entries)
    found = sorted(
        name[: -len(SETTINGS) - 1] for name in names if name.startswith(f"{SWEEPS}/") and name.endswith(f"/{SETTINGS}")
    )
    for name in found:
        _read_sweep(contents, place.child(name), name.removeprefix(f"{SWEEPS}/"), own=True)
    for other in sweeps:
        _read_sweep(contents, open_place(other), other, own=False)
    _read_notes(contents, place, entries)
    return contents


def _run_name(config: str) -> str | None:
    """The run's name in the text of its configuration, of which one line is read."""
    line = next((line for line in config.splitlines() if line.startswith("run_name:")), "")
    try:
        return str(yaml.safe_load(line)["run_name"])
    except (yaml.YAMLError, KeyError, TypeError):
        return None


def _read_files(contents: Contents, place: Place, entries: Sequence[Entry]) -> None:
    rows = []
    for entry in reversed(entries):
        if fields := snapshot_fields(entry.name):
            nimg = f"{int(fields['nimg'])}"
            rows.append((fields["kind"], nimg, fields["sigma_rel"], *_size_and_time(entry.size, entry.modified)))
    for checkpoint in reversed(list_checkpoints(place.child("checkpoints"))):
        modified = max(entry.modified for entry in checkpoint.files)
        rows.append(("checkpoint", f"batch {checkpoint.batch}", "", *_size_and_time(checkpoint.size, modified)))
    if len(rows) > MOST_ROWS:
        contents.remarks["files"] = [f"only {MOST_ROWS} of {len(rows)} are listed"]
    contents.files = rows[:MOST_ROWS]


def _size_and_time(size: int, modified: float) -> tuple[str, str]:
    return f"{size / 1e6:.1f}", time.strftime("%Y-%m-%d %H:%M", time.localtime(modified))


def _read_sweep(contents: Contents, place: Place, name: str, own: bool) -> None:
    """Add a sweep. One that lies in the run and cannot be read is a remark, so that the rest is shown."""
    try:
        settings, results = read_settings(place), read_results(place)
    except SweepError as error:
        if not own:
            raise
        contents.remarks.setdefault("sweeps", []).append(str(error))
        return
    if results:
        contents.sweeps.append((name, settings, results))


def _read_notes(contents: Contents, place: Place, entries: Sequence[Entry]) -> None:
    notes = contents.notes
    snapshots = sorted((fields["nimg"], entry.name) for entry in entries if (fields := snapshot_fields(entry.name)))
    counts = {folder: sum(entry.name.startswith(f"{folder}/") for entry in entries) for folder in SNAPSHOT_FOLDERS}
    if snapshots:
        nimg, name = snapshots[-1]
        notes.append(("images seen", f"{int(nimg):,}"))
        path = f"{contents.address}/{name}"
        try:
            with SnapshotReader(path) as reader:
                contents.facts = reader.info.dataset
                parameters = sum(math.prod(shape) for shape in reader.shapes().values())
                notes.append(("parameters", f"{parameters:,}"))
        except SnapshotError as error:
            contents.remarks["data"] = [str(error)]
    notes += [(folder, str(count)) for folder, count in counts.items() if count]
    loss = contents.curves.get("loss/train/total")
    if loss is not None and loss.steps:
        notes.append(("batches logged", f"{loss.steps[-1] + 1:,}"))
        notes.append(("last loss", f"{loss.means[-1]:.4g}"))
    if contents.config.startswith("# edm2-recipe "):
        notes.append(("trained by", contents.config.splitlines()[0][2:60]))
    notes.append(("report by", f"edm2-recipe {importlib.metadata.version('edm2-recipe')}"))


def sweep_for_page(name: str, settings: Mapping[str, str], results: Sequence[Result]) -> dict[str, Any]:
    """A sweep as the page's script reads it."""
    coordinates, metrics = varying(results) or ["sigma_rel"], metrics_of(results)
    metric = settings.get("metric", "")
    metric = metric if metric in metrics else metrics[0]
    best = optimum(results, metric)
    rows = [
        {
            "cells": [shown(each, getattr(result.point, each)) for each in coordinates],
            "values": [finite(result.values.get(each, math.nan)) for each in metrics],
            "x": result.point.sigma_rel,
            "best": result is best,
        }
        for result in results
    ]
    rising = [higher_is_better(each) for each in metrics]
    return {
        "name": name,
        "coordinates": coordinates,
        "metrics": metrics,
        "rising": rising,
        "rows": rows,
        "settings": list(settings.items()),
        "chosen": metrics.index(metric),
    }


def finite(value: float) -> float | None:
    """The number with 6 digits; None, as JSON has no other numbers, if it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
