"""Find the best length of the average, and guidance, of a run: draw pictures at each of many points, and measure them.

    python recipe/sweep.py RUN --ref data.safetensors --sigma-rel 0.02:0.20:0.02 --guidance 1,1.5,2 --num 5000
    python recipe/sweep.py RUN --ref data.safetensors --sigma-rel 0.01:0.25:0.005 --guidance 1:3:0.1 --search coordinate

RUN is a run's folder, local or s3://. Averages are made in memory, of any length. Prints a table with the optimum
marked, and writes it beside the results as table.csv, with figures. Each point's result is a file at --out, so that
the same command goes on, and tasks of a Slurm array share a sweep (--task, launch/sweep.sh). On several ranks (composer
-n 8 recipe/sweep.py ...) all draw at each point. More: docs/sweeps-and-reports.md.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("sweep.py")
    import_less()

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse
from pathlib import Path

from recipe.command_line import exit_with, say
from recipe.command_options import Options, address, check_folder, choice, whole_number, word
from recipe.evaluation.averages import Averages
from recipe.evaluation.coordinate_search import coordinate_search
from recipe.evaluation.evaluate_options import add_network
from recipe.evaluation.metrics import check_enough
from recipe.evaluation.point_measure import PointMeasure
from recipe.evaluation.points import Axes
from recipe.evaluation.sweep import SWEEPS, TABLE, Results, Sweep, share
from recipe.evaluation.sweep_figures import write_figures
from recipe.evaluation.sweep_options import (
    axes_of,
    check,
    find_guide,
    find_judge,
    search_cost,
    sweep_settings,
    task_of,
)
from recipe.evaluation.sweep_table import borders, csv_text, optimum, table
from recipe.ranks import find_ranks
from recipe.sampling.drawing_options import add_sampling_options, dtype_of, vae_digest, wanted_images
from recipe.sampling.networks import to_pictures, usable_device
from recipe.storage.addresses import is_remote, open_place


def arguments_parser() -> Options:
    parser = Options("sweep.py", "Measure many combinations of average and guidance of a run.")
    add = parser.add_argument
    add("run", type=address("RUN"), help="folder of the run, local or s3://bucket/folder")
    ref = "statistics of the data, which recipe/evaluate.py ref makes"
    add("--ref", type=address("--ref"), required=True, metavar="FILE", help=ref)
    add_network(parser)
    metric = "metrics fd, kid, pr, dc, is; the first value decides which point is best (default fd)"
    add("--metric", type=word("--metric"), default="fd", metavar="LIST", help=metric)
    lengths = "lengths of the average: 0.05,0.10 or start:end:step"
    add("--sigma-rel", type=word("--sigma-rel"), required=True, metavar="LIST", help=lengths)
    add("--guidance", type=word("--guidance"), default="1", metavar="LIST", help="strengths; 1 = none (default)")
    interval = "noise levels with guidance: LO:HI,LO:HI; all = everywhere (default)"
    add("--interval", type=word("--interval"), metavar="LIST", help=interval)
    nimg = "times of snapshots, such as 4Mi,8Mi, or all (default: the latest)"
    add("--nimg", type=word("--nimg"), metavar="LIST", help=nimg)
    guide = "guiding network: a snapshot, or a run with --guide-sigma-rel (default: the network without labels)"
    add("--guide", type=address("--guide"), metavar="PLACE", help=guide)
    guides = "lengths of the guiding run's average"
    add("--guide-sigma-rel", type=word("--guide-sigma-rel"), metavar="LIST", help=guides)
    add("--guide-nimg", type=word("--guide-nimg"), metavar="IMAGES", help="its time (default: its latest)")
    add("--num", type=whole_number("--num", least=2), default=50000, metavar="N", help="pictures at each point (50000)")
    search = "grid = all points (default); coordinate = one coordinate after another, far fewer points"
    add("--search", type=choice("--search", "grid", "coordinate"), default="grid", help=search)
    task = "measure every N-th point, from I on, of a grid: I/N, of tasks that share --out"
    add("--task", type=word("--task"), metavar="I/N", help=task)
    add("--out", type=address("--out"), metavar="PLACE", help="results, local or s3:// (default: RUN/sweeps/METRIC)")
    add_sampling_options(parser)
    add("--force", action="store_true", help="also averages that the snapshots support poorly")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple[Axes, PointMeasure, Results]:
    """All that is read before the first picture is drawn. Raises ValueError, OSError."""
    ranks, device = find_ranks(), usable_device(arguments.device)
    averages = Averages(arguments.run, device, dtype_of(arguments, device), arguments.force)
    judge = find_judge(arguments, device)
    axes = axes_of(arguments, averages)
    guide = find_guide(arguments, averages)
    settings = sweep_settings(arguments, axes)
    check_enough(judge.metrics, arguments.num, "--num asks for")
    own_guidance = 1.0 if guide is not None else axes.strongest()
    wanted = wanted_images(arguments, range(arguments.num), averages.outline, own_guidance)
    pictures = to_pictures(averages.outline, arguments.vae, device)
    likely = axes.sigma_rel if arguments.search == "coordinate" else ()
    measure = PointMeasure(judge, averages, guide, settings, wanted, pictures, ranks, arguments.batch_size, likely)
    conditions = measure.measured_with(arguments.labels or "balanced", vae_digest(pictures))
    results = Results(open_place(arguments.out), conditions)
    return axes, measure, results


def sweep(arguments: argparse.Namespace) -> None:
    """Measure what the options ask for. Raises ValueError, OSError."""
    check(arguments)
    task = task_of(arguments)
    arguments.run = arguments.run.rstrip("/") or "/"
    arguments.out = arguments.out or f"{arguments.run}/{SWEEPS}/{arguments.metric.replace(',', '-')}"
    if not is_remote(arguments.out):
        check_folder(Path(arguments.out), "--out")
    axes, measure, results = prepare(arguments)
    metric = results.settings["metric"]
    if measure.ranks.first:
        results.begin()
    run = Sweep(results, measure, measure.expect, measure.ranks)
    if arguments.search == "coordinate":
        coordinate_search(axes, axes.middle(), search_cost(run, metric))
        found = list(run.known.values())
    else:
        found = run(share(axes.grid(), *task))
    measure.ranks.gather()
    if not measure.ranks.first:
        return
    print(table(found, metric))
    best = optimum(found, metric)
    if task[1] > 1:
        say(f"task {task[0]} of {task[1]}: the same command without --task shows the whole sweep")
        return
    for sentence in borders(best, axes) if best is not None else ["no value is finite"]:
        say(f"note: {sentence}")
    results.place.write(TABLE, csv_text(found).encode())
    names = write_figures(results.place, found, metric, measure.averages)
    say(f"{arguments.out}: {len(found)} points; {TABLE}, {', '.join(names)}")


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        sweep(arguments)
    except (ValueError, OSError) as error:
        exit_with("sweep.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("sweep.py", "what was measured is kept; the same command goes on"):
        main()
