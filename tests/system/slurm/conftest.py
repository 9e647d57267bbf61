import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short path: sockets lie in the folders of jobs below it, and their paths may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="edm2-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
