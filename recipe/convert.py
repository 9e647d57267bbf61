"""Convert weights of the official implementation of EDM2 to snapshots, and snapshots to plain weights.

    python recipe/convert.py edm2-img512-xs-2147483-0.135.pkl --out DIR
    python recipe/convert.py training-state-0002097.pt --out DIR [--network network-snapshot-0002097-0.100.pkl]
    python recipe/convert.py SNAPSHOT.safetensors --to published --out FILE.safetensors
    python recipe/convert.py SNAPSHOT.safetensors --to hub --out DIR

Pickles are read as data: nothing that they name is looked up, and the source code in them is never run.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from recipe.interrupts import end_at_once
    from recipe.lean_imports import import_less

    end_at_once("convert.py")
    import_less()

import recipe  # noqa: F401, sets up threads, before torch is loaded

# isort: split

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from recipe.command_line import UserError, exit_with
from recipe.command_options import OptionError, Options, address, check_folder, choice, real_number, refuse_idle, word
from recipe.configuration.spans import images_in
from recipe.data.facts import DataFacts
from recipe.edm2.ema import SIGMA_REL_LIMIT
from recipe.storage.addresses import is_remote, is_taken, split_address
from recipe.storage.fetching import at_hand
from recipe.weights.hub import HUB_FILES, MODEL, UNET, hub_texts
from recipe.weights.moments import STEP, moments_name, moments_tensors, weights_name
from recipe.weights.official import KIND, read_official, time_and_length
from recipe.weights.official_training import read_training_state
from recipe.weights.snapshots import SnapshotInfo, SnapshotReader, load_network, save_snapshot, snapshot_name
from recipe.weights.state_dicts import FORMATS, published_shapes, write_state_dict

OFFICIAL, TRAINING, SNAPSHOT = ".pkl", ".pt", ".safetensors"


class ConvertError(UserError):
    """Weights that cannot be had or put where they should go; the message names them."""


def arguments_parser() -> Options:
    parser = Options("convert.py", "Convert weights of the official implementation of EDM2, and back.")
    add = parser.add_argument
    source = "edm2-*.pkl, training-state-*.pt, or a snapshot of this recipe (.safetensors); local or s3://"
    add("source", type=address("SOURCE"), help=source)
    to = (
        "snapshot (default for .pkl and .pt); published: a plain state dict under the published names; or hub: a folder"
    )
    add("--to", type=choice("--to", "snapshot", "published", "hub"), metavar="KIND", help=to)
    out = "folder, or FILE.safetensors (of a state dict also FILE.pt); local or s3://"
    add("--out", type=address("--out"), required=True, metavar="PLACE", help=out)
    nimg = "images that a .pkl has seen, such as 2Gi (default: as its name says)"
    add("--nimg", type=word("--nimg"), metavar="IMAGES", help=nimg)
    sigma_rel = "length of the average in a .pkl (default: as its name says)"
    add("--sigma-rel", type=real_number("--sigma-rel", above=0), metavar="LENGTH", help=sigma_rel)
    network = "of a training state: a .pkl of the same run, which tells the network's arguments and the data's scaling"
    add("--network", type=address("--network"), metavar="FILE", help=network)
    return parser


def check(arguments: argparse.Namespace) -> str:
    """What can be said against the options before a file is read; returns the kind of source. Raises OptionError."""
    kind = PurePosixPath(arguments.source).suffix
    if kind not in (OFFICIAL, TRAINING, SNAPSHOT):
        raise OptionError(f"SOURCE {arguments.source}: must be a .pkl, a .pt or a .safetensors file")
    if (kind == SNAPSHOT) != (arguments.to in ("published", "hub")):
        fix = "add --to published or --to hub" if kind == SNAPSHOT else "convert it to a snapshot first, then that one"
        what = "is a snapshot already" if kind == SNAPSHOT else f"cannot become {arguments.to} weights at once"
        raise OptionError(f"SOURCE {arguments.source}: {what}; {fix}")
    if kind != OFFICIAL:
        refuse_idle(arguments, ["--nimg", "--sigma-rel"], "is for a .pkl alone; leave it out")
    if kind != TRAINING:
        refuse_idle(arguments, ["--network"], "is for a training state alone; leave it out")
    elif arguments.network is not None and not arguments.network.endswith(OFFICIAL):
        raise OptionError(f"--network {arguments.network}: must be a .pkl file of the same run")
    if arguments.sigma_rel is not None and round(arguments.sigma_rel, 3) != arguments.sigma_rel:
        raise OptionError(
            f"--sigma-rel {arguments.sigma_rel:g}: must have at most 3 decimals, as the names of snapshots"
        )
    if arguments.sigma_rel is not None and arguments.sigma_rel >= SIGMA_REL_LIMIT:
        raise OptionError(f"--sigma-rel {arguments.sigma_rel:g}: must be below 12^-0.5 = {SIGMA_REL_LIMIT:.4f}")
    if arguments.nimg is not None:
        images_in(arguments.nimg, "--nimg")
    check_out(arguments.out, kind, arguments.to == "hub")
    return kind


def check_out(out: str, kind: str, hub: bool) -> None:
    """Raises OptionError if what is made of that kind of source cannot be put at `out`."""
    is_file = PurePosixPath(out).suffix in FORMATS
    if hub and is_file:
        raise OptionError(f"--out {out}: must be a folder, which several files go into")
    if kind == SNAPSHOT and not hub and not is_file:
        raise OptionError(f"--out {out}: must be a file that ends with {' or '.join(FORMATS)}")
    if kind == TRAINING and is_file:
        raise OptionError(f"--out {out}: must be a folder, for several files come of a training state")
    if kind == OFFICIAL and PurePosixPath(out).suffix == TRAINING:
        raise OptionError(f"--out {out}: a snapshot must end with .safetensors; or name a folder")
    if not is_remote(out):
        check_folder(Path(out).parent if is_file else Path(out), "--out")


def check_free(target: str) -> None:
    """Raises ConvertError if something is at `target`."""
    if is_taken(target):
        raise ConvertError(f"--out {target}: is there already, and is not replaced; name another place")


def store(target: str, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a file that appears at `target` whole or not at all."""
    check_free(target)
    place, name = split_address(target)
    place.make(name, fill)


@contextlib.contextmanager
def local_copy(source: str) -> Iterator[Path]:
    """The file on this machine, fetched for a while if it lies in object storage.

    Raises:
        ConvertError: there is none.
        StorageError: the object store cannot be used.
    """
    if not is_remote(source):
        if not Path(source).is_file():
            problem = "is a folder; name a file in it" if Path(source).is_dir() else "no such file; check the path"
            raise ConvertError(f"{source}: {problem}")
        yield Path(source)
        return
    place, name = split_address(source)
    if place.size(name) is None:
        raise ConvertError(f"{place.describe(name)}: no such file; check the address")
    with at_hand(place, name) as path:
        yield path


def convert_official(arguments: argparse.Namespace) -> list[str]:
    """A published network -> one snapshot; returns its address. Raises ValueError, OSError."""
    named = time_and_length(arguments.source)
    given = None if arguments.nimg is None else images_in(arguments.nimg, "--nimg")
    nimg = given if given is not None or named is None else named[0]
    sigma_rel = arguments.sigma_rel if arguments.sigma_rel is not None or named is None else named[1]
    if nimg is None or sigma_rel is None:
        missing = " and ".join(o for o, v in (("--nimg", nimg), ("--sigma-rel", sigma_rel)) if v is None)
        raise OptionError(f"SOURCE {arguments.source}: its name does not say time and length; add {missing}")
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise OptionError(f"SOURCE {arguments.source}: its name says sigma_rel {sigma_rel:g}; give another --sigma-rel")
    is_file = arguments.out.endswith(SNAPSHOT)
    target = arguments.out if is_file else f"{arguments.out.rstrip('/')}/{snapshot_name(nimg, sigma_rel)}"
    check_free(target)
    with local_copy(arguments.source) as path:
        official = read_official(path)
    extra = {"converted_from": PurePosixPath(arguments.source).name}
    info = SnapshotInfo(official.network, nimg, sigma_rel, official.facts, extra, KIND)
    store(target, lambda path: save_snapshot(path, official.tensors, info))
    return [target]


def convert_training(arguments: argparse.Namespace) -> list[str]:
    """A training state -> its raw weights, averages and moments; returns their addresses."""
    network, facts = None, DataFacts()
    if arguments.network is not None:
        with local_copy(arguments.network) as path:
            like = read_official(path)
        network, facts = like.network, like.facts
    with local_copy(arguments.source) as path:
        state = read_training_state(path, network)
    folder, extra = arguments.out.rstrip("/"), {"converted_from": PurePosixPath(arguments.source).name}
    found, steps = {weights_name(state.nimg): (0.0, state.weights)}, {}
    for sigma_rel, tensors in state.averages.items():
        found[snapshot_name(state.nimg, sigma_rel)] = sigma_rel, tensors
    if state.moments is not None:
        found[moments_name(state.nimg)] = 0.0, moments_tensors(state.moments)
        steps = {STEP: state.moments.step}
    for name in found:
        check_free(f"{folder}/{name}")
    for name, (sigma_rel, tensors) in found.items():
        more = steps if name == moments_name(state.nimg) else {}
        info = SnapshotInfo(state.network, state.nimg, sigma_rel, facts, {**extra, **more}, KIND)
        store(f"{folder}/{name}", lambda path, tensors=tensors, info=info: save_snapshot(path, tensors, info))
    return [f"{folder}/{name}" for name in found]


def convert_snapshot(arguments: argparse.Namespace) -> list[str]:
    """A snapshot -> a state dict under the published names, or a folder for others; returns the addresses."""
    if not is_remote(arguments.source) and Path(arguments.source).is_dir():
        raise ConvertError(f"{arguments.source}: is a folder; name a file in it")
    if arguments.to == "hub":
        return write_hub(arguments.source, arguments.out.rstrip("/"))
    check_free(arguments.out)
    with SnapshotReader(arguments.source) as reader:
        tensors = published_shapes(reader.read_all())
    store(arguments.out, lambda path: write_state_dict(path, tensors))
    return [arguments.out]


def write_hub(source: str, folder: str) -> list[str]:
    """Write the folder of a snapshot for others; returns the addresses of its files."""
    for name in HUB_FILES:
        check_free(f"{folder}/{name}")
    net, info = load_network(source)
    with SnapshotReader(source) as reader:
        tensors = reader.read_all()
    for name in (MODEL, UNET):
        store(f"{folder}/{name}", lambda path: save_snapshot(path, tensors, info))
    for name, text in hub_texts(net, info).items():
        store(f"{folder}/{name}", lambda path, text=text: path.write_text(text, encoding="utf-8"))
    return [f"{folder}/{name}" for name in HUB_FILES]


ACTIONS = {OFFICIAL: convert_official, TRAINING: convert_training, SNAPSHOT: convert_snapshot}


def main() -> None:
    arguments = arguments_parser().parse_args()
    try:
        for target in ACTIONS[check(arguments)](arguments):
            print(target)
    except (ValueError, OSError) as error:
        exit_with("convert.py", error, on_every_rank=False)


if __name__ == "__main__":
    from recipe.interrupts import interruptible

    with interruptible("convert.py", "the files that are there are whole"):
        main()
