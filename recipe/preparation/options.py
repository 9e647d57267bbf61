"""The options of a preparation, checked."""

from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor

from recipe.notation import why_not
from recipe.preparation.encoders import ENCODINGS
from recipe.preparation.pictures import CROPS
from recipe.preparation.sources.items import PreparationError

SMALLEST_RESOLUTION = 8
FLOATS = ("float32", "float16")
CHOICES: dict[str, tuple[object, ...]] = {  # fields of Settings; each may also be None
    "crop": CROPS,
    "channels": (1, 3),
    "encoding": tuple(ENCODINGS),
    "vae_dtype": FLOATS,
    "latent_dtype": FLOATS,
    "whitening": ("constants", "measured"),
}
ONLY_WITH_VAE = ("vae_batch", "vae_dtype")
NO_GREY_WEBP = "--encoding webp: knows no grey pictures; use png or raw, or --channels 3"
UNSTABLE = "gz"  # its files carry the time of writing


@dataclass(frozen=True)
class Settings:
    """The options of prepare.py; see its --help.

    Attributes:
        resolution: None = that of the first picture, which all others must have.
        crop: None = center-crop.
        channels: None = 1 if the first pictures are grey, 3 otherwise.
        background: a colour of Pillow's, such as white or #ff8000.
        encoding: None = png for pixels; of latents there is none.
        shard_size: bytes, or text such as 64mb.
        vae: folder or hub's name of an autoencoder, to store the moments of latents; None = pixels.
        vae_batch: pictures that are encoded together.
        vae_dtype: precision of the autoencoder.
        latent_dtype: precision of the stored moments.
        whitening: None = the paper's constants if they fit the autoencoder.
    """

    resolution: int | None = None
    crop: str | None = None
    channels: int | None = None
    background: str = "white"
    encoding: str | None = None
    shard_size: int | str = "64mb"
    compression: str | None = None
    hashes: tuple[str, ...] = ("sha1",)
    labels: Path | None = None
    split: str | None = None
    skip_errors: bool = False
    vae: str | None = None
    vae_batch: int | None = None
    vae_dtype: str | None = None
    latent_dtype: str | None = None
    whitening: str | None = None

    def __post_init__(self) -> None:
        from streaming.base.compression import get_compressions, is_compression
        from streaming.base.hashing import get_hashes, is_hash

        problems = []
        if self.resolution is not None and self.resolution < SMALLEST_RESOLUTION:
            problems.append(f"--resolution {self.resolution}: must be at least {SMALLEST_RESOLUTION}")
        if self.resolution is None and self.crop is not None:
            problems.append(f"--crop {self.crop}: needs --resolution, the size that pictures get")
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if value is not None and value not in allowed:
                option = field.replace("_", "-")
                problems.append(f"--{option} {value}: must be one of {', '.join(map(str, allowed))}")
        problems += self._problems_of_latents()
        if self.encoding == "webp" and self.channels == 1:
            problems.append(NO_GREY_WEBP)
        if self.compression is not None and not is_compression(self.compression):
            known = ", ".join(sorted(name for name in get_compressions() if ":" not in name and name != UNSTABLE))
            problems.append(f"--compression {self.compression}: must be one of {known}, perhaps with :LEVEL")
        elif (self.compression or "").split(":")[0] == UNSTABLE:
            problems.append(f"--compression {self.compression}: writes the time into each shard; use zstd")
        unknown = [name for name in self.hashes if not is_hash(name)]
        if unknown:
            problems.append(f"--hashes {','.join(unknown)}: must be among {', '.join(sorted(get_hashes()))}")
        for check in (self.background_colour, self.shard_bytes):
            try:
                check()
            except PreparationError as error:
                problems.append(str(error))
        if problems:
            raise PreparationError("; ".join(problems))

    def _problems_of_latents(self) -> list[str]:
        if self.vae is None:
            values = {field: getattr(self, field) for field in ONLY_WITH_VAE}
            return [
                f"--{field.replace('_', '-')} {value}: is only for latents; name their autoencoder with --vae"
                for field, value in values.items()
                if value is not None
            ]
        problems = []
        if self.vae_batch is not None and self.vae_batch < 1:
            problems.append(f"--vae-batch {self.vae_batch}: must be at least 1")
        if self.encoding is not None:
            problems.append(f"--encoding {self.encoding}: is for pixels; leave it out with --vae")
        if self.channels == 1:
            problems.append("--channels 1: an autoencoder takes RGB; leave it out with --vae")
        return problems

    def background_colour(self) -> tuple[int, int, int]:
        """(R, G, B), 0-255. Raises PreparationError."""
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError:
            raise PreparationError(f"--background {self.background}: is no colour; use a name or #rrggbb") from None
        return red, green, blue

    def shard_bytes(self) -> int:
        """Largest size of a shard. Raises PreparationError."""
        from streaming.base.util import bytes_to_int

        try:
            size = 0 if why_not(str(self.shard_size)) else bytes_to_int(self.shard_size)
        except ValueError:
            size = 0
        if not 1 << 10 <= size < 1 << 32:
            raise PreparationError(f"--shard-size {self.shard_size}: must be from 1kb to below 4gb, for example 64mb")
        return size
