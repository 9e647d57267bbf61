"""The folder of a run for tests of what is written there: the one place in the tests that knows how one is made."""

from pathlib import Path

from recipe.storage.local import LocalPlace
from recipe.training.folder import RunFolder


def run_folder(path: Path) -> RunFolder:
    """The folder of a run at `path`, on this machine."""
    return RunFolder(LocalPlace(path), path)
