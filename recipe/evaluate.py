"""Measure pictures: FID and other metrics, of files or of what a network draws.

    python recipe/evaluate.py ref data/photos --out ref.safetensors           # statistics of data
    python recipe/evaluate.py calc out/ --ref ref.safetensors                 # of pictures against them
    python recipe/evaluate.py gen SNAPSHOT --ref ref.safetensors --runs 3     # of a network; nothing is stored
    python recipe/evaluate.py compare one.safetensors other.safetensors       # of two files of statistics

Each runs on any number of ranks (composer -n N, torchrun), whose number changes no value. `evaluate.py ref --help` and
so on show the options. What each metric needs, and how a number of the paper is reproduced: docs/evaluation.md.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("evaluate.py")
    import_less()

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping

from recipe.command_line import exit_with, rank, say
from recipe.command_options import OptionError, Options, refuse_idle
from recipe.evaluation.evaluate_options import (
    calc_parser,
    compare_parser,
    gen_parser,
    load_network,
    metrics_of,
    opened,
    ref_parser,
    reference_of,
)
from recipe.evaluation.feature_set import FeatureSet
from recipe.evaluation.features import FeatureNetwork
from recipe.evaluation.judging import Judge, judge_network, keep_for
from recipe.evaluation.measuring import Keep, Numbered, measure
from recipe.evaluation.metrics import Values, check_enough, values_of
from recipe.evaluation.pictures import PictureSet
from recipe.evaluation.reference import About
from recipe.evaluation.results import Results, check_result_place
from recipe.evaluation.statistics_files import WRITTEN, open_reference, write_reference
from recipe.progress import progress
from recipe.ranks import Ranks, find_ranks
from recipe.sampling.distributed import rows_of
from recipe.sampling.drawing_options import check_drawing, load_drawing
from recipe.sampling.networks import usable_device

ALONE = Ranks()


def seen(
    network: FeatureNetwork, pictures: PictureSet, ranks: Ranks, keep: Keep, workers: int | None
) -> FeatureSet | None:
    """The features of pictures on all ranks, for rank 0. Raises EvaluationError."""
    workers = ranks.processors() if workers is None else workers
    batches = pictures.share(ranks, rows_of(network.device), workers)
    return measure(network, shown(batches, pictures.where, len(pictures.chosen) // ranks.size), ranks, keep)


def shown(batches: Iterable[Numbered], what: str, total: int) -> Iterable[Numbered]:
    """The same, with progress on standard error."""
    with progress(total, what, "image", shown=rank() == 0) as bar:
        for numbers, pictures in batches:
            yield numbers, pictures
            bar.update(len(numbers))


def ref(arguments: argparse.Namespace) -> str:
    """Write the statistics of data; returns what to say. Raises ValueError, OSError."""
    check_result_place(arguments.out, WRITTEN, arguments.overwrite)
    if arguments.out.lower().endswith(WRITTEN[1]):
        refuse_idle(arguments, ["--keep-features"], f"cannot be stored in {WRITTEN[1]}; name a file {WRITTEN[0]}")
    ranks = find_ranks()
    network = load_network(arguments, usable_device(arguments.device), None)
    pictures = opened(arguments.source, arguments)
    count, kept = len(pictures.chosen), arguments.keep_features or 0
    if kept > count:
        raise OptionError(f"--keep-features {kept}: {arguments.source} has only {count} pictures")
    keep = Keep({index * count // kept for index in range(kept)})
    found = seen(network, pictures, ranks, keep, arguments.workers)
    if found is not None:
        about = About(network.name, network.digest, **pictures.facts())
        write_reference(arguments.out, about, found)
    width = "" if found is None else f", {len(found.mean)} of each"
    return f"{arguments.out}: statistics of {network.name} features{width}, of {count} pictures"


def calc(arguments: argparse.Namespace) -> str:
    """Measure pictures against statistics or other pictures. Raises ValueError, OSError."""
    names = metrics_of(arguments)
    check_result_place(arguments.out, [".json"], arguments.overwrite)
    if (arguments.ref is None) == (arguments.other is None):
        raise OptionError("--ref FILE or OTHER: name one of the two, which PICTURES are measured against")
    ranks = find_ranks()
    reference = None if arguments.ref is None else reference_of(arguments)
    network = load_network(arguments, usable_device(arguments.device), reference)
    pictures = opened(arguments.pictures, arguments)
    about = About(network.name, network.digest, **pictures.facts())
    check_enough(names, len(pictures.chosen), f"{arguments.pictures} has")
    if reference is None:
        settings, values = calc_two(arguments, names, network, pictures, ranks)
    else:
        judge = Judge(reference, network, names)
        reference.check_pictures(about, arguments.pictures)
        values = judge.values(seen(network, pictures, ranks, judge.keep, arguments.workers), ranks)
        settings = measured_by(network, reference.path, reference.about, reference.found.count)
    settings["pictures"] = said_of(about, len(pictures.chosen))
    return finish(arguments, Results("calc", network.name, [(arguments.pictures, values)], settings), ranks)


def calc_two(
    arguments: argparse.Namespace, names: list[str], network: FeatureNetwork, pictures: PictureSet, ranks: Ranks
) -> tuple[dict[str, object], Values]:
    """The settings, and on rank 0 the values, against other pictures, whose statistics are not stored."""
    others = opened(arguments.other, arguments)
    check_enough(names, len(others.chosen), f"{arguments.other} has")
    keep = keep_for(names)
    if keep.logits and not network.has_logits:
        raise OptionError(f"--metrics is: needs a classifier, which {network.name} is not; leave it out")
    if pictures.form.resolution != others.form.resolution:
        sizes = f"{pictures.form.resolution} and {others.form.resolution} pixels"
        raise OptionError(f"{arguments.pictures} and {arguments.other} have {sizes}; give --resolution")
    against = seen(network, others, ranks, Keep(keep.features), arguments.workers)
    found = seen(network, pictures, ranks, keep, arguments.workers)
    about = About(network.name, network.digest, **others.facts())
    settings = measured_by(network, arguments.other, about, len(others.chosen))
    return settings, {} if found is None or against is None else values_of(names, found, against, network.device)


def gen(arguments: argparse.Namespace) -> str:
    """Measure what a network draws. Raises ValueError, OSError."""
    names, settings = metrics_of(arguments), check_drawing(arguments)
    check_result_place(arguments.out, [".json"], arguments.overwrite)
    check_enough(names, arguments.num, "--num asks for")
    ranks = find_ranks()
    reference = reference_of(arguments)
    judge = Judge(reference, load_network(arguments, usable_device(arguments.device), reference), names)
    starts = [arguments.first_seed + run * arguments.num for run in range(arguments.runs)]
    drawing = load_drawing(arguments, settings, range(starts[0], starts[-1] + arguments.num))
    reference.check_pictures(About(judge.features.name, resolution=drawing.resolution), arguments.snapshot)
    runs = []
    for run, start in enumerate(starts):
        wanted = drawing.wanted[run * arguments.num : (run + 1) * arguments.num]
        seeds = f"seeds {start}-{start + arguments.num - 1}"
        with progress(len(wanted) // ranks.size, seeds, "image", shown=ranks.first) as bar:
            values = judge_network(judge, drawing.drawer, wanted, ranks, arguments.batch_size, bar.update)
        runs.append((seeds, values))
    said = measured_by(judge.features, arguments.ref, reference.about, reference.found.count)
    said |= {"snapshot": arguments.snapshot, "num": arguments.num, "labels": arguments.labels or "balanced"}
    said["drawn_by"] = dict(drawing.settings)
    return finish(arguments, Results("gen", judge.features.name, runs, said), ranks)


def compare(arguments: argparse.Namespace) -> str:
    """Measure statistics against others. Raises ValueError, OSError."""
    names = metrics_of(arguments)
    check_result_place(arguments.out, [".json"], arguments.overwrite)
    device = usable_device(arguments.device)
    if keep_for(names).logits:
        raise OptionError("--metrics is: is of pictures, not of statistics; use calc")
    one, other = (open_reference(place, arguments.features) for place in (arguments.one, arguments.other))
    other.check_pictures(one.about, one.path)
    for side in one, other:
        side.check_metrics(names)
    values = values_of(names, one.found, other.found, device)
    reference, pictures = (said_of(side.about, side.found.count) | {"path": side.path} for side in (other, one))
    settings = {"device": device.type, "reference": reference, "pictures": pictures}
    return finish(arguments, Results("compare", one.about.features, [(one.path, values)], settings))


def measured_by(network: FeatureNetwork, path: str, about: About, count: int | None) -> dict[str, object]:
    """What a result says of the features and the reference."""
    reference = said_of(about, count) | {"path": path}
    return {"features_digest": network.digest, "device": network.device.type, "reference": reference}


def said_of(about: About, count: int | None) -> dict[str, object]:
    """What a result says of a set of pictures."""
    return {"num": count, **dataclasses.asdict(about)}


def finish(arguments: argparse.Namespace, results: Results, ranks: Ranks = ALONE) -> str:
    """Write --out, and return the table; on ranks other than 0 nothing."""
    ranks.gather()
    if rank() != 0:
        return ""
    if arguments.out is not None:
        results.write(arguments.out)
    return results.table()


COMMANDS: Mapping[str, tuple[Callable[[], Options], Callable[[argparse.Namespace], str]]] = {
    "ref": (ref_parser, ref),
    "calc": (calc_parser, calc),
    "gen": (gen_parser, gen),
    "compare": (compare_parser, compare),
}


def main() -> None:
    name, *words = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        say(__doc__ or "")
        return
    if name not in COMMANDS:
        exit_with("evaluate.py", f"{name or 'COMMAND'}: must be one of {', '.join(COMMANDS)}; see --help")
    parser, run = COMMANDS[name]
    arguments = parser().parse_args(words)
    try:
        say(run(arguments))
    except (ValueError, OSError) as error:
        exit_with(f"evaluate.py {name}", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("evaluate.py", "nothing was written"):
        main()
