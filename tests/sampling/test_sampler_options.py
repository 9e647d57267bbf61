"""The options that choose the sampler and where guidance is on: what they mean, and what is refused before any work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.documented import after_script, matching, placed, sized
from helpers.small_snapshots import NETWORK, refused_in_process, small_network, stored
from recipe import sample
from recipe.edm2.images import to_pixels
from recipe.edm2.samplers.generate import SamplerSettings, generate
from recipe.edm2.samplers.guidance import Interval
from recipe.edm2.samplers.names import OPTIONS, Name
from recipe.sampling.preset_options import settle_preset
from recipe.sampling.sampler_options import GIVEN, sampler_settings
from recipe.weights.snapshots import SnapshotInfo, load_network, save_snapshot, snapshot_name

NEEDED = ["snapshot.safetensors", "--out", "images"]


def settings_of(*options: str) -> SamplerSettings:
    arguments = sample.arguments_parser().parse_args([*NEEDED, *options])
    settle_preset(arguments)
    return sampler_settings(arguments)


def test_defaults():
    assert settings_of() == SamplerSettings()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_of_a_sampler_has_an_option(name: Name):
    values = {"S_churn": 7.0, "S_min": 0.1, "S_max": 9.0, "S_noise": 1.5, "eta": 0.25, "order": 3}
    values |= {"solver_type": "heun", "restart": ((4, 3, 0.1, 0.5),)}
    wanted = {setting: values[setting] for setting in OPTIONS[name]}
    texts = {**wanted, "restart": "[[4, 3, 0.1, 0.5]]"}
    options = [f"{option}={texts[setting]}" for option, setting in GIVEN.items() if setting in wanted]
    assert len(options) == len(wanted)
    assert settings_of("--sampler", name, *options) == SamplerSettings(sampler=name, **wanted)  # pyright: ignore


def test_schedule_and_guidance():
    options = ["--steps", "9", "--sigma-min", "0.01", "--sigma-max", "50", "--rho", "5", "--state-dtype", "float64"]
    found = settings_of(*options, "--guidance", "2", "--guidance-interval", "0.3:", "--guide-apart")
    assert found == SamplerSettings(
        9, 0.01, 50.0, 5.0, guidance=2.0, interval=Interval(0.3), in_one_batch=False, state_dtype="float64"
    )
    assert settings_of("--guidance=2", "--guidance-interval=:2.9").interval == Interval(hi=2.9)


def test_what_is_said_of_endpoints_that_are_no_levels(capsys: pytest.CaptureFixture[str]):
    settings_of("--guidance", "2", "--guidance-interval", "0.28:2.9")
    assert capsys.readouterr().err == ""
    settings_of("--guidance", "2", "--guidance-interval", "0.28:3.3")
    said = ": --guidance-interval (0.28, 3.3]: 3.3 is no noise level; guidance is on at 7 of the 32"
    assert said in capsys.readouterr().err


IDLE = "does nothing with --sampler"
REFUSED = {
    "no such sampler": (["--sampler", "dpmpp_2s"], "must be one of heun, euler, euler_ancestral, dpmpp_2m"),
    "misspelt": (["--sampler", "unipv"], "did you mean unipc?"),
    "churn of euler": (["--sampler", "euler", "--churn", "4"], f"--churn 4.0: {IDLE} euler; it is of heun"),
    "eta of heun": (["--eta", "0.5"], f"--eta 0.5: {IDLE} heun; it is of euler_ancestral, dpmpp_2m_sde, dpmpp_3m_sde"),
    "order": (["--sampler", "dpmpp_2m", "--order", "2"], f"--order 2: {IDLE} dpmpp_2m; it is of unipc"),
    "type": (["--sampler", "unipc", "--solver-type", "heun"], f"--solver-type heun: {IDLE} unipc; it is of dpmpp_2m_s"),
    "restart": (["--restart", "[[3, 2, 0.06, 0.3]]"], f"{IDLE} heun; it is of restart"),
    "noise without churn": (["--s-noise", "1.1"], "--s-noise 1.1: is of --churn, and there is none"),
    "levels without churn": (["--churn", "0", "--s-max", "9"], "--s-max 9.0: is of --churn, and there is none"),
    "large order": (["--sampler", "unipc", "--order", "4"], "--order 4: must be at most 3"),
    "negative eta": (["--sampler", "euler_ancestral", "--eta", "-1"], "--eta -1: must be at least 0"),
    "no list": (["--sampler", "restart", "--restart", "3,2"], "--restart 3,2: must be a list of lists of numbers"),
    "no lists": (["--sampler", "restart", "--restart", "[3, 2]"], "must be a list of lists of numbers"),
    "no numbers": (["--sampler", "restart", "--restart", '[["3", 2, 1, 2]]'], "must be a list of lists of numbers"),
    "not finite": (["--sampler", "restart", "--restart", "[[3, 2, 1, NaN]]"], "must be a list of lists of numbers"),
    "not even finite": (["--sampler", "restart", "--restart", "[[3, 2, 1, 1e999]]"], "must be a list of lists of num"),
    "no restarts": (["--sampler", "restart", "--restart", "[]"], "names no interval"),
    "one level": (["--sampler", "restart", "--restart", "[[1, 2, 0.1, 0.3]]"], "N >= 2 noise levels"),
    "too high": (["--sampler", "restart", "--restart", "[[3, 2, 79, 90]]"], "t_min's nearest level is the first"),
    "state": (["--state-dtype", "float16"], "--state-dtype float16: must be one of float32, float64"),
    "interval without guidance": (["--guidance-interval", "0.3:3"], "does nothing at --guidance 1"),
    "one endpoint": (["--guidance", "2", "--guidance-interval", "3"], "must be two noise levels LO:HI"),
    "a word": (["--guidance", "2", "--guidance-interval", "0.3:high"], "must be two noise levels LO:HI"),
    "turned round": (["--guidance", "2", "--guidance-interval", "3:0.3"], "with 0 <= LO < HI"),
    "no level in it": (["--guidance", "2", "--guidance-interval", "0.3:0.4"], "holds none of the 32 noise levels, 80"),
    "apart without guidance": (["--guide-apart"], "--guide-apart: is of guidance without --guide; leave it out"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(options: list[str], said: str, tmp_path: Path, monkeypatch, capsys):
    """Before the snapshot is looked for, which is not there."""
    arguments = [tmp_path / "nowhere.safetensors", "--device", "cpu", "--out", tmp_path / "images", *options]
    assert said in refused_in_process(sample, arguments, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def new_snapshot(folder: Path, seed: int) -> Path:
    path = folder / snapshot_name(1000 * seed, 0.05)
    info = SnapshotInfo(NETWORK, 1000 * seed, 0.05, extra={"label_dropout": 0.1})
    save_snapshot(path, stored(small_network(seed), torch.float32), info)
    return path


def test_documented_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of docs/sampling.md as they stand, on a small network."""
    places = {"SNAPSHOT": new_snapshot(tmp_path, 3), "GUIDE": new_snapshot(tmp_path, 4)}
    commands = matching(r"python recipe/sample\.py SNAPSHOT --(sampler|guidance) .*")
    for index, command in enumerate(commands):
        out = tmp_path / str(index)
        script, words = after_script(command)
        assert script == "recipe/sample.py"
        monkeypatch.setattr("sys.argv", [script, *sized(placed(words, {**places, "out": out}), {"--seeds": 5})])
        sample.main()
        assert [path.name for path in out.glob("*.png")] == ["000005.png"]
    pictures = [(tmp_path / str(index) / "000005.png").read_bytes() for index in range(len(commands))]
    assert len(set(pictures)) == len(commands) == 6


def test_the_command_draws_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = new_snapshot(tmp_path, 3)
    options = ["--sampler", "dpmpp_2m_sde", "--eta", "0.5", "--steps", "5", "--guidance", "2"]
    options += ["--guidance-interval", "0.1:20", "--seeds", "4", "--device", "cpu", "--out", str(tmp_path / "images")]
    monkeypatch.setattr("sys.argv", ["sample.py", str(snapshot), *options])
    sample.main()
    settings = SamplerSettings(5, guidance=2, interval=Interval(0.1, 20), sampler="dpmpp_2m_sde", eta=0.5)
    expected = to_pixels(generate(load_network(snapshot)[0], torch.tensor([4]), torch.tensor([4]), settings))
    with Image.open(tmp_path / "images" / "000004.png") as image:
        assert np.abs(np.array(image).astype(int) - expected[0, 0].numpy().astype(int)).max() <= 1
