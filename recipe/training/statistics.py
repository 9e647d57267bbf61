"""What is known of the data beside its samples: the notes of `prepare.py`, against the configuration and each other."""

import logging
from collections.abc import Sequence
from typing import Any

from recipe.config import Config
from recipe.edm2.latents import STABLE_DIFFUSION, Whitening

log = logging.getLogger(__name__)

PIXELS, LATENTS = "pixels", "latents"
SHAPE = ("img_resolution", "img_channels", "label_dim")
SIGMA_DATA_FACTOR = 1.5  # sigma_data may differ so much from the data's without a word


class DataError(ValueError):
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


def check_statistics(statistics: dict[str, Any], config: Any, place: str) -> None:
    """Compare the note of the data at `place` with the configuration. Raises DataError that names differing keys."""
    differing = [
        f"model.{key} is {getattr(config.model, key)}, but the data has {statistics[key]}"
        for key in SHAPE
        if key in statistics
        and getattr(config.model, key) != statistics[key]
        # an unconditional network may be trained on labelled images
        and not (key == "label_dim" and config.model.label_dim == 0)
    ]
    if differing:
        raise DataError(f"{place}: " + "; ".join(differing) + "; change these keys or the data")


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


def check_kind(config: Any, statistics: dict[str, Any], place: str) -> None:
    """Raises DataError if the configuration asks for something that latents cannot have."""
    if statistics["kind"] != LATENTS:
        if config.samples.vae is not None:
            raise DataError(f"samples.vae = {config.samples.vae}: {place} holds pixels; set samples.vae=null")
        return
    without_vae = config.samples.interval is not None and config.samples.vae is None
    reasons = {
        "data.x_flip = true": (config.data.x_flip, "the mirror image of a latent is not a latent", "data.x_flip=false"),
        "augment": (config.augment is not None, "latents cannot be augmented like pixels", "augment=null"),
        "samples.interval": (without_vae, "samples.vae names no autoencoder to decode them", "samples.interval=null"),
    }
    for key, (given, reason, fix) in reasons.items():
        if given:
            raise DataError(f"{key}: {place} holds latents, and {reason}; set {fix}")
    channels = len(statistics["whitening"]["mean"])
    if channels != config.model.img_channels:
        raise DataError(
            f"model.img_channels = {config.model.img_channels}: {place} has a whitening of {channels} channels; change "
            "the key, or the key whitening in stats.json"
        )


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


def resolve(config: Config, statistics: dict[str, Any]) -> Config:
    """The configuration with the data's sigma_data for `auto`. Raises DataError if the data has no note of it."""
    if config.model.sigma_data != "auto":
        return config
    if "sigma_data" not in statistics:
        raise DataError(
            "model.sigma_data = auto: the data has no stats.json that says sigma_data; set a number, for example 0.5, "
            "or prepare the data again"
        )
    return config.model_copy(
        update={"model": config.model.model_copy(update={"sigma_data": float(statistics["sigma_data"])})}
    )


def warn_of_sigma_data(config: Any, statistics: dict[str, Any]) -> None:
    """Log a warning if model.sigma_data is far from the data's. The paper too uses 0.5 for all data: it is no error."""
    noted, used = statistics.get("sigma_data"), config.model.sigma_data
    if noted is None or used == "auto" or 1 / SIGMA_DATA_FACTOR <= used / noted <= SIGMA_DATA_FACTOR:
        return
    log.warning(
        "model.sigma_data is %g, but the data has a standard deviation of %.4g: the noise levels and weights of the "
        "loss will not fit it; consider model.sigma_data=auto",
        used,
        noted,
    )
