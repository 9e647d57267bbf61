"""A network as a folder that others can load: `config.json`, `model.safetensors`, a loader and a model card.

`model.safetensors` is a snapshot of this recipe, with gains of shape [1]. `config.json` says all that its tensors do
not, so that `load_edm2.py` in the folder needs nothing of this recipe.
"""

import json
from pathlib import Path

from recipe.edm2.networks.precond import Precond
from recipe.weights.snapshots import SnapshotInfo

MODEL, CONFIG, CARD, LOADER = HUB_FILES = ("model.safetensors", "config.json", "README.md", "load_edm2.py")
OFFICIAL_LICENCE = "cc-by-nc-sa-4.0"  # of the published weights, and so of what is converted from them


def hub_texts(net: Precond, info: SnapshotInfo) -> dict[str, str]:
    """The files of the folder beside the tensors: name -> text."""
    loader = Path(__file__).with_name("hub_loader.py").read_text(encoding="utf-8")
    return {CONFIG: config_text(net, info), CARD: card_text(net, info), LOADER: loader}


def config_text(net: Precond, info: SnapshotInfo) -> str:
    """The text of `config.json`: what the loader needs, then the arguments and facts that this recipe knows."""
    unet, blocks = net.unet, net.blocks()
    heads = {block.attn_proj.weight.shape[0] // block.num_heads for block in blocks if block.attn_proj is not None}
    config = {
        "img_resolution": net.img_resolution,
        "img_channels": net.img_channels,
        "label_dim": net.label_dim,
        "sigma_data": net.sigma_data,
        "label_balance": unet.label_balance,
        "concat_balance": unet.concat_balance,
        "res_balance": blocks[0].res_balance,
        "attn_balance": blocks[0].attn_balance,
        "clip_act": blocks[0].clip_act,
        "channels_per_head": heads.pop(),  # the middle of each network has attention
        "encoder": [f"unet.enc.{name}" for name in unet.enc],
        "decoder": [f"unet.dec.{name}" for name in unet.dec],
        "recipe": {"config": info.config, "network": info.network, "nimg": info.nimg, "sigma_rel": info.sigma_rel},
        "dataset": info.dataset.to_json(),
    }
    return json.dumps(config, indent=2) + "\n"


def card_text(net: Precond, info: SnapshotInfo) -> str:
    """The text of the model card."""
    facts, source = info.dataset, info.extra.get("converted_from")
    licence = "other" if source is None else OFFICIAL_LICENCE
    average = "the raw weights" if info.sigma_rel == 0 else f"an average of relative length {info.sigma_rel:g}"
    rows = {
        "network": f"EDM2, config {info.config}, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters",
        "images": f"{net.img_channels} channels of {net.img_resolution} x {net.img_resolution}",
        "kind of images": facts.kind or "not said",
        "classes": str(net.label_dim or "none"),
        "training": f"{info.nimg:,} images seen; {average}",
        "label dropout": str(info.extra.get("label_dropout", "not said")),
        "data": "; ".join(part for part in (facts.source, _count(facts.num_images)) if part) or "not said",
        "autoencoder": facts.vae or ("not said" if facts.kind == "latents" else "none"),
        "metrics": "none measured",
        "made from": source or "a run of this recipe",
    }
    terms = (
        "Converted from weights that NVIDIA published under CC BY-NC-SA 4.0, whose terms hold for this file."
        if source is not None
        else "Whoever publishes this states its licence here."
    )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"---\nlicense: {licence}\nlibrary_name: edm2-recipe\ntags: [diffusion, edm2]\n---\n\n# EDM2 denoiser\n\n"
        f"| | |\n|---|---|\n{table}\n\n{terms}\n\n## Loading\n\n"
        f"With torch and safetensors alone: `from load_edm2 import EDM2; EDM2('.')(x, sigma, labels)` denoises\n"
        f"`x` [N, {net.img_channels}, {net.img_resolution}, {net.img_resolution}] of noise levels `sigma` [N]. "
        f"With the recipe that made it: `python recipe/sample.py {MODEL}`.\n"
    )


def _count(images: int | None) -> str:
    return "" if images is None else f"{images:,} images"
