"""What is known of a data set beside its samples: the facts that stats.json holds."""

from collections.abc import Sequence
from typing import Any

from recipe.command_line import UserError
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening

PIXELS, LATENTS = "pixels", "latents"


class DataError(UserError):
    """Shards that are missing, damaged or at odds with the configuration; the message names the file or key."""

    def __str__(self) -> str:
        # A loader's worker process hands its errors over with its traceback around the message.
        return super().__str__().strip().rsplit("DataError: ", 1)[-1]


def kind_of(shards: Sequence[dict[str, Any]], place: str) -> str:
    """Whether shards hold pixels or latents, told by their columns. Raises DataError if they hold neither."""
    columns = set(shards[0].get("column_names", []))
    for kind, needed in ((PIXELS, {"image", "label"}), (LATENTS, {"mean", "std", "label"})):
        if needed <= columns:
            return kind
    raise DataError(
        f"{place}: has the columns {sorted(columns)}, but must have image and label (pixels), or mean, std and label "
        "(latents); prepare the data again"
    )


def with_kind(statistics: dict[str, Any], kind: str, place: str) -> dict[str, Any]:
    """The note of the data with its kind, and the whitening of latents: the note's, or that of Stable Diffusion's VAE.

    Raises:
        DataError: a note at odds with the shards' columns, or latents of other channels without a usable whitening.
    """
    noted = statistics.get("kind", kind)
    if noted != kind:
        raise DataError(
            f"{place}: stats.json says kind {noted}, but the shards have the columns of {kind}; prepare the data again"
        )
    if kind == PIXELS:
        return statistics | {"kind": kind}
    whitening = statistics.get("whitening", {"mean": STABLE_DIFFUSION.mean, "std": STABLE_DIFFUSION.std})
    try:
        mean, std = ([float(value) for value in whitening[name]] for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: whitening in stats.json is not a list of numbers as mean and as std ({error!r}); prepare the "
            "data again"
        ) from None
    channels = statistics.get("img_channels", len(mean))
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise DataError(
            f"{place}: the whitening has {len(mean)} means and {len(std)} standard deviations for latents of "
            f"{channels} channels, but needs one of each per channel, and standard deviations above 0; note the key "
            "whitening in stats.json, for example by preparing the data again"
        )
    return statistics | {"kind": kind, "whitening": {"mean": mean, "std": std}}


def combine(
    statistics: Sequence[dict[str, Any]], proportions: Sequence[float], places: Sequence[str]
) -> dict[str, Any]:
    """The note of a mixture of data sets: what they agree on, the sigma_data of the mixture, and each one's own note.

    sigma_data is the root of the mean variance: differences between the data sets' means do not count.

    Raises:
        DataError: pixels mixed with latents, or latents with different whitenings.
    """
    for key in ("kind", "whitening"):
        for note, place in zip(statistics[1:], places[1:], strict=True):
            if note.get(key) != statistics[0].get(key):
                raise DataError(
                    f"{place}: has the {key} {note.get(key)}, but {places[0]} has {statistics[0].get(key)}; only data "
                    "sets of one kind, prepared alike, can be mixed"
                )
    common = {
        key: value for key, value in statistics[0].items() if all(note.get(key) == value for note in statistics[1:])
    }
    if all("sigma_data" in note for note in statistics):
        total = sum(share * note["sigma_data"] ** 2 for note, share in zip(statistics, proportions, strict=True))
        common["sigma_data"] = (total / sum(proportions)) ** 0.5
    mixed = [{"proportion": share} | note for note, share in zip(statistics, proportions, strict=True)]
    return common | {"streams": mixed}


def whitening_of(statistics: dict[str, Any]) -> Whitening | None:
    """The whitening of latents; None for pixels."""
    return Whitening(**statistics["whitening"]) if statistics.get("kind") == LATENTS else None
