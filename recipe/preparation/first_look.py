"""What follows from the first look at a source: size, colours, and with them the job."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from recipe.command_line import say
from recipe.preparation.chunks import Job
from recipe.preparation.decoding import read_item, upright
from recipe.preparation.encoders import Encoder, PixelEncoder
from recipe.preparation.options import NO_GREY_WEBP, SMALLEST_RESOLUTION, Settings
from recipe.preparation.pictures import PictureFormat, is_grey
from recipe.preparation.sources.digits import DigitsSource
from recipe.preparation.sources.items import ItemError, PreparationError, Raw, Source, shown, spread

FORMAT = 1  # of what is written; a change makes unfinished and finished work different
LOOKS = 64  # pictures that decide what is not given
Parts = tuple[Callable[[Raw], NDArray[Any]], Encoder, dict[str, Any]]
"""How items are read, how they are stored, and the settings that say so."""
VAE_BATCH = 8  # pictures; 512x512 in float32 then take some 5 GB of a GPU


def job_of(settings: Settings, source: Source) -> Job:
    """What is to be done with a source, which is looked at for what the settings leave open.

    Raises:
        PreparationError: no picture of it can be read, or the first is not square and there is no resolution.
    """
    form, encoder, made_with = (_of_latents if source.holds_latents else _of_pictures)(settings, source)
    shard_size, hashes = settings.shard_bytes(), tuple(sorted(set(settings.hashes)))
    made_with = {
        "format": FORMAT,
        "kind": encoder.kind,
        **encoder.settings(),
        **made_with,
        "shard_size": shard_size,
        "compression": settings.compression,
        "hashes": list(hashes),
    }
    return Job(source, form, encoder, made_with, shard_size, settings.compression, hashes, settings.skip_errors)


def _of_latents(settings: Settings, source: Source) -> Parts:
    from recipe.preparation.latent_arrays import FACTOR, VAE, ArrayEncoder, latent_format  # torch takes seconds

    form = latent_format(settings, source)
    size = form.size
    assert size is not None, "it is that of the first array"
    say(
        f"{source.items[0].name} and the others are latents of {size}x{size}, which the official tool encodes from "
        f"{size * FACTOR}x{size * FACTOR} pixels by {VAE}; they are stored as they are"
    )
    return form, ArrayEncoder(size, settings.latent_dtype or "float32", settings.whitening), {"resolution": size}


def _of_pictures(settings: Settings, source: Source) -> Parts:
    for option in ("latent_dtype", "whitening"):
        value = getattr(settings, option)
        if value is not None and settings.vae is None:
            raise PreparationError(
                f"--{option.replace('_', '-')} {value}: is only for latents; name their autoencoder with --vae"
            )
    form = _picture_format(settings, source)
    if settings.encoding == "webp" and form.channels == 1:
        raise PreparationError(NO_GREY_WEBP)
    made_with = {
        "resolution": form.resolution,
        "crop": form.crop if form.resize else None,
        "channels": form.channels,
        "to_grey": form.to_grey,
        "background": list(form.background),
    }
    return form, _encoder(settings, form), made_with


def _encoder(settings: Settings, form: PictureFormat) -> Encoder:
    if settings.vae is None:
        return PixelEncoder(settings.encoding or "png", form.channels, form.resolution)
    from recipe.data.autoencoder import find_vae
    from recipe.preparation.moments import MomentEncoder  # torch takes seconds to import

    return MomentEncoder(
        find_vae(settings.vae),
        form.resolution,
        settings.vae_batch or VAE_BATCH,
        settings.latent_dtype or "float32",
        settings.whitening,
        settings.vae_dtype or "float32",
    )


def _picture_format(settings: Settings, source: Source) -> PictureFormat:
    resolution, resize = settings.resolution, settings.resolution is not None
    channels = settings.channels if settings.vae is None else 3
    if isinstance(source, DigitsSource):
        resolution, resize = source.images.shape[-1], True
        channels = channels or 1
    if resolution is None or channels is None:
        size, grey = first_look(source)
        if resolution is None and (size[0] != size[1] or size[0] < SMALLEST_RESOLUTION):
            raise PreparationError(
                f"the first picture has {size[0]}x{size[1]} pixels; give --resolution, or pictures that are square "
                f"and have {SMALLEST_RESOLUTION} pixels or more"
            )
        resolution = resolution or size[0]
        channels = channels or (1 if grey else 3)
    return PictureFormat(
        resolution,
        settings.crop or "center-crop",
        resize,
        channels,
        channels == 3 or settings.channels is not None,
        settings.background_colour(),
    )


def first_look(source: Source) -> tuple[tuple[int, int], bool]:
    """(width, height) of the first picture that can be read, and whether LOOKS pictures over the source are all grey.

    Their pixels are decoded: a damaged file must not decide which size the others have to have.

    Raises:
        PreparationError: none can be read.
    """
    size: tuple[int, int] | None = None
    grey = True
    reason = ""
    for index in spread(len(source.items), LOOKS):
        try:
            picture = upright(read_item(source, index))
        except ItemError as error:
            reason = reason or f"{shown(source.items[index].name)} {error}"
            continue
        size = size or picture.size
        grey = grey and is_grey(picture)
    if size is None:
        raise PreparationError(f"no picture can be read: {reason}, and so on; name a folder or archive of images")
    return size, grey
