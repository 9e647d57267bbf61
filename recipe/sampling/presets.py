"""The combinations of network, guide and guidance whose quality was published, by name.

Names are those of the official sampling script, whose users know them, and for the combinations that it has no name
for, like them. Each is 32 steps of Heun's method, from sigma 80 to 0.002 with rho 7, without churn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from recipe.edm2.samplers.generate import SamplerSettings
from recipe.edm2.samplers.guidance import EVERYWHERE, Interval

Metric = Literal["FID", "FD_DINOv2"]

EDM2 = "arXiv 2312.02696"
AUTOGUIDANCE = "arXiv 2406.02507"
INTERVAL = "arXiv 2404.07724"


@dataclass(frozen=True)
class Weights:
    """A published average of a network.

    Attributes:
        network: its name, such as img512-s or img512-xs-uncond.
        mebi: images seen, in units of 2^20.
        sigma_rel: length of the average.
    """

    network: str
    mebi: int
    sigma_rel: float

    @property
    def name(self) -> str:
        """Its file's, without the ending: edm2-img512-s-2147483-0.130."""
        return f"edm2-{self.network}-{self.mebi * 2**20 // 1000:07d}-{self.sigma_rel:.3f}"


@dataclass(frozen=True)
class Preset:
    """A published result.

    Attributes:
        weights: of the network.
        guide: weights of the network that guides; None = no guidance.
        guidance: its strength; 1 = none.
        interval: where guidance is on.
        metric: what was measured.
        published: how much of it.
        source: the paper.
    """

    weights: Weights
    guide: Weights | None
    guidance: float
    metric: Metric
    published: float
    source: str
    interval: Interval = EVERYWHERE

    def settings(self) -> SamplerSettings:
        """The sampler's settings."""
        return SamplerSettings(guidance=self.guidance, interval=self.interval)


TRAINED = {
    "img512-xs": 2048, "img512-s": 2048, "img512-m": 2048, "img512-l": 1792, "img512-xl": 1280, "img512-xxl": 896,
    "img64-s": 1024, "img64-m": 2048, "img64-l": 1024, "img64-xl": 640, "img512-xs-uncond": 2048,
    "img512-s-uncond": 2048,
}  # fmt: skip
"""Images that the published networks have seen at the end, in units of 2^20."""

_EDM2 = {  # network: of FID and of FD_DINOv2, (value, sigma_rel), and guided (value, sigma_rel, guidance); Table 6
    "img512-xs": ((3.53, 0.135), (2.91, 0.045, 1.4), (103.39, 0.200), (79.94, 0.150, 1.7)),
    "img512-s": ((2.56, 0.130), (2.23, 0.025, 1.4), (68.64, 0.190), (52.32, 0.085, 1.9)),
    "img512-m": ((2.25, 0.100), (2.01, 0.030, 1.2), (58.44, 0.155), (41.98, 0.015, 2.0)),
    "img512-l": ((2.06, 0.085), (1.88, 0.015, 1.2), (52.25, 0.155), (38.20, 0.035, 1.7)),
    "img512-xl": ((1.96, 0.085), (1.85, 0.020, 1.2), (45.96, 0.155), (35.67, 0.030, 1.7)),
    "img512-xxl": ((1.91, 0.070), (1.81, 0.015, 1.2), (42.84, 0.150), (33.09, 0.015, 1.7)),
}
_EDM2_64 = {"s": (1.58, 0.075), "m": (1.43, 0.060), "l": (1.33, 0.040), "xl": (1.33, 0.040)}  # FID, unguided
_AUTOGUIDED = {  # name: network, guide, its images; of both metrics (value, guidance, sigma_rel, the guide's); Table 1
    "img512-s-autog": ("img512-s", "img512-xs", 128, (1.34, 2.10, 0.070, 0.125), (36.67, 2.45, 0.120, 0.165)),
    "img512-s-autog-same": ("img512-s", "img512-xs", 128, (1.53, 1.95, 0.050, 0.050), (40.81, 2.25, 0.115, 0.115)),
    "img512-s-autog-size": ("img512-s", "img512-xs", 2048, (2.13, 1.80, 0.120, 0.160), (59.89, 1.90, 0.140, 0.085)),
    "img512-xxl-autog": ("img512-xxl", "img512-m", 256, (1.25, 2.05, 0.075, 0.155), (24.18, 2.30, 0.130, 0.205)),
    "img512-s-uncond-autog": (
        *("img512-s-uncond", "img512-xs-uncond", 128),
        *((3.86, 2.85, 0.070, 0.110), (90.39, 2.90, 0.090, 0.125)),
    ),
    "img64-s-autog": ("img64-s", "img64-xs", 128, (1.01, 1.70, 0.045, 0.110), (31.85, 2.20, 0.105, 0.175)),
}
_IN_INTERVALS = {  # network: of both metrics (value, guidance, lo, hi, sigma_rel); Table 1
    "img512-s": ((1.68, 2.1, 0.28, 2.90, 0.025), (46.25, 3.2, 0.60, 5.00, 0.085)),
    "img512-xxl": ((1.40, 2.0, 0.19, 1.61, 0.015), (29.16, 2.9, 0.60, 5.00, 0.015)),
}
_METRICS: tuple[tuple[str, Metric], ...] = (("fid", "FID"), ("dino", "FD_DINOv2"))


def _whole(network: str, sigma_rel: float) -> Weights:
    return Weights(network, TRAINED[network], sigma_rel)


def _presets() -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    for network, (fid, fid_guided, dino, dino_guided) in _EDM2.items():
        for (short, metric), (value, length) in zip(_METRICS, (fid, dino), strict=True):
            found[f"edm2-{network}-{short}"] = Preset(_whole(network, length), None, 1.0, metric, value, EDM2)
        for (short, metric), (value, length, guidance) in zip(_METRICS, (fid_guided, dino_guided), strict=True):
            both = _whole(network, length), _whole("img512-xs-uncond", length)
            found[f"edm2-{network}-guid-{short}"] = Preset(*both, guidance, metric, value, EDM2)
    for size, (value, length) in _EDM2_64.items():
        found[f"edm2-img64-{size}-fid"] = Preset(_whole(f"img64-{size}", length), None, 1.0, "FID", value, EDM2)
    for name, (network, guide, images, *values) in _AUTOGUIDED.items():
        for (short, metric), (value, guidance, length, guide_length) in zip(_METRICS, values, strict=True):
            both = _whole(network, length), Weights(guide, images, guide_length)
            found[f"edm2-{name}-{short}"] = Preset(*both, guidance, metric, value, AUTOGUIDANCE)
    for network, values in _IN_INTERVALS.items():
        for (short, metric), (value, guidance, lo, hi, length) in zip(_METRICS, values, strict=True):
            both = _whole(network, length), _whole("img512-xs-uncond", length)
            preset = Preset(*both, guidance, metric, value, INTERVAL, Interval(lo, hi))
            found[f"edm2-{network}-guid-interval-{short}"] = preset
    return found


PRESETS: Mapping[str, Preset] = _presets()


def preset_table() -> str:
    """All presets, one a line."""
    rows = [("preset", "network", "guide", "guidance", "interval", "published", "source")]
    for name, preset in PRESETS.items():
        guide, guidance = ("none", "") if preset.guide is None else (preset.guide.name, f"{preset.guidance:g}")
        interval = "" if preset.interval == EVERYWHERE else f"{preset.interval.lo:g}:{preset.interval.hi:g}"
        result = f"{preset.metric} {preset.published:g}"
        rows.append((name, preset.weights.name, guide, guidance, interval, result, preset.source))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
