"""What is known of a data set beside its samples: the content of stats.json, as one type, read and written here alone.

`prepare.py` writes it beside the shards, training checks it and stores it in each snapshot, sampling finds there what
its network makes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, get_type_hints

from recipe.command_line import UserError
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening

PIXELS, LATENTS = "pixels", "latents"


class DataError(UserError):
    """Shards that are missing, damaged or at odds with the configuration; the message names the file or key."""

    def __str__(self) -> str:
        # A loader's worker process hands its errors over with its traceback around the message.
        return super().__str__().strip().rsplit("DataError: ", 1)[-1]


@dataclass(frozen=True)
class DataFacts:
    """The facts of a data set; None is what a file of another origin does not say.

    Attributes:
        kind: "pixels" or "latents".
        num_images: number of samples.
        img_resolution, img_channels: shape of the images as the network sees them.
        encoding: of pixels: "png", "webp" or "raw".
        pixel_resolution: of latents: height and width of the pictures that were encoded.
        vae, vae_sha256: of latents: name of the autoencoder and digest of its weights.
        label_dim: number of classes; 0 = none.
        images_per_class: number of samples by class id; "-1" = without a class.
        class_names: by class id.
        mean, std: of each channel, of pixels in [-1, 1] or of latents that are not whitened.
        sigma_data: standard deviation of all channels together, as the network sees them.
        whitening: of latents: what makes them fit for the network.
        num_skipped: items of the source that were left out as broken.
        source, source_hash: what the data were made from, and a digest of its list of items.
        settings: all options that decided what was stored.
        streams: of a mixture: the facts of each data set in it.
        proportion: of a data set in a mixture: its share of the samples, relative to the others'.
        other: entries that are not known here.
        keys: all entries in the order of the file, also those that are null, so that none is lost in writing.
    """

    kind: str | None = None
    num_images: int | None = None
    img_resolution: int | None = None
    img_channels: int | None = None
    encoding: str | None = None
    pixel_resolution: int | None = None
    vae: str | None = None
    vae_sha256: str | None = None
    label_dim: int | None = None
    images_per_class: Mapping[str, int] | None = None
    class_names: Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    sigma_data: float | None = None
    whitening: Whitening | None = None
    num_skipped: int | None = None
    source: str | None = None
    source_hash: str | None = None
    settings: Mapping[str, Any] | None = None
    streams: "Sequence[DataFacts] | None" = None
    proportion: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
    keys: Sequence[str] = field(default=(), compare=False)

    @staticmethod
    def parse(text: str | bytes, place: str) -> "DataFacts":
        """The facts in the text of a stats.json; `place` is what messages call it. Raises DataError."""
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise DataError(
                f"{place}: is not valid JSON ({error}); prepare the data again or delete the file"
            ) from None
        return DataFacts.from_json(tree, place)

    @staticmethod
    def from_json(tree: object, place: str) -> "DataFacts":
        """The facts in an object of JSON.

        Raises:
            DataError: it is no object, or an entry is of another type than declared above.
        """
        if not isinstance(tree, dict):
            raise DataError(f"{place}: holds a {type(tree).__name__}, but must hold an object; prepare the data again")
        known, other = {}, {}
        for key, value in tree.items():
            if key not in ENTRIES:
                other[key] = value
            elif value is not None:
                known[key] = _checked(key, value, place)
        return DataFacts(**known, other=other, keys=tuple(tree))

    def to_json(self) -> dict[str, Any]:
        """The same as an object of JSON: entries in the order of the file that they are from, then further ones."""
        entries = {key: _as_json(getattr(self, key)) for key in ENTRIES} | dict(self.other)
        said = [key for key, value in entries.items() if value is not None and key not in self.keys]
        return {key: entries[key] for key in (*self.keys, *said)}

    def text(self) -> str:
        """The text of a stats.json."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"

    @property
    def latent_whitening(self) -> Whitening | None:
        """The whitening of latents; None for pixels."""
        return self.whitening if self.kind == LATENTS else None

    def of_kind(self, kind: str, place: str) -> "DataFacts":
        """The facts with the kind of data that `place` holds; latents get Stable Diffusion's whitening if none is said.

        Raises:
            DataError: facts of another kind, or latents of other channels than their whitening is for.
        """
        if self.kind not in (None, kind):
            raise DataError(
                f"{place}: stats.json says kind {self.kind}, but the shards have the columns of {kind}; prepare the "
                "data again"
            )
        if kind == PIXELS:
            return replace(self, kind=kind)
        whitening = STABLE_DIFFUSION if self.whitening is None else self.whitening
        channels = len(whitening.mean) if self.img_channels is None else self.img_channels
        if len(whitening.mean) != channels or len(whitening.std) != channels or min(whitening.std) <= 0:
            raise DataError(
                f"{place}: the whitening has {len(whitening.mean)} means and {len(whitening.std)} standard deviations "
                f"for latents of {channels} channels, but needs one of each per channel, and standard deviations above "
                "0; note the key whitening in stats.json, for example by preparing the data again"
            )
        return replace(self, kind=kind, whitening=whitening)


def mixture(parts: Sequence[DataFacts], proportions: Sequence[float], places: Sequence[str]) -> DataFacts:
    """The facts of several data sets that are mixed: what they agree on, the sigma_data of all, and each one's own.

    sigma_data is the root of the mean variance: differences between the data sets' means do not count.

    Raises:
        DataError: pixels mixed with latents, or latents with different whitenings.
    """
    trees = [part.to_json() for part in parts]
    for key in ("kind", "whitening"):
        for tree, place in zip(trees[1:], places[1:], strict=True):
            if tree.get(key) != trees[0].get(key):
                raise DataError(
                    f"{place}: has the {key} {tree.get(key)}, but {places[0]} has {trees[0].get(key)}; only data sets "
                    "of one kind, prepared alike, can be mixed"
                )
    common = {key: value for key, value in trees[0].items() if all(tree.get(key) == value for tree in trees[1:])}
    mixed = DataFacts.from_json(common, places[0])
    shares = list(zip(parts, proportions, strict=True))
    variances = [share * part.sigma_data**2 for part, share in shares if part.sigma_data is not None]
    if len(variances) == len(parts):
        mixed = replace(mixed, sigma_data=(sum(variances) / sum(proportions)) ** 0.5)
    streams = [replace(part, proportion=share, keys=("proportion", *part.keys)) for part, share in shares]
    return replace(mixed, streams=streams)


def kind_of(columns: Sequence[str], place: str) -> str:
    """Whether shards with these columns hold pixels or latents. Raises DataError if they hold neither."""
    for kind, needed in ((PIXELS, {"image", "label"}), (LATENTS, {"mean", "std", "label"})):
        if needed <= set(columns):
            return kind
    raise DataError(
        f"{place}: has the columns {sorted(columns)}, but must have image and label (pixels), or mean, std and label "
        "(latents); prepare the data again"
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _list_of(rule: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(rule, value))


def _object_of(rule: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(rule, value.values()))


RULES: dict[object, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number", _is_whole),
    float: ("a number", _is_number),
    str: ("a string", _is_text),
    Sequence[str]: ("a list of strings", _list_of(_is_text)),
    Sequence[float]: ("a list of numbers", _list_of(_is_number)),
    Mapping[str, int]: ("an object of whole numbers", _object_of(_is_whole)),
    Mapping[str, Any]: ("an object", _object_of(lambda value: True)),
    Sequence[DataFacts]: ("a list", _list_of(lambda value: True)),
}
"""What the JSON of an entry must be, by the type that is declared for it; `_whitening` has rules of its own."""
ENTRIES = {
    name: get_args(declared)[0] for name, declared in get_type_hints(DataFacts).items() if name not in ("other", "keys")
}
"""Type of each entry that is known."""


def _checked(key: str, value: Any, place: str) -> Any:
    if key == "whitening":
        return _whitening(value, place)
    what, fits = RULES[ENTRIES[key]]
    if not fits(value):
        raise DataError(f"{place}: {key} is {value!r}, but must be {what}; prepare the data again")
    return [DataFacts.from_json(part, place) for part in value] if key == "streams" else value


def _whitening(value: Any, place: str) -> Whitening:
    try:
        return Whitening(*(tuple(float(number) for number in value[name]) for name in ("mean", "std")))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: whitening in stats.json is not a list of numbers as mean and as std ({error!r}); prepare the "
            "data again"
        ) from None


def _as_json(value: Any) -> Any:
    if isinstance(value, Whitening):
        return {"mean": list(value.mean), "std": list(value.std)}
    if isinstance(value, list) and value and isinstance(value[0], DataFacts):
        return [part.to_json() for part in value]
    return value
