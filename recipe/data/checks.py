"""The data of a run before it is streamed: read once, and checked against the configuration and each other."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recipe.command_line import launcher_number
from recipe.configuration.inputs import Data
from recipe.configuration.problems import ConfigError
from recipe.configuration.rules import broken_rules
from recipe.configuration.schema import Config, Model
from recipe.data.caches import RemoteData, check_limit
from recipe.data.facts import LATENTS, DataError, DataFacts, kind_of, mixture
from recipe.data.index import OpenedSource, open_source, sources
from recipe.data.labels import read_labels
from recipe.data.meaning import differences

log = logging.getLogger(__name__)
SHAPE = ("img_resolution", "img_channels", "label_dim")
SIGMA_DATA_FACTOR = 1.5  # sigma_data may differ so much from the data's without a word


@dataclass(frozen=True)
class TrainingData:
    """What is known of a run's data before they are streamed.

    Attributes:
        samples: in all data sets that are mixed, or the one there is.
        facts: of all of them together, with `kind` and, of latents, `whitening`.
        labels: class of each sample [N] if each class is drawn equally often; None = samples are drawn as they come.
        remote: the data sets that are fetched.
        identities: of each data set, what tells it from others.
    """

    samples: int
    facts: DataFacts
    labels: NDArray[np.int64] | None = None
    remote: Sequence[RemoteData] = ()
    identities: Sequence[str] = ()


def check_data(config: Config) -> TrainingData:
    """Read what can be known about the data before streaming them, and compare it with the configuration.

    Raises:
        DataError: data that are missing, damaged, fewer than a batch, or at odds with the configuration.
    """
    check_folders(config.data)
    opened = [open_source(source) for source in sources(config.data)]
    limit = config.data.cache_limit
    if limit is not None:
        check_limit(limit, opened, readers_of_machine(config.data))
    remote = [RemoteData.of(each, limit is not None) for each in opened if each.source.remote is not None]
    for each in remote:
        each.check()
    found = [check_facts(each, config) for each in opened]
    samples = sum(each.samples for each in opened)
    if samples < config.global_batch_size:
        raise DataError(
            f"{opened[0].source}: {samples} images are fewer than global_batch_size {config.global_batch_size}; use a "
            "smaller batch or more data"
        )
    labels = read_labels(opened[0]) if config.data.class_balanced else None
    facts, places = found[0], [each.source for each in opened]
    check_meanings(found, opened, config.model.label_dim != 0)
    if config.data.streams is not None:
        facts = mixture(found, [place.proportion for place in places], [str(place) for place in places])
    warn_of_sigma_data(config.model.sigma_data, facts)
    if has_nothing_to_drop(config, facts):
        log.warning("the data has no classes that loss.label_dropout could drop; it is set to 0")
    return TrainingData(samples, facts, labels, remote, [each.identity for each in opened])


def check_meanings(facts: Sequence[DataFacts], opened: Sequence[OpenedSource], labels: bool) -> None:
    """Raises DataError if data sets that are mixed have other classes under one id, or latents of other encoders."""
    for found, each in zip(facts[1:], opened[1:], strict=True):
        how = differences(facts[0], found, labels)
        if how:
            raise DataError(
                f"{each.source}: means other things than {opened[0].source}: {'; '.join(how)}; only data sets of one "
                "kind, prepared alike, can be mixed: prepare them with the same classes and encoder"
            )
        if labels and (facts[0].class_names is None) != (found.class_names is None):
            silent, other = (opened[0], each) if facts[0].class_names is None else (each, opened[0])
            log.warning(
                "%s does not say the names of its classes; they are taken for those of %s", silent.source, other.source
            )


def check_folders(data: Data) -> None:
    """Raises DataError if two data sets are to lie in one folder of this machine, whatever it is called."""
    seen: dict[str, str] = {}
    for source in sources(data):
        folder = os.path.realpath(source.local)
        if folder in seen:
            raise DataError(
                f"{source.key}.local {source.local}: is the same folder as {seen[folder]}; give each stream a folder "
                "of its own"
            )
        seen[folder] = f"{source.key}.local {source.local}"


def readers_of_machine(data: Data) -> int:
    """Processes of one machine that read shards: the loader's workers of its ranks, or the ranks themselves."""
    return (launcher_number("LOCAL_WORLD_SIZE", 1) or 1) * max(1, data.num_workers)


def check_facts(opened: OpenedSource, config: Config) -> DataFacts:
    """The facts of a data set, with its kind, if they agree with its shards and the configuration. Raises DataError."""
    place = str(opened.source)
    check_shape(opened.facts, config.model, place)
    facts = opened.facts.of_kind(kind_of(opened.shards[0].get("column_names", []), place), place)
    check_kind(facts, config, place)
    return facts


def check_shape(facts: DataFacts, model: Model, place: str) -> None:
    """Raises DataError that names the keys of `model` which differ from the facts of the data at `place`."""
    differing = [
        f"model.{key} is {getattr(model, key)}, but the data has {getattr(facts, key)}"
        for key in SHAPE
        if getattr(model, key) != "auto"
        and getattr(facts, key) not in (None, getattr(model, key))
        # an unconditional network may be trained on labelled images
        and not (key == "label_dim" and model.label_dim == 0)
    ]
    if differing:
        raise DataError(f"{place}: " + "; ".join(differing) + "; change these keys or the data")


def check_kind(facts: DataFacts, config: Config, place: str) -> None:
    """Raises DataError if the configuration asks for another kind, or for something that this kind cannot have."""
    wanted = config.data.kind
    if wanted not in (None, facts.kind):
        how = "by prepare.py --vae" if wanted == LATENTS else "by prepare.py without --vae"
        raise DataError(
            f"data.kind = {wanted}: {place} holds {facts.kind}, and these settings are for {wanted}; prepare the data "
            f"as {wanted} {how}, or take a preset for {facts.kind}"
        )
    if facts.kind != LATENTS:
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
    assert facts.whitening is not None  # `of_kind` gives latents one
    channels = len(facts.whitening.mean)
    if config.model.img_channels not in ("auto", channels):
        raise DataError(
            f"model.img_channels = {config.model.img_channels}: {place} has a whitening of {channels} channels; change "
            "the key, or the key whitening in stats.json"
        )


def resolve(config: Config, facts: DataFacts) -> Config:
    """The configuration with the data's own for each `auto` of the network, and with resolutions for its levels.

    Raises:
        DataError: the facts do not say what `auto` asks for.
        ConfigError: the rules between keys that could not be asked before are broken.
    """
    model = config.model
    wanted = [key for key in (*SHAPE, "sigma_data") if getattr(model, key) == "auto"]
    for key in wanted:
        if getattr(facts, key) is None:
            raise DataError(
                f"model.{key} = auto: the data has no stats.json that says {key}, or its streams differ in it; set a "
                "number, or prepare the data again"
            )
    model = model.model_copy(update={key: getattr(facts, key) for key in wanted})
    resolution, *_ = model.shape()
    model = model.model_copy(update={"attn_resolutions": model.attention(resolution)})
    resolved = config.model_copy(update={"model": model})
    if has_nothing_to_drop(config, facts):
        resolved = resolved.model_copy(update={"loss": config.loss.model_copy(update={"label_dropout": 0.0})})
    if resolved == config:
        return config
    problems = list(broken_rules(resolved))
    if problems:
        raise ConfigError(problems)
    return resolved


def has_nothing_to_drop(config: Config, facts: DataFacts) -> bool:
    """Whether labels are to be dropped, and the data, whose number of classes is taken, has none."""
    return config.model.label_dim == "auto" and facts.label_dim == 0 and config.loss.label_dropout > 0


def warn_of_sigma_data(sigma_data: float | Literal["auto"], facts: DataFacts) -> None:
    """Log a warning if model.sigma_data is far from the data's. The paper too uses 0.5 for all data: it is no error."""
    if facts.sigma_data is None or sigma_data == "auto":
        return
    if 1 / SIGMA_DATA_FACTOR <= sigma_data / facts.sigma_data <= SIGMA_DATA_FACTOR:
        return
    log.warning(
        "model.sigma_data is %g, but the data has a standard deviation of %.4g: the noise levels and weights of the "
        "loss will not fit it; consider model.sigma_data=auto",
        sigma_data,
        facts.sigma_data,
    )
