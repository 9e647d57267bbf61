"""The dry run: what a configuration will need, from the presets' own files."""

from pathlib import Path

import pytest

from commands import ROOT, command_line, run, train_arguments
from recipe.config_reader import read_config
from recipe.training.plan import print_plan

# Mparams (Table 6), and multiply-adds of convolutions, linear layers and attention, 1% below the paper's Gflops
PRESETS = {
    "img512-xs": ("124.71 M", "44.95"), "img512-s": ("280.21 M", "100.82"), "img512-m": ("497.81 M", "178.95"),
    "img512-l": ("777.50 M", "279.34"), "img512-xl": ("1119.28 M", "401.99"), "img512-xxl": ("1523.16 M", "546.90"),
}  # fmt: skip
STEPS = {"img512-xs": 2**20, "img512-xl": 655360, "img64-s": 2**19, "img64-xl": 327680}


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "yamls").glob("img*.yaml")))
def test_presets_have_the_papers_sizes(preset: str, capsys: pytest.CaptureFixture[str]):
    print_plan(read_config([str(ROOT / "yamls" / f"{preset}.yaml"), "data.local=none"]))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    if preset in PRESETS:
        parameters, compute = PRESETS[preset]
        assert lines["parameters"] == parameters
        assert lines["compute"].startswith(f"{compute} GFLOPs")
    else:  # ImageNet-64 has one channel less: 2 * 9 * model_channels fewer weights, about 0.01%
        reference = float(PRESETS[preset.replace("img64", "img512")][0].split()[0])
        assert float(lines["parameters"].split()[0]) == pytest.approx(reference, abs=0.02)
    if preset in STEPS:
        assert lines["steps"] == f"{STEPS[preset]} of 2048 images"


def test_memory_is_weights_gradients_adam_and_averages(capsys: pytest.CaptureFixture[str]):
    print_plan(read_config([str(ROOT / "yamls" / "img512-s.yaml"), "data.local=none", "ema.sigma_rels=[0.05,0.1,0.2]"]))
    assert f"{280.212837e6 * 4 * (4 + 3) / 1e9:.2f} GB, and activations" in capsys.readouterr().out


@pytest.mark.slow
def test_dry_run_through_the_launcher_writes_nothing(digits: Path, tmp_path: Path):
    arguments = train_arguments(digits, tmp_path / "run", "dry_run=true", "duration=2ep")
    done = run(command_line("train.py", *arguments, launcher=True))
    assert done.returncode == 0, done.stderr
    assert "steps             624 of 16 images" in done.stdout
    assert not (tmp_path / "run").exists()
