"""The options of evaluate.py's commands."""

import argparse

import torch

from recipe.command_options import OptionError, Options, address, choice, local_path, refuse_idle, whole_number, word
from recipe.evaluation.features import KNOWN, FeatureNetwork, find_network
from recipe.evaluation.metrics import METRICS, chosen
from recipe.evaluation.network_weights import WeightsChoice
from recipe.evaluation.pictures import PictureSet, open_pictures
from recipe.evaluation.reference import Reference
from recipe.evaluation.statistics_files import open_reference
from recipe.preparation.pictures import CROPS
from recipe.sampling.drawing_options import add_device, add_drawing_options

NUM = 50_000  # images of `gen`, as in the paper
REF = "statistics: of `ref`, EDM2's .pkl, or .npz with mu and sigma; local or s3://"


def add_network(parser: Options, default: str = "that of --ref") -> None:
    """The feature network, None where none is named, and its weights."""
    add = parser.add_argument
    known = f"{', '.join(KNOWN)} (default {default})"
    features = f"{known}, or MODULE:FUNCTION, which takes uint8 [N,3,H,W] and gives [N,D]"
    add("--features", type=word("--features"), metavar="NAME", help=features)
    weights = "folder of the published weights, where they cannot be fetched"
    add("--weights", type=local_path("--weights"), metavar="DIR", help=weights)
    accept = "SHA-256 of weights that are not known here and are to be used all the same; any = whatever they are"
    add("--accept-weights", type=word("--accept-weights"), metavar="SHA256", help=accept)


def add_metrics(parser: Options) -> None:
    """What is measured, and where the numbers go."""
    add = parser.add_argument
    add("--metrics", type=word("--metrics"), default="fd", metavar="LIST", help=f"{','.join(METRICS)} (default fd)")
    add("--out", type=address("--out"), metavar="FILE.json", help="numbers and settings; local or s3://")
    add("--overwrite", action="store_true", help="replace the file at --out")


def add_pictures(parser: Options) -> None:
    """How pictures that are there are read."""
    add = parser.add_argument
    resolution = "height and width that pictures get (default: that of the first, which all must have)"
    add("--resolution", type=whole_number("--resolution", least=8), metavar="N", help=resolution)
    crop = f"with --resolution: {', '.join(CROPS)}, as prepare.py has them (default center-crop)"
    add("--crop", type=choice("--crop", *CROPS), metavar="HOW", help=crop)
    add("--num", type=whole_number("--num", least=2), metavar="N", help="only so many, evenly spread (default: all)")
    add("--split", type=word("--split"), help="of a Hugging Face data set")
    workers = "processes of each rank that decode (default: one per processor)"
    add("--workers", type=whole_number("--workers", least=0, most=4096), metavar="N", help=workers)


def ref_parser() -> Options:
    parser = Options("evaluate.py ref", "Statistics of data, which pictures are measured against.")
    add = parser.add_argument
    source = "what prepare.py reads (folder, ZIP, tar, MDS shards, hf:NAME, digits), or .npz with arr_0"
    add("source", type=address("SOURCE"), help=source)
    out = "FILE.safetensors, or .npz with mu and sigma alone, for others' evaluators; local or s3://"
    add("--out", type=address("--out"), required=True, metavar="FILE", help=out)
    add("--overwrite", action="store_true", help="replace the file at --out")
    kept = "also the features of N pictures, evenly spread, which kid, pr and dc need (2048 of Inception: 8 kB each)"
    add("--keep-features", type=whole_number("--keep-features"), metavar="N", help=kept)
    add_pictures(parser)
    add_network(parser, KNOWN[0])
    add_device(parser)
    return parser


def calc_parser() -> Options:
    parser = Options("evaluate.py calc", "Metrics of pictures.")
    add = parser.add_argument
    add("pictures", type=address("PICTURES"), help="as SOURCE of ref: for example what sample.py wrote")
    add("other", nargs="?", type=address("OTHER"), help="pictures that they are measured against, in place of --ref")
    add("--ref", type=address("--ref"), metavar="FILE", help=REF)
    add_metrics(parser)
    add_pictures(parser)
    add_network(parser)
    add_device(parser)
    return parser


def gen_parser() -> Options:
    parser = Options("evaluate.py gen", "Metrics of what a network draws. No image is stored.")
    add = parser.add_argument
    add("--ref", type=address("--ref"), required=True, metavar="FILE", help=REF)
    add(
        "--num",
        type=whole_number("--num", least=2, most=10_000_000),
        default=NUM,
        metavar="N",
        help=f"images of a run (default {NUM})",
    )
    runs = "sets of images, of seeds that follow each other (default 1; the paper has 3, and the best FID)"
    add("--runs", type=whole_number("--runs", most=1000), default=1, metavar="N", help=runs)
    first = "of the first run (default 0)"
    add("--first-seed", type=whole_number("--first-seed", least=0, most=2**62), default=0, metavar="SEED", help=first)
    add_metrics(parser)
    add_network(parser)
    add_drawing_options(parser)
    return parser


def compare_parser() -> Options:
    parser = Options("evaluate.py compare", "Metrics of two files of statistics.")
    add = parser.add_argument
    add("one", type=address("ONE"), help=REF)
    add("other", type=address("OTHER"), help="what it is measured against")
    features = "of files that do not say it (default inception)"
    add("--features", type=word("--features"), default="inception", metavar="NAME", help=features)
    add_metrics(parser)
    add_device(parser)
    return parser


def metrics_of(arguments: argparse.Namespace) -> list[str]:
    """The names in --metrics. Raises EvaluationError, OptionError."""
    names = [name.strip() for name in arguments.metrics.split(",")]
    if len(set(names)) < len(names):
        raise OptionError(f"--metrics {arguments.metrics}: names one twice; leave it out")
    chosen(names)
    return names


def load_network(arguments: argparse.Namespace, device: torch.device, reference: Reference | None) -> FeatureNetwork:
    """The network of --features on its device, by default that of the reference, or Inception without one.

    What a file names is never imported: a network of the user's own must be named by the command.

    Raises:
        EvaluationError: no such network, or weights that are missing, damaged or not known.
    """
    name = arguments.features or (KNOWN[0] if reference is None else reference.about.features)
    if arguments.features is None and name not in KNOWN and reference is not None:
        raise OptionError(f"--features: {reference.path} is of a network of your own, {name}; add --features {name}")
    return find_network(name, device, WeightsChoice(arguments.weights, arguments.accept_weights))


def reference_of(arguments: argparse.Namespace) -> Reference:
    """The statistics of --ref. Raises EvaluationError, StorageError."""
    return open_reference(arguments.ref, arguments.features or KNOWN[0])


def opened(where: str, arguments: argparse.Namespace) -> PictureSet:
    """Pictures by the options. Raises EvaluationError, PreparationError."""
    if arguments.resolution is None:
        refuse_idle(arguments, ["--crop"], "needs --resolution, the size that pictures get")
    return open_pictures(where, arguments.resolution, arguments.crop, arguments.num, arguments.split)
