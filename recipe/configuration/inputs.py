"""The part of the schema about what a run reads: its data sets, the order of the examples, augmentation."""

from typing import Literal

from recipe.configuration.keys import FREE, NAMED, Section, key
from recipe.configuration.values import Address, DiskSpace, LocalPath, Probability


class Stream(Section):
    """One of several data sets that are mixed."""

    local: LocalPath = key(..., FREE, "folder of its shards, or of their cache if remote is set", "data/digits")
    remote: Address | None = key(
        None, FREE, "folder of its shards in object storage; null = local has them", "s3://bucket/shards"
    )
    proportion: float = key(..., NAMED, "its share of the examples, relative to the others' proportions", 1.0, gt=0)


class Data(Section):
    """Where the examples come from, and in which order."""

    local: LocalPath | None = key(
        None, FREE, "folder of the shards, or of their cache if data.remote is set", "data/digits"
    )
    remote: Address | None = key(
        None, FREE, "folder of the shards in object storage; null = data.local has them", "s3://bucket/shards"
    )
    streams: list[Stream] | None = key(
        None,
        NAMED,
        "data sets to mix, instead of data.local and data.remote",
        [{"local": "data/digits", "proportion": 1.0}],
        min_length=1,
    )
    kind: Literal["pixels", "latents"] | None = key(
        None, FREE, "what the data must be, for settings that suit only one of them; null = either", "latents"
    )
    shuffle: bool = key(True, NAMED, "shuffle each epoch anew")
    class_balanced: bool = key(False, NAMED, "draw each class equally often, whatever its number of images")
    x_flip: bool = key(False, NAMED, "mirror half of the images, so that samples are mirrored too; not for latents")
    num_canonical_nodes: int = key(
        64, NAMED, "fixes the order of the examples; keep it when the number of nodes changes", ge=1
    )
    num_workers: int = key(2, FREE, "decoding processes per rank; 0 = decode in the training process", ge=0)
    cache_limit: DiskSpace | None = key(None, FREE, "disk space for the cache on each node; null = no limit", "200gb")


class Augment(Section):
    """Non-leaking augmentation (Karras et al. 2022, Appendix F.2).

    Each transform is applied with probability p times its multiplier, or always if that is above 1.
    """

    p: Probability = key(
        0.12,
        NAMED,
        "probability of each transform, times its multiplier; EDM: 0.12 for CIFAR-10, 0.15 for FFHQ",
    )
    x_flip: float = key(1e8, NAMED, "multiplier of mirroring half of the images left-right; 1e8 = always", ge=0)
    y_flip: float = key(1.0, NAMED, "multiplier of mirroring half of the images upside down", ge=0)
    scale: float = key(1.0, NAMED, "multiplier of scaling, by 2^(0.2 z), z ~ N(0, 1)", ge=0)
    rotation: float = key(1.0, NAMED, "multiplier of rotation by any angle", ge=0)
    anisotropy: float = key(1.0, NAMED, "multiplier of stretching in one direction, by 2^(0.2 z)", ge=0)
    translation: float = key(1.0, NAMED, "multiplier of translation, by z/8 of the image's width and height", ge=0)
