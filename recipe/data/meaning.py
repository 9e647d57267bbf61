"""What the numbers of two data sets mean: which classes their labels stand for, and how their latents were made."""

from collections.abc import Iterator, Sequence

from recipe.data.facts import DataFacts

ENCODER = ("kind", "vae", "vae_sha256", "whitening")
SHOWN = 3  # classes named in one message


def differences(before: DataFacts, now: DataFacts, labels: bool) -> list[str]:
    """In which ways the samples of two data sets mean other things, in words; what one does not say cannot differ.

    Args:
        labels: whether classes count: not for a network without them.
    """
    found = list(_encoders(before, now))
    if labels:
        found += _classes(before.class_names, now.class_names)
    return found


def _encoders(before: DataFacts, now: DataFacts) -> Iterator[str]:
    digests = before.vae_sha256, now.vae_sha256
    for key in ENCODER:
        old, new = getattr(before, key), getattr(now, key)
        if key == "vae" and None not in digests:
            continue  # the digest of the weights says more than their name
        if key == "vae_sha256" and old != new and None not in (old, new):
            yield f"the autoencoder was {before.vae} ({old[:8]}) and is {now.vae} ({new[:8]})"
        elif None not in (old, new) and old != new:
            yield f"the {key} was {old} and is {new}"


def _classes(before: Sequence[str] | None, now: Sequence[str] | None) -> Iterator[str]:
    if before is None or now is None or list(before) == list(now):
        return
    pairs = [(i, old, new) for i, (old, new) in enumerate(zip(before, now, strict=False)) if old != new]
    for number, old, new in pairs[:SHOWN]:
        yield f'class {number} was "{old}" and is "{new}"'
    if len(pairs) > SHOWN:
        yield f"and {len(pairs) - SHOWN} more classes"
    if len(before) != len(now):
        yield f"there were {len(before)} classes and are {len(now)}"
