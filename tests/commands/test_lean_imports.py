"""A command loads less of its libraries than they would by themselves, and what it loads is whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import ROOT

HEAVY = ["scipy", "scipy.signal", "matplotlib", "pandas", "sklearn", "transformers", "mcli.api", "streaming.text.c4"]
LIBRARIES = "import recipe.training.run, recipe.prepare, torchmetrics.text, composer.algorithms, sys; "
PRINT = f"print(*[name for name in {HEAVY} if name in sys.modules])"
WORKS = """
import streaming, torch
from recipe.evaluation.distances import FeatureStatistics
assert {"text", "vision", "multimodal"} <= set(vars(streaming))
assert issubclass(streaming.StreamingDataset, torch.utils.data.IterableDataset)
assert streaming.StreamingDataLoader([1, 2, 3, 4], batch_size=2)._get_batch_size({"a": torch.zeros(2)}) == 2
assert composer.utils.collect_env.get_cpu_model() == PROCESSOR
assert composer.algorithms.SelectiveBackprop and composer.algorithms.LowPrecisionLayerNorm
statistics = FeatureStatistics(2)
statistics.update(torch.eye(2))
assert statistics.compute()[0].tolist() == [0.5, 0.5]
import matplotlib.pyplot, scipy.signal, transformers.models.auto, transformers.feature_extraction_utils
assert transformers.BertConfig and transformers.feature_extraction_utils.BatchFeature({"a": 1})["a"] == 1
"""


def printed(code: str) -> str:
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    code = code.replace("PROCESSOR", repr(processor.partition(": ")[2].strip()))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def is_command(path: Path) -> bool:
    """One that loads libraries; config.py does not."""
    return "end_at_once(" in path.read_text() and path.stem not in ("interrupts", "config")


@pytest.mark.slow
def test_nothing_heavy_is_loaded_and_the_rest_works():
    """Also what a command itself imports of these packages."""
    less = "from recipe.lean_imports import import_less; import_less(); "
    assert printed(f"{less}{LIBRARIES}{PRINT}\n{WORKS}") == ""


@pytest.mark.soak
def test_a_program_that_imports_the_recipe_finds_libraries_whole():
    """And the names above are still what is heavy: else this file tests nothing."""
    assert printed(LIBRARIES + PRINT).split() == HEAVY


@pytest.mark.parametrize("command", [path.stem for path in sorted((ROOT / "recipe").glob("*.py")) if is_command(path)])
def test_commands_ask_for_it_before_they_load_them(command: str):
    text = (ROOT / "recipe" / f"{command}.py").read_text()
    first = min(text.index(line) for line in ("\nimport recipe", "\nfrom recipe.") if line in text)
    assert 0 < text.index("    import_less()\n") < first
