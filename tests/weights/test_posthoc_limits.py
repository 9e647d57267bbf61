"""Which post-hoc averages the snapshots support: a profile's error of up to 5%, and times that they reach."""

from pathlib import Path

import pytest

from recipe.weights.posthoc import PosthocError, solve, usable_snapshots
from recipe.weights.snapshots import SnapshotFile


def evenly(count: int, start: int = 1) -> list[SnapshotFile]:
    """Snapshots of two averages at `count` times."""
    times = range(start, start + count)
    return [SnapshotFile(time, sigma_rel, Path("x")) for time in times for sigma_rel in (0.05, 0.1)]


@pytest.mark.parametrize(("count", "sigma_rel", "error"), [(24, 0.25, 0.0485), (48, 0.015, 0.0394), (6, 0.13, 0.0327)])
def test_errors_below_5_percent_are_accepted(count: int, sigma_rel: float, error: float):
    assert float(solve(evenly(count), count, [sigma_rel])[1][0]) == pytest.approx(error, abs=1e-4)


@pytest.mark.parametrize(("count", "sigma_rel", "error"), [(10, 0.2, "5.3%"), (64, 0.01, "5.8%"), (4, 0.13, "6.2%")])
def test_errors_above_5_percent_are_refused_unless_forced(count: int, sigma_rel: float, error: str):
    with pytest.raises(PosthocError, match=f"sigma_rel {sigma_rel:g} \\({error}\\).*exceeds 5%"):
        solve(evenly(count), count, [0.1, sigma_rel])
    assert f"{float(solve(evenly(count), count, [sigma_rel], force=True)[1][0]):.1%}" == error


def test_snapshots_up_to_the_target_are_used_and_none_at_0():
    snapshots = evenly(5, start=0)
    for target in (1, 3, 4):
        used, time = usable_snapshots(snapshots, target)
        assert (time, sorted({snapshot.nimg for snapshot in used})) == (target, list(range(1, target + 1)))
        assert len(used) == 2 * target
    assert usable_snapshots(snapshots, None) == usable_snapshots(snapshots, 4)
    for target in (0, 5):
        with pytest.raises(PosthocError, match="must be the time of a snapshot"):
            usable_snapshots(snapshots, target)
    with pytest.raises(PosthocError, match="there are no snapshots"):
        usable_snapshots(evenly(1, start=0), None)
