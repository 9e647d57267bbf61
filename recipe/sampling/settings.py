"""What decides the bits of an image beside its seed and label, so that what lies in a place can be told apart."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from recipe.edm2.samplers.generate import SamplerSettings
from recipe.sampling.distributed import Wanted, rows_of
from recipe.sampling.networks import Sampled

DrawnBy = Mapping[str, str]
"""Settings by name, as text."""


def drawn_by(sampled: Sampled, guide: Sampled | None, settings: SamplerSettings, vae_sha256: str | None) -> DrawnBy:
    """All that an image depends on beside its seed and label.

    Args:
        sampled, guide: the networks.
        settings: of the sampler.
        vae_sha256: digest of the decoder's weights; None = none.
    """
    device = sampled.net.unet.out_gain.device
    found = {"snapshot": sampled.identity, "guide": None if guide is None else guide.identity, "vae": vae_sha256}
    found |= dataclasses.asdict(settings)
    found |= {"dtype": str(sampled.net.dtype).removeprefix("torch."), "device": device.type, "rows": rows_of(device)}
    return {name: "none" if value is None else str(value) for name, value in found.items()}


def digest(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_digest(settings: DrawnBy) -> str:
    """Names the settings in each picture."""
    return digest(json.dumps(settings, sort_keys=True))


def pictures_digest(wanted: Sequence[Wanted]) -> str:
    """Names the seeds and labels of an archive, in order."""
    return digest("\n".join(f"{each.seed} {each.label}" for each in wanted))


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What differs, in words: `num_steps is 32 there and 16 here`."""
    names = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    shown = [f"{name} is {there.get(name, 'not known')} there and {here.get(name, 'not known')} here" for name in names]
    return ", ".join(shown)
