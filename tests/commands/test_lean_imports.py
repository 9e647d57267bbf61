"""A command loads less of its libraries than they would by themselves, and what it loads is whole."""

import subprocess
import sys

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
assert composer.algorithms.SelectiveBackprop and composer.algorithms.LowPrecisionLayerNorm
statistics = FeatureStatistics(2)
statistics.update(torch.eye(2))
assert statistics.compute()[0].tolist() == [0.5, 0.5]
import matplotlib.pyplot, scipy.signal, transformers.models.auto, transformers.feature_extraction_utils
assert transformers.BertConfig and transformers.feature_extraction_utils.BatchFeature({"a": 1})["a"] == 1
"""


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_nothing_heavy_is_loaded_and_the_rest_works():
    """Also what a command itself imports of these packages."""
    less = "from recipe.lean_imports import import_less; import_less(); "
    assert printed(f"{less}{LIBRARIES}{PRINT}\n{WORKS}") == ""


@pytest.mark.soak
def test_a_program_that_imports_the_recipe_finds_libraries_whole():
    """And the names above are still what is heavy: else this file tests nothing."""
    assert printed(LIBRARIES + PRINT).split() == HEAVY


@pytest.mark.parametrize("command", ["train", "prepare", "bench"])
def test_commands_ask_for_it_before_they_load_them(command: str):
    text = (ROOT / "recipe" / f"{command}.py").read_text()
    assert 0 < text.index("import_less()") < text.index("\nfrom recipe.command_line import")
