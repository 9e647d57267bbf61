"""The folder of a run for tests of what is written there: the one place in the tests that knows how one is made."""

from pathlib import Path

from helpers.commands import ROOT
from recipe.configuration.reader import read_config
from recipe.training.folder import RunFolder


def run_folder(path: Path) -> RunFolder:
    """The folder of a run at `path`, on this machine."""
    return RunFolder(read_config([str(ROOT / "yamls" / "edm2.yaml"), f"save_folder={path}"]))
