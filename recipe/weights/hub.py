"""A network as a folder that others can load: `config.json`, `model.safetensors`, a loader and a model card.

`model.safetensors` is a snapshot of this recipe, with gains of shape [1]. `config.json` says all that its tensors do
not, so that `load_edm2.py` in the folder needs nothing of this recipe. For diffusers there are `model_index.json` and
what it names; `unet/` has the same weights again, as diffusers looks for them there (the Hub stores equal files once).
"""

import json
from pathlib import Path

from recipe.data.facts import LATENTS
from recipe.edm2.networks.precond import Precond
from recipe.weights.snapshots import SnapshotInfo

MODEL, CONFIG, CARD, LOADER = ("model.safetensors", "config.json", "README.md", "load_edm2.py")
UNET = "unet/diffusion_pytorch_model.safetensors"  # equal to MODEL
INDEX, UNET_CONFIG, SCHEDULER = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
CODE = {
    LOADER: "hub_loader.py",
    "unet/edm2_model.py": "hub_model.py",
    "scheduler/edm2_scheduler.py": "hub_scheduler.py",
    "pipeline_edm2.py": "hub_pipeline.py",
}
"""Files of the folder that are copies of files beside this one."""
HUB_FILES = (MODEL, UNET, CONFIG, CARD, INDEX, UNET_CONFIG, SCHEDULER, *CODE)
DIFFUSERS = "0.39.0"  # the version that the folder was tested with
AUTO_MAP = {"AutoModel": "edm2_model.EDM2Model"}
TRAINING_ALONE = ("logvar_channels", "augment_dim")  # arguments of parts that diffusers' model has not
OFFICIAL_LICENCE = "cc-by-nc-sa-4.0"  # of the published weights, and so of what is converted from them


def hub_texts(net: Precond, info: SnapshotInfo) -> dict[str, str]:
    """The files of the folder beside the tensors: name -> text."""
    found = {name: Path(__file__).with_name(own).read_text(encoding="utf-8") for name, own in CODE.items()}
    return {**found, **diffusers_texts(info), CONFIG: config_text(net, info), CARD: card_text(net, info)}


def diffusers_texts(info: SnapshotInfo) -> dict[str, str]:
    """The configuration of the pipeline and its parts."""
    facts = info.dataset
    whitening = facts.of_kind(LATENTS, "the snapshot").latent_whitening if facts.kind == LATENTS else None
    version: dict[str, object] = {"_diffusers_version": DIFFUSERS}
    unet = {"_class_name": "EDM2Model", **version, "auto_map": AUTO_MAP}
    unet |= {name: value for name, value in info.network.items() if name not in TRAINING_ALONE}
    if whitening is not None:
        unet |= {"latent_mean": list(whitening.mean), "latent_std": list(whitening.std)}
    index = {"_class_name": ["pipeline_edm2", "EDM2Pipeline"], **version, "auto_map": AUTO_MAP}
    index |= {"unet": ["edm2_model", "EDM2Model"], "scheduler": ["edm2_scheduler", "EDM2Scheduler"]}
    index |= {"vae": [None, None]}
    scheduler = {"_class_name": "EDM2Scheduler", **version, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    parts = {INDEX: index, UNET_CONFIG: unet, SCHEDULER: scheduler}
    return {name: json.dumps(part, indent=2) + "\n" for name, part in parts.items()}


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
        f"With the recipe that made it: `python recipe/sample.py {MODEL}`.\n\nBy diffusers (tested: 0.39, 0.42):\n\n"
        f"    from diffusers import AutoModel, DiffusionPipeline\n\n"
        f'    pipe = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)\n'
        f"    pipe(class_labels=[0], generator=torch.manual_seed(0)).images[0]\n"
        f'    unet = AutoModel.from_pretrained(".", subfolder="unet", trust_remote_code=True)\n'
        f"    unet(x, sigma, class_labels).sample  # denoised\n"
    )


def _count(images: int | None) -> str:
    return "" if images is None else f"{images:,} images"
