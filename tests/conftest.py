import os

# Tests, their ranks and their loader workers share few cores: spinning OpenMP threads would slow all of them a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded digits at 8x8 pixels as MDS shards; read-only."""
    from recipe.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out, resolution=8, encoding="png")
    return out
