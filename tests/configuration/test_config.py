"""What the configuration reader accepts, how files and arguments merge, and what it says of every kind of mistake."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.configuration.keys import all_keys, find
from recipe.configuration.problems import ConfigError, Problem
from recipe.configuration.reader import read_config, read_or_exit, to_yaml
from recipe.configuration.rules import broken_rules_of_world
from recipe.configuration.schema import Config

ROOT = Path(__file__).parents[2]
PRESETS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("yamls/*.yaml"))
EDM2 = "yamls/edm2.yaml"
LEAST = "run_name: x\ndata:\n  local: d\n"  # the keys that have no default
SPAN = "must be a number of images such as 200000, 200k, 8Mi or 2Gi, or a Composer time string in sp, ba or ep"
UNKNOWN = "is not a key of the configuration"
BLANK = "must not be blank"


@pytest.fixture(autouse=True)
def workplace(monkeypatch):
    """The root of the repository, one rank, and all optional packages seemingly installed."""
    monkeypatch.chdir(ROOT)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    find_spec = importlib.util.find_spec
    optional = ("wandb", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name in optional or find_spec(name, *rest))


def write(folder: Path, content: str | bytes, name: str = "bad.yaml") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def problems_of(*arguments: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        read_config(arguments)
    assert len(str(caught.value).splitlines()) == 1 + len(caught.value.problems)
    return caught.value.problems


# What is accepted


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_is_valid(preset):
    missing = sorted(OmegaConf.missing_keys(OmegaConf.load(preset)))
    assert set(missing) <= {"data.local", "data.remote"}
    config = read_config([preset, *(f"{key}=somewhere" for key in missing)])
    assert config.run_folder() == f"runs/{config.run_name}"
    if missing:
        assert [(problem.key, problem.rule) for problem in problems_of(preset)] == [
            (key, "is missing") for key in missing
        ]


def keys_of(tree: dict, prefix: str = "") -> set[str]:
    keys = set()
    for name, value in tree.items():
        keys |= {prefix + name} | (keys_of(value, f"{prefix}{name}.") if isinstance(value, dict) else set())
    return keys


def test_edm2_shows_every_key():
    loaded = OmegaConf.load(EDM2)
    tree = OmegaConf.to_container(loaded)
    assert isinstance(tree, dict)
    names = [name for name, _ in all_keys(Config)]
    off = [name for name in names if OmegaConf.select(loaded, name, default="") is None]
    expected = {name for name in names if not name.startswith(tuple(f"{section}." for section in off))}
    assert keys_of(tree) == expected
    assert not OmegaConf.missing_keys(loaded)


def test_every_key_has_an_example_for_its_errors():
    for name, field in all_keys(Config):
        assert field.description and field.examples, name
        assert field.examples[0] not in (None, ...), name


def test_a_key_is_found_by_its_dotted_name():
    found = find(Config, "data.streams.0.local")
    assert found is not None and found is find(Config, "data.streams.local")
    assert find(Config, "data.0.local") is None and find(Config, "model.nothing") is None


def test_defaults_are_the_paper():
    config = read_config([EDM2])
    least = Config.model_validate({"run_name": "x", "data": {"local": "d"}})
    assert (least.model.model_channels, least.model.channel_mult, least.global_batch_size) == (192, [1, 2, 3, 4], 2048)
    assert least.duration.images(2048) == 2**31
    assert (config.model.model_channels, config.model.channel_mult) == (16, [1, 2, 4])


ACCEPTED = {
    "microbatch auto": ("device_train_microbatch_size=auto", "auto"),
    "microbatch null": ("device_train_microbatch_size=null", None),
    "microbatch": ("device_train_microbatch_size=16", 16),
    "null interval": ("samples.interval=null", None),
    "no attention": ("model.attn_resolutions=[]", []),
    "no clipping": ("model.clip_act=null", None),
    "int for float": ("model.dropout=0", 0),
    "exponent": ("optimizer.eps=1e-6", 1e-6),
    "largest seed": ("seed=4294967295", 2**32 - 1),
    "longest average": ("ema.sigma_rels=[0.288]", [0.288]),
    "cache limit": ("data.cache_limit=1.5TB", "1.5TB"),
    "equals sign in the value": ("data.remote=s3://a/b=c", "s3://a/b=c"),
    "very long value": ("save_folder=" + "x" * 5000, "x" * 5000),
    "optional section": ("logging.wandb.project=p", "p"),
    "sigma_data auto": ("model.sigma_data=auto", "auto"),
    "sigma_data": ("model.sigma_data=1", 1.0),
    "augmentation": ("augment.p=0.15", 0.15),
    "mirrored": ("data.x_flip=true", True),
    "balanced": ("data.class_balanced=true", True),
}


@pytest.mark.parametrize(("argument", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(argument, value):
    config = read_config([EDM2, argument])
    assert OmegaConf.select(OmegaConf.create(config.model_dump()), argument.split("=")[0]) == value


def test_merge(tmp_path):
    first = write(tmp_path, LEAST + "seed: 1\nmodel: {dropout: 0.1, num_blocks: 2}\ndevice: ???\n", "first.yaml")
    second = write(tmp_path, "seed: 2\nmodel: {dropout: 0.2}\ndevice: cpu\nrun_name: ???\n", "second.yaml")
    config = read_config([first, second])
    assert (config.seed, config.model.dropout, config.model.num_blocks) == (2, 0.2, 2)
    assert (config.run_name, config.device) == ("x", "cpu")
    config = read_config([second, first])
    assert (config.seed, config.model.dropout, config.device) == (1, 0.1, "cpu")


def test_arguments_win_over_files_wherever_they_stand(tmp_path):
    path = write(tmp_path, LEAST + "seed: 1\nmodel: {dropout: 0.1, num_blocks: 2}\n")
    for arguments in ["seed=2", path, "model={num_blocks: 4}"], [path, "seed=2", "model.num_blocks=4"]:
        config = read_config(arguments)
        assert (config.seed, config.model.dropout, config.model.num_blocks) == (2, 0.1, 4)


def test_interpolation(tmp_path):
    path = write(tmp_path, LEAST + "save_folder: out/${run_name}/${seed}\nseed: 1\nsamples: {count: '${seed}'}\n")
    config = read_config([path, "seed=5", "data.local='${save_folder}/shards'"])
    assert (config.save_folder, config.samples.count, config.data.local) == ("out/x/5", 5, "out/x/5/shards")


def test_file_name_with_an_equals_sign(tmp_path):
    assert read_config([write(tmp_path, LEAST, "seed=3.yaml")]).seed == 0


TRICKY = "{project: 'yes', entity: 'null', mode: offline}"


@pytest.mark.parametrize("name", ["digits", "1e5", "2024", "true", "null", "0x1f", "1_0", "12e03", "nan", "1.5"])
def test_yaml_reads_back(tmp_path, name):
    config = read_config([EDM2, f"run_name='{name}'", f"logging.wandb={TRICKY}", "duration=64k", "optimizer.eps=1e-30"])
    assert config.run_name == name
    again = read_config([write(tmp_path, to_yaml(config))])
    assert again == config
    assert to_yaml(again) == to_yaml(config)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_reads_back(tmp_path, preset):
    missing = OmegaConf.missing_keys(OmegaConf.load(preset))
    config = read_config([preset, *(f"{key}=somewhere" for key in missing)])
    assert read_config([write(tmp_path, to_yaml(config))]) == config


# One mistake, one problem: (what is given, key, value or None, part of the rule, part of the fix). What is given is the
# text of a file, or a list of arguments after yamls/edm2.yaml, or a tuple of all arguments.

BAD: dict[str, tuple[str | bytes | list[str] | tuple[str, ...], str, str | None, str, str]] = {
    # Unknown keys
    "unknown: top": (LEAST + "seeed: 3\n", "seeed", "3", UNKNOWN, "did you mean seed?"),
    "unknown: top, nothing alike": (LEAST + "nonsense: 3\n", "nonsense", "3", UNKNOWN,
                                    "yamls/edm2.yaml shows every key"),
    "unknown: section": (["modle.dropout=0.1"], "modle", "{'dropout': 0.1}", UNKNOWN, "did you mean model?"),
    "unknown: data": (["data.lokal=d"], "data.lokal", "'d'", UNKNOWN, "did you mean data.local?"),
    "unknown: model": (["model.dropot=1"], "model.dropot", "1", UNKNOWN, "did you mean model.dropout?"),
    "unknown: loss": (["loss.Pmean=1"], "loss.Pmean", "1", UNKNOWN, "did you mean loss.P_mean?"),
    "unknown: optimizer": (["optimizer.lr=1"], "optimizer.lr", "1", UNKNOWN, "did you mean optimizer.ref_lr?"),
    "unknown: ema": (["ema.sigma_rel=[0.1]"], "ema.sigma_rel", "[0.1]", UNKNOWN, "did you mean ema.sigma_rels?"),
    "unknown: checkpoints": (["checkpoints.kep=1"], "checkpoints.kep", "1", UNKNOWN, "did you mean checkpoints.keep?"),
    "unknown: samples": (["samples.num_step=1"], "samples.num_step", "1", UNKNOWN, "did you mean samples.num_steps?"),
    "unknown: logging": (["logging.tensorbord=true"], "logging.tensorbord", "True", UNKNOWN,
                         "mean logging.tensorboard?"),
    "unknown: numerics": (["numerics.tf_32=true"], "numerics.tf_32", "True", UNKNOWN, "did you mean numerics.tf32?"),
    "unknown: wandb": (["logging.wandb.projekt=a"], "logging.wandb.projekt", "'a'", UNKNOWN,
                       "mean logging.wandb.project?"),
    "unknown: mlflow": (["logging.mlflow={experimant: a}"], "logging.mlflow.experimant", "'a'", UNKNOWN,
                        "did you mean logging.mlflow.experiment?"),
    "unknown: below another section": (["model.P_std=1"], "model.P_std", "1", UNKNOWN, "did you mean loss.P_std?"),
    "unknown: left out the section": (LEAST + "dropout: 0\n", "dropout", "0", UNKNOWN,
                                      "did you mean model.dropout or loss.label_dropout?"),
    "unknown: several alike": (["batch_size=64"], "batch_size", "64", UNKNOWN,
                               "did you mean global_batch_size or samples.batch_size?"),
    "unknown: same section, nothing alike": (["model.foo=3"], "model.foo", "3", UNKNOWN, "remove it"),
    "unknown: a number": (LEAST + "1: 2\n", "1", "2", UNKNOWN, "remove it"),
    "unknown: a nested number": (LEAST + "model: {3: 4}\n", "model.3", "4", UNKNOWN, "remove it"),
    "unknown: with a missing value": (LEAST + "foo: ???\n", "foo", "'???'", UNKNOWN, "remove it"),
    "dots in a file": (LEAST + "model.dropout: 0.1\n", "model.dropout", "0.1", "is written with dots",
                       "indent dropout below model"),
    # Types
    "type: str for int": (["seed=zero"], "seed", "'zero'", "must be a valid integer", "set seed, for example 0 ("),
    "type: quoted int": (["seed='3'"], "seed", "'3'", "must be a valid integer", "set seed, for example 0 ("),
    "type: int for bool": (["dry_run=1"], "dry_run", "1", "must be a valid boolean", "for example False"),
    "type: bool for int": (["seed=true"], "seed", "True", "must be a valid integer", "for example 0"),
    "type: float for int": (["global_batch_size=64.5"], "global_batch_size", "64.5", "must be a valid integer", "2048"),
    "type: whole float for int": (["seed=1.0"], "seed", "1.0", "must be a valid integer", "for example 0"),
    "type: bool for float": (["model.dropout=true"], "model.dropout", "True", "must be a valid number",
                             "for example 0.0"),
    "type: str for float": (["loss.P_mean=low"], "loss.P_mean", "'low'", "must be a valid number", "for example -0.4"),
    "type: list for str": (LEAST.replace("x", "[a]"), "run_name", "['a']", "must be a valid string",
                           "for example 'img512-s'"),
    "type: str for list": (["model.channel_mult=abc"], "model.channel_mult", "'abc'", "must be a valid list",
                           "for example [1, 2, 3, 4] (width of each level"),
    "type: number for list": (["ema.sigma_rels=0.05"], "ema.sigma_rels", "0.05", "must be a valid list", "[0.05, 0.1]"),
    "type: mapping for list": (["optimizer.betas={a: 1}"], "optimizer.betas", "{'a': 1}", "must be a valid list",
                               "for example [0.9, 0.99]"),
    "type: index into a list": (["model.channel_mult.0=3"], "model.channel_mult", "{'0': 3}", "must be a valid list",
                                "for example [1, 2, 3, 4]"),
    "type: list for int": (["seed=[1]"], "seed", "[1]", "must be a valid integer", "for example 0"),
    "type: mapping for int": (["seed.a=1"], "seed", "{'a': 1}", "must be a valid integer", "for example 0"),
    "type: brackets for str": (["run_name=[a]"], "run_name", "'[a]'", "must match pattern", "for example 'img512-s'"),
    "type: in a list": (["model.channel_mult=[1,a,4]"], "model.channel_mult", "'a'", "must be a valid integer",
                        "[1, 2,"),
    "type: scalar for section": (["model=3"], "model", "3", "must be a section", "{'model_channels': 192}"),
    "type: list for section": (["data=[a]"], "data", "['a']", "must be a section", "{'local': 'data/digits'}"),
    "type: bool for optional section": (["logging.wandb=true"], "logging.wandb", "True", "must be a section",
                                        "for example {'project': 'edm2'} (log to Weights & Biases; null = off)"),
    "type: below an optional section": (["logging.wandb={project: [3]}"], "logging.wandb.project", "[3]",
                                        "must be a valid string", "for example 'edm2'"),
    "type: number for an optional str": (["data.cache_limit=200"], "data.cache_limit", "'200'", "must be a size in b,",
                                         "for example 200gb"),
    "choice: device": (["device=cuda"], "device", "'cuda'", "must be 'auto', 'cpu' or 'gpu'", "for example 'auto'"),
    "choice: dtype": (["model.dtype=half"], "model.dtype", "'half'", "'float16' or 'bfloat16'", "for example 'auto'"),
    "choice: or int": (["device_train_microbatch_size=half"], "device_train_microbatch_size", "'half'",
                       "must be a valid integer or 'auto'", "for example 64"),
    # Missing
    "missing: run_name": ("data: {local: d}\n", "run_name", None, "is missing", "set run_name, for example 'img512-s'"),
    "missing: data": ("run_name: x\n", "data", None, "is missing", "set data, for example {'local': 'data/digits'}"),
    "missing: data.local": ("run_name: x\ndata: {remote: s3://b/c}\n", "data.local", None, "is missing",
                            "'data/digits'"),
    "???: str": ("run_name: x\ndata:\n  local: ???\n", "data.local", None, "is missing", "set data.local, for example"),
    "???: optional str": (LEAST + "  remote: ???\n", "data.remote", None, "is missing", "set data.remote, for example"),
    "???: quoted": ("run_name: x\ndata: {local: '???'}\n", "data.local", None, "is missing", "set data.local"),
    "???: int": (LEAST + "seed: ???\n", "seed", None, "is missing", "set seed, for example 0"),
    "???: section": ("run_name: x\ndata: ???\n", "data", None, "is missing", "set data, for example"),
    "???: interval": (LEAST + "duration: ???\n", "duration", None, "is missing", "set duration, for example '2Gi'"),
    "???: in a list": (LEAST + "ema:\n  sigma_rels:\n  - ???\n", "ema.sigma_rels", None, "is missing", "[0.05, 0.1]"),
    "???: below an optional section": (LEAST + "logging:\n  wandb:\n    project: ???\n", "logging.wandb.project", None,
                                       "is missing", "set logging.wandb.project, for example 'edm2'"),
    "???: argument": (["seed=???"], "seed", "'???'", BLANK, "write seed=VALUE"),
    # Blank
    "blank: nothing after the colon": (LEAST + "seed:\n", "seed", "None", BLANK, "set seed, for example 0"),
    "blank: section": (LEAST + "model:\n", "model", "None", BLANK, "set model, for example"),
    "blank: empty str": ("run_name: ''\ndata: {local: d}\n", "run_name", "''", BLANK, "for example 'img512-s'"),
    "blank: spaces": ("run_name: x\ndata: {local: '  '}\n", "data.local", "'  '", BLANK, "for example 'data/digits'"),
    "blank: int": (LEAST + "seed: ''\n", "seed", "''", BLANK, "for example 0"),
    "blank: list": (LEAST + "ema: {sigma_rels: ''}\n", "ema.sigma_rels", "''", BLANK, "for example [0.05, 0.1]"),
    "blank: optional str": (LEAST + "  cache_limit: ''\n", "data.cache_limit", "''", BLANK, "for example '200gb'"),
    "blank: interval": (LEAST + "samples: {interval: ''}\n", "samples.interval", "''", BLANK, "for example '64Mi'"),
    "blank: argument": (["seed="], "seed", "''", BLANK, "write seed=VALUE, or seed=null for none"),
    "blank: only a comment": (["seed=#3"], "seed", "None", BLANK, "for example 0"),
    "blank: null": (["ema.sigma_rels=null"], "ema.sigma_rels", "None", BLANK, "for example [0.05, 0.1]"),
    # Ranges
    "range: negative": (["seed=-1"], "seed", "-1", "must be greater than or equal to 0", "for example 0"),
    "range: zero batch": (["global_batch_size=0"], "global_batch_size", "0", "greater than or equal to 1", "2048"),
    "range: zero learning rate": (["optimizer.ref_lr=0"], "optimizer.ref_lr", "0", "must be greater than 0", "0.01"),
    "range: dropout 1": (["model.dropout=1"], "model.dropout", "1", "must be less than 1", "for example 0.0"),
    "range: label_dropout": (["loss.label_dropout=1.5"], "loss.label_dropout", "1.5", "less than or equal to 1", "0.0"),
    "range: seed 2**32": (["seed=4294967296"], "seed", "4294967296", "must be less than 4294967296", "for example 0"),
    "range: sigma_rel too long": (["ema.sigma_rels=[0.1,0.2887]"], "ema.sigma_rels", "0.2887",
                                  "must be less than 0.28867",
                                  "for example [0.05, 0.1]"),
    "range: sigma_rel 0.5": (["ema.sigma_rels=[0.5]"], "ema.sigma_rels", "0.5", "must be less than 0.28867",
                             "[0.05, 0.1]"),
    "range: sigma_rel 0": (["ema.sigma_rels=[0]"], "ema.sigma_rels", "0", "must be greater than 0", "[0.05, 0.1]"),
    "range: no averages": (["ema.sigma_rels=[]"], "ema.sigma_rels", "[]", "must have at least 1 item, not 0",
                           "[0.05, 0.1]"),
    "range: one beta": (["optimizer.betas=[0.9]"], "optimizer.betas", "[0.9]", "must have at least 2 items, not 1",
                        "0.99]"),
    "range: three betas": (["optimizer.betas=[0.9,0.9,0.9]"], "optimizer.betas", "[0.9, 0.9, 0.9]", "at most 2 items",
                           "0.99]"),
    "range: beta 1": (["optimizer.betas=[0.9,1.0]"], "optimizer.betas", "1.0", "must be less than 1", "[0.9, 0.99]"),
    "range: keep -2": (["checkpoints.keep=-2"], "checkpoints.keep", "-2", "greater than or equal to -1",
                       "for example 2"),
    "range: keep 0": (["checkpoints.keep=0"], "checkpoints.keep", "0", "must be -1 (all) or at least 1", "use 2"),
    "range: microbatch 0": (["device_train_microbatch_size=0"], "device_train_microbatch_size", "0",
                            "must be greater than or equal to 1 or 'auto'", "for example 64"),
    "range: infinite": (["optimizer.ref_lr=.inf"], "optimizer.ref_lr", "inf", "must be a finite number",
                        "for example 0.01"),
    "range: not a number": (["loss.P_mean=.nan"], "loss.P_mean", "nan", "must be a finite number", "for example -0.4"),
    "range: infinite in a list": (["ema.sigma_rels=[.nan]"], "ema.sigma_rels", "nan", "must be a finite number",
                                  "0.05"),
    "range: run_name": (["run_name=a/b"], "run_name", "'a/b'", "must match pattern", "letters, digits, . _ -"),
    # Amounts of training
    "span: suffix": (["duration=8Q"], "duration", "'8Q'", SPAN, "set duration, for example '2Gi'"),
    "span: negative": (["checkpoints.interval=-5"], "checkpoints.interval", "-5", SPAN, "for example '8Mi'"),
    "span: part of an image": (["duration=1.5"], "duration", "1.5", "1.5 is 1.5 images, not a whole number", "'2Gi'"),
    "span: bool": (["samples.interval=true"], "samples.interval", "True", SPAN,
                   "'64Mi' (images between grids; null = none)"),
    "span: list": (["ema.snapshot_interval=[1]"], "ema.snapshot_interval", "[1]", SPAN, "for example '8Mi'"),
    "span: null": (["duration=null"], "duration", "None", BLANK, "for example '2Gi'"),
    "span: infinite": (["duration=.inf"], "duration", "inf", SPAN, "for example '2Gi'"),
    "span: not a number": (["duration=.nan"], "duration", "nan", SPAN, "for example '2Gi'"),
    "span: zero": (["logging.interval=0ba"], "logging.interval", "0ba", "must be above 0", "for example 100ba"),
    "span: rampup in epochs": (["optimizer.rampup=3ep"], "optimizer.rampup", "3ep", "must be in images or batches",
                               "10M"),
    "span: not a multiple": (["checkpoints.interval=100"], "checkpoints.interval", "100",
                             "is 100 images, which must be a multiple of global_batch_size 64", "use 64 or 128"),
    "span: a suffix that is not a multiple": (["duration=1k"], "duration", "1k", "is 1000 images", "use 960 or 1024"),
    "span: below a batch": (["duration=10sp"], "duration", "10sp", "multiple of global_batch_size 64", "use 64"),
    # Rules between keys
    "microbatch does not divide": (["device_train_microbatch_size=48"], "device_train_microbatch_size", "48",
                                   "must divide global_batch_size 64", "use 32"),
    "microbatch above the batch": (["device_train_microbatch_size=128"], "device_train_microbatch_size", "128",
                                   "must divide global_batch_size 64", "use 64"),
    "microbatch auto on a CPU": (["device=cpu", "device_train_microbatch_size=auto"], "device_train_microbatch_size",
                                 "auto", "needs a GPU, but device is cpu", "device_train_microbatch_size=null"),
    "sigma_rels repeat": (["ema.sigma_rels=[0.1,0.05,0.10]"], "ema.sigma_rels", "[0.1, 0.05, 0.1]",
                          "must not repeat a length", "use [0.05, 0.1]"),
    "sigma_rels of 4 decimals": (["ema.sigma_rels=[0.1234]"], "ema.sigma_rels", "[0.1234]",
                                 "must have at most 3 decimals",
                                 "use [0.123]"),
    "sigma_rels that round out of range": (["ema.sigma_rels=[0.0001,0.2886]"], "ema.sigma_rels", "[0.0001, 0.2886]",
                                           "must have at most 3 decimals", "use [0.001, 0.288]"),
    "channels_per_head does not divide": (["model.channels_per_head=48"], "model.channels_per_head", "48",
                                          "must divide the channels where there is attention, 64 at 4x4", "use 32"),
    "channels_per_head of two attentions": (["model.attn_resolutions=[8]", "model.channels_per_head=64"],
                                            "model.channels_per_head", "64", "64 at 4x4 and 32 at 8x8", "use 32"),
    "img_resolution not halvable": (["model.img_resolution=18"], "model.img_resolution", "18",
                                    "must be a multiple of 4",
                                    "use 16 or 20 or fewer levels"),
    "attn_resolutions not a level": (["model.attn_resolutions=[4,5]"], "model.attn_resolutions", "[4, 5]",
                                     "model.img_resolution and model.channel_mult make, [4, 8, 16]; not [5]", "[4]"),
    "label_dropout without labels": (["model.label_dim=0", "loss.label_dropout=0.1"], "loss.label_dropout", "0.1",
                                     "has no labels to drop: model.label_dim is 0", "set loss.label_dropout=0"),
    "save_folder in another store": (["save_folder=gs://b/c"], "save_folder", "gs://b/c",
                                     "must be a local folder or s3://", "mount"),
    "save_folder without a folder": (["save_folder=s3://"], "save_folder", "s3://", "must be a local folder or s3://",
                                     "s3://bucket/runs"),
    "snapshot_keep none": (["ema.snapshot_keep=0"], "ema.snapshot_keep", "0", "must be -1 (all) or at least 1", "-1"),
    "local and streams": (["data.streams=[{local: a, proportion: 1}]"], "data.local", "data/digits",
                          "cannot be set together with data.streams", "set data.local=null"),
    "remote and streams": (["data.local=null", "data.remote=s3://b/c", "data.streams=[{local: a, proportion: 1}]"],
                           "data.remote", "s3://b/c", "cannot be set together with data.streams", "data.remote=null"),
    "neither local nor streams": (["data.local=null"], "data.local", None, "is missing, and so is data.streams",
                                  "or data.streams"),
    "streams in one folder": (["data.local=null", "data.streams=[{local: a, proportion: 1},{local: a/,proportion: 1}]"],
                              "data.streams", "['a', 'a']", "must not name a local folder twice", "of its own"),
    "balanced streams": (["data.local=null", "data.class_balanced=true", "data.streams=[{local: a, proportion: 1}]"],
                         "data.class_balanced", "true", "is not possible with data.streams", "class_balanced=false"),
    "no streams": (["data.local=null", "data.streams=[]"], "data.streams", "[]", "must have at least 1 item", "local"),
    "stream without a proportion": (["data.local=null", "data.streams=[{local: a}]"],
                                    "data.streams.0.proportion", None, "is missing", "for example 1.0"),
    "stream of no proportion": (["data.local=null", "data.streams=[{local: a, proportion: 0}]"],
                                "data.streams.0.proportion", "0", "must be greater than 0", "for example 1.0"),
    "sigma_data": (["model.sigma_data=own"], "model.sigma_data", "'own'", "must be a valid number or 'auto'", "0.5"),
    "sigma_data 0": (["model.sigma_data=0"], "model.sigma_data", "0", "must be greater than 0 or 'auto'", "0.5"),
    "augment p": (["augment.p=1.5"], "augment.p", "1.5", "must be less than or equal to 1", "0.12"),
    "augment multiplier": (["augment.scale=-1"], "augment.scale", "-1", "greater than or equal to 0", "for example 1"),
    "unknown: augment": (["augment.xflip=1"], "augment.xflip", "1", UNKNOWN, "did you mean augment.x_flip?"),
    "unknown: stream": (["data.local=null", "data.streams=[{local: a, proportion: 1, remot: b}]"],
                        "data.streams.0.remot", "'b'", UNKNOWN, "remote"),
    "auto microbatch and fsdp": (["device_train_microbatch_size=auto", "fsdp={}"], "device_train_microbatch_size",
                                 "auto", "is not possible with fsdp", "use a number"),
    "cache_limit": (["data.cache_limit=lots"], "data.cache_limit", "'lots'", "must be a size in b, kb, mb",
                    "example 200gb"),
    # A bad key, and no echo of it from the rules that would need it
    "no echo: img_resolution": (["model.img_resolution=abc"], "model.img_resolution", "'abc'", "valid integer", "64"),
    "no echo: attn_resolutions": (["model.attn_resolutions=none"], "model.attn_resolutions", "'none'", "valid list",
                                  "16"),
    "no echo: section": (["model=abc"], "model", "'abc'", "must be a section", "{'model_channels': 192}"),
    # Files
    "file: missing": (("nodir/nope.yaml",), "nodir/nope.yaml", None, "no such file", "yamls/"),
    "file: misspelt preset": (("yamls/emd2.yaml",), "yamls/emd2.yaml", None, "no such file",
                              "did you mean yamls/edm2.yaml?"),
    "file: preset without folder": (("edm2.yaml",), "edm2.yaml", None, "no such file", "did you mean yamls/edm2.yaml?"),
    "file: preset without suffix": (("yamls/edm2",), "yamls/edm2", None, "no such file",
                                    "did you mean yamls/edm2.yaml?"),
    "file: folder": (("tests",), "tests", None, "is a folder, not a YAML file", "yamls/"),
    "file: name too long": (("x" * 5000 + ".yaml",), "x" * 5000 + ".yaml", None, "no such file", "name one of yamls/"),
    "file: blank name": (("",), "arguments", "''", BLANK, "name a YAML file, for example yamls/edm2.yaml"),
    "file: tab": ("run_name: x\n\tdata: 3\n", "bad.yaml, line 2", None, "is not valid YAML: found a tab",
                  "indent with spaces, not with tabs"),
    "file: unbalanced bracket": ("run_name: [1, 2\ndata: 3\n", "bad.yaml, line 2", None, "is not valid YAML: ",
                                 "`key: value`"),
    "file: not text": (b"\x80\x81\x00\xff", "bad.yaml", None, "is not text in UTF-8, from its byte 0 on", "save it"),
    "file: control characters": (b"\x00\x01", "bad.yaml", None, "control characters are not allowed",
                                 "`key: value` lines"),
    "file: list": ("- a\n- b\n", "bad.yaml", None, "holds no keys", "`key: value` lines in YAML"),
    "file: number": ("3\n", "bad.yaml", None, "holds no keys", "`key: value` lines in YAML"),
    "file: empty": ("", "bad.yaml", None, "holds no keys", "`key: value` lines in YAML"),
    "file: comment": ("# later\n", "bad.yaml", None, "holds no keys", "`key: value` lines in YAML"),
    "file: two documents": ("a: 1\n---\nb: 2\n", "bad.yaml, line 2", None, "found another document",
                            "`key: value` lines"),
    "file: too deep": ("a: " + "[" * 300 + "]" * 300, "bad.yaml", None, "maximum recursion depth",
                       "`key: value` lines"),
    "file: Python object": ("run_name: !!python/name:os.system\n", "bad.yaml, line 1", None, "is not valid YAML: ",
                            "write"),
    "file: null key": (LEAST + "null: 3\n", "null", "3", UNKNOWN, "remove it"),
    "file: duplicate key": ("seed: 1\nseed: 2\n", "bad.yaml, line 2", None, "found duplicate key seed",
                            "keep one of the two"),
    "file: nested duplicate": ("data:\n  local: d\n  local: e\n", "bad.yaml, line 3", None, "duplicate key local",
                               "keep one"),
    # Arguments
    "argument: none": ((), "arguments", None, "name no YAML file", "for example yamls/edm2.yaml"),
    "argument: no file": (("seed=3",), "arguments", None, "name no YAML file", "for example yamls/edm2.yaml"),
    "argument: duplicate": (["seed=3", "seed=4", "seed=5"], "seed", None, "is given twice", "keep one of them"),
    "argument: no equals sign": (["seed"], "seed", None, "is neither key=value nor a YAML file", "model.dropout=0.1"),
    "argument: colon": (["seed:3"], "seed:3", None, "is neither key=value nor a YAML file", "model.dropout=0.1"),
    "argument: dashes": (["--seed=3"], "--seed=3", None, "is not key=value", "model.dropout=0.1"),
    "argument: no key": (["=3"], "=3", None, "is not key=value", "write for example model.dropout=0.1"),
    "argument: half a key": (["model.=3"], "model.=3", None, "is not key=value", "write for example model.dropout=0.1"),
    "argument: brackets": (["model.channel_mult[0]=3"], "model.channel_mult[0]=3", None, "is not key=value",
                           "write for"),
    "argument: not YAML": (["seed=[1"], "seed", "[1", "is not valid YAML", "quote it for YAML"),
    "argument: quotes not closed": (["run_name='a"], "run_name", "'a", "is not valid YAML", "'run_name=\"...\"'"),
    "argument: in a section too": (["model={dropout: 0.1, num_blocks: 2}", "model.dropout=0.2"], "model.dropout", None,
                                   "is given twice", "keep one of them"),
    "argument: below what is off": (["logging.wandb=null", "logging.wandb.project=a"], "logging.wandb.project", None,
                                    "is given twice", "keep one of them"),
    # References
    "reference: unknown key": (LEAST + "save_folder: ${run_nam}/a\n", "save_folder", None,
                               "cannot be resolved: Interpolation key 'run_nam' not found",
                               "refer to a key that a file"),
    "reference: not closed": (LEAST + "save_folder: ${\n", "bad.yaml, save_folder", None, "cannot be resolved",
                              "refer to"),
    "reference: empty argument": (["save_folder=${}"], "save_folder", "${}", "cannot be resolved", "refer to a key"),
    "reference: itself": (["seed=${seed}"], "seed", None, "Recursive interpolation", "or write a plain value"),
    "reference: in a list": (["optimizer.betas=['${a}',0.9]"], "optimizer.betas[0]", None, "key 'a' not found",
                             "refer to"),
    "reference: environment": (["data.local=${oc.env:EDM2_NOT_SET}"], "data.local", None, "'EDM2_NOT_SET' not found",
                               "or"),
    "reference: of another type": (LEAST + "seed: ${run_name}\n", "seed", "'x'", "must be a valid integer",
                                   "example 0"),
    "reference: to a missing value": ("run_name: ???\nsave_folder: ${run_name}\n", "save_folder", None,
                                      "Missing mandatory value: run_name",
                                      "refer to a key that a file or argument sets"),
}  # fmt: skip


def arguments_of(given: str | bytes | list[str] | tuple[str, ...], folder: Path) -> list[str]:
    if isinstance(given, str | bytes):
        return [write(folder, given)]
    return [EDM2, *given] if isinstance(given, list) else list(given)


@pytest.mark.parametrize(("given", "key", "value", "rule", "fix"), BAD.values(), ids=BAD)
def test_mistake(tmp_path, given, key, value, rule, fix):
    problems = problems_of(*arguments_of(given, tmp_path))
    assert len(problems) == 1, problems
    text = str(problems[0]).replace(f"{tmp_path}/", "")
    head = key if value is None else f"{key} = {value}"
    assert text.startswith(f"{head}: ")
    found_rule, found_fix = text.removeprefix(f"{head}: ").split("; fix: ")
    assert rule in found_rule
    assert fix in found_fix
    assert "\n" not in text
    assert "pydantic" not in text.lower()


def test_all_keys_that_are_wrong_by_themselves_at_once(tmp_path):
    """Of each kind of check: what pydantic has, what the types of values.py have, unknown and missing keys."""
    path = write(tmp_path, "seeed: 3\nduration: 0\nmodel: {dropout: 2, label_dim: 10, foo: 1}\n")
    problems = problems_of(
        path, "ema.sigma_rels=[0.1,0.1]", "data.locl=x", "samples.interval=8Q", "world_size=3x", "save_folder=gs://b/c"
    )
    assert {problem.key: problem.rule for problem in problems} == {
        "data.locl": UNKNOWN,
        "duration": "must be above 0",
        "ema.sigma_rels": "must not repeat a length",
        "model.dropout": "must be less than 1",
        "model.foo": UNKNOWN,
        "run_name": "is missing",
        "samples.interval": SPAN,
        "save_folder": "must be a local folder or s3://bucket/folder",
        "seeed": UNKNOWN,
        "world_size": "must be a number of ranks, or nodes x ranks per node",
    }
    assert len(problems) == 10


BROKEN_BETWEEN_KEYS = ("duration=65", "data.local=null", "loss.label_dropout=0", "device_train_microbatch_size=48")


def test_all_broken_rules_between_keys_at_once():
    assert {problem.key: problem.rule for problem in problems_of(EDM2, *BROKEN_BETWEEN_KEYS)} == {
        "data.local": "is missing, and so is data.streams",
        "device_train_microbatch_size": "must divide global_batch_size 64",
        "duration": "is 65 images, which must be a multiple of global_batch_size 64",
        "samples.guidance": "needs a network that also learns without labels: loss.label_dropout is 0",
    }


def test_rules_between_keys_wait_until_each_key_is_valid():
    assert [problem.key for problem in problems_of(EDM2, *BROKEN_BETWEEN_KEYS, "model.dropout=2")] == ["model.dropout"]


@pytest.mark.parametrize("key", ["duration", "ema.snapshot_interval", "checkpoints.interval", "samples.interval"])
def test_no_interval_may_be_0(key):
    (problem,) = problems_of(EDM2, f"{key}=0")
    assert (problem.key, problem.value, problem.rule) == (key, "0", "must be above 0")


def test_all_unreadable_arguments_at_once(tmp_path):
    problems = problems_of("nope.yaml", "seed=", write(tmp_path, "- a\n"), "seed", "nope.yaml")
    keys = ["nope.yaml", "seed", str(tmp_path / "bad.yaml"), "seed"]
    assert [problem.key for problem in problems] == keys


def test_every_interval_is_checked():
    keys = {"duration", "ema.snapshot_interval", "checkpoints.interval", "samples.interval", "logging.interval"}
    assert {problem.key for problem in problems_of(EDM2, "global_batch_size=48")} == keys


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_logger_that_is_not_installed(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (problem,) = problems_of(EDM2, f"logging.{name}={{}}")
    assert problem.key == f"logging.{name}"
    assert problem.rule == f"needs the package {name}, which is not installed"
    assert f"pip install 'edm2-recipe[{name}]'" in problem.fix


def test_streams():
    streams = "[{local: a, remote: 's3://b/c', proportion: 3}, {local: b, proportion: 0.5}]"
    data = read_config([EDM2, "data.local=null", f"data.streams={streams}"]).data
    assert data.streams is not None
    assert [stream.model_dump() for stream in data.streams] == [
        {"local": "a", "remote": "s3://b/c", "proportion": 3.0},
        {"local": "b", "remote": None, "proportion": 0.5},
    ]


def rules_of_world(world_size: int, *arguments: str) -> list[str]:
    return [str(problem) for problem in broken_rules_of_world(read_config([EDM2, *arguments]), world_size)]


def test_rules_of_the_world():
    assert rules_of_world(1) == rules_of_world(8) == rules_of_world(8, "device_train_microbatch_size=4") == []
    assert rules_of_world(8, "device_train_microbatch_size=auto") == []
    assert rules_of_world(3) == [
        "global_batch_size = 64: must be a multiple of the number of ranks, 3; fix: use 63 or 66"
    ]
    assert rules_of_world(128, "device_train_microbatch_size=16") == [
        "global_batch_size = 64: must be a multiple of the number of ranks, 128; fix: use 128"
    ]
    assert rules_of_world(8, "device_train_microbatch_size=16") == [
        "device_train_microbatch_size = 16: must divide a rank's share of the batch, "
        "8 = global_batch_size 64 / 8 ranks; fix: use 8"
    ]


def test_usage(capsys):
    for arguments, status in ([], 2), (["--help"], 0), ([EDM2, "-h"], 0):
        with pytest.raises(SystemExit) as caught:
            read_or_exit(arguments, "train.py")
        assert caught.value.code == status
        out, err = capsys.readouterr()
        assert (out, err) == ("", "usage: recipe/train.py CONFIG.yaml [MORE.yaml ...] [key=value ...]\n")


# The real commands

SECONDS = 15


def test_the_configuration_is_read_before_torch_is_loaded():
    """A mistake is refused at once, and before anything touches a GPU."""
    code = (
        "import sys; from recipe.configuration.reader import read_config; "
        f"read_config(['{EDM2}']).run_folder(); print('pydantic' in sys.modules, 'torch' in sys.modules)"
    )
    assert python("-c", code).stdout == "True False\n"


def test_conditions_of_the_network_are_those_of_the_augmentation():
    from recipe.edm2.augment import CONDITIONS

    assert read_config([EDM2]).network_arguments()["augment_dim"] == 0
    assert read_config([EDM2, "augment={}"]).network_arguments()["augment_dim"] == CONDITIONS == 9


def run(*command: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done, time.monotonic() - start


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done, seconds = run(sys.executable, *arguments, **environment)
    assert seconds < SECONDS
    return done


COMMANDS = {
    "misspelt preset": (("yamls/emd2.yaml",), "yamls/emd2.yaml: no such file; fix: did you mean yamls/edm2.yaml?"),
    "unknown key": ((EDM2, "modle.dropout=0.1"), "modle = {'dropout': 0.1}: is not a key of the configuration; fix:"),
    "wrong type": ((EDM2, "data=[a]"), "data = ['a']: must be a section, with keys of its own; fix:"),
    "rule between keys": ((EDM2, "duration=65"), "duration = 65: is 65 images, which must be a multiple of"),
}


@pytest.mark.parametrize("command", ["train.py", "config.py"])
@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_command_ends_on_bad_input(command, arguments, message):
    done = python(f"recipe/{command}", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    head, line = done.stderr.splitlines()
    assert head == f"{command}: 1 problem in the configuration"
    assert message in line


@pytest.mark.parametrize("command", ["train.py", "config.py"])
def test_only_rank_0_speaks(command):
    done = python(f"recipe/{command}", "yamls/emd2.yaml", RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_train_counts_its_ranks():
    done = python("recipe/train.py", EDM2, "dry_run=true", RANK="0", WORLD_SIZE="3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "global_batch_size = 64: must be a multiple of the number of ranks, 3; fix: use 63 or 66" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_prints_what_reads_back(tmp_path):
    done = python("recipe/config.py", EDM2, "seed=7", "run_name='1e5'")
    assert (done.returncode, done.stderr) == (0, "")
    assert read_config([write(tmp_path, done.stdout)]) == read_config([EDM2, "seed=7", "run_name='1e5'"])


def test_launcher_ends_on_bad_input():
    launcher = str(Path(sys.executable).parent / "composer")
    done, _ = run(launcher, "-n", "2", "recipe/train.py", EDM2, "modle.dropout=0.1")
    said = done.stdout + done.stderr
    assert done.returncode == 2
    assert said.count("modle = {'dropout': 0.1}: is not a key of the configuration; fix: did you mean model?") == 1
    assert "Traceback" not in said
