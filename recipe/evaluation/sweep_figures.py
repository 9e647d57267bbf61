"""Which figures go beside a sweep's results: those of the coordinates that it went through."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from recipe.evaluation import plots
from recipe.evaluation.averages import Averages
from recipe.evaluation.sweep import FIGURES, Result
from recipe.evaluation.sweep_table import optimum, varying
from recipe.storage.places import Place
from recipe.weights.posthoc import usable_snapshots


def figures(results: Sequence[Result], metric: str, averages: Averages) -> dict[str, Figure]:
    """Figures by name; none of a sweep without a finite value."""
    best, several = optimum(results, metric), varying(results)
    if best is None:
        return {}
    found: dict[str, Figure] = {}
    if "sigma_rel" in several:
        found["sigma_rel"] = plots.metric_against_length(results, metric)
    if "sigma_rel" in several and "guidance" in several:
        found["guidance"] = plots.heat_map(results, metric)
    if "nimg" in several:
        found["training"] = plots.metric_over_training(results, metric)
    lengths = sorted({result.point.sigma_rel for result in results})
    shown = sorted({lengths[0], best.point.sigma_rel, lengths[-1]})
    snapshots, nimg = usable_snapshots(averages.snapshots, best.point.nimg)
    found["profiles"] = plots.ema_profiles(snapshots, nimg, shown)
    assert found.keys() <= set(FIGURES), "whose places a sweep looks at before it begins"
    return found


def write_figures(place: Place, results: Sequence[Result], metric: str, averages: Averages) -> list[str]:
    """Write the figures as PNG and SVG; returns the names of the PNG files. Raises StorageError."""
    found = figures(results, metric, averages)
    for name, figure in found.items():
        for suffix in (".png", ".svg"):
            place.write(f"{name}{suffix}", plots.encoded(figure, suffix))
    return [f"{name}.png" for name in found]
