"""What is known of the data beside its samples: the notes of `prepare.py`, against the configuration and each other."""

import logging
from pathlib import Path
from typing import Any

from recipe.configuration.schema import Config
from recipe.data.facts import LATENTS, DataError, combine, kind_of, with_kind
from recipe.data.index import check_shards, read_index, read_labels, read_remote, read_statistics, sources

log = logging.getLogger(__name__)
SHAPE = ("img_resolution", "img_channels", "label_dim")
SIGMA_DATA_FACTOR = 1.5  # sigma_data may differ so much from the data's without a word


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


def check_data(config: Any) -> tuple[int, dict[str, Any]]:
    """Everything that can be known about the data before streaming it: (number of samples, statistics).

    The statistics are those of stats.json, with `kind` ("pixels" or "latents") and, of latents, `whitening`; of several
    streams as `combine` says.

    Raises:
        DataError: as the functions above and in `statistics`, or less data than one batch.
    """
    found, samples, places = [], 0, sources(config.data)
    for source in places:
        if source.remote is not None:
            shards, statistics = read_remote(source)
        else:
            check_shards(source.local, f"{source.key}.local")
            shards, statistics = read_index(Path(source.local)), read_statistics(source.local)
        check_statistics(statistics, config, str(source))
        statistics = with_kind(statistics, kind_of(shards, str(source)), str(source))
        check_kind(config, statistics, str(source))
        found.append(statistics)
        samples += sum(shard["samples"] for shard in shards)
    if samples < config.global_batch_size:
        raise DataError(
            f"{places[0]}: {samples} images are fewer than global_batch_size {config.global_batch_size}; use a smaller "
            "batch or more data"
        )
    if config.data.class_balanced:
        read_labels(places[0])
    statistics = found[0]
    if config.data.streams is not None:
        statistics = combine(found, [source.proportion for source in places], [str(source) for source in places])
    warn_of_sigma_data(config, statistics)
    return samples, statistics
