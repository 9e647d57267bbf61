"""Whether the image, as it was started, can train: `docker run IMAGE self-check`.

Compares the installed packages with the lock, imports what training imports, and looks at the user, the folders, the
shared memory and the GPUs. Needs no network. Exit status: 0 all is well, 1 something is not.
"""

import importlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOME = Path(__file__).parents[1]
MODULES = ["torch", "torchvision", "composer", "streaming", "boto3", "wandb", "mlflow", "mlxtend.data"]
OWN = ["recipe.training.run", "recipe.fetch", "recipe.prepare", "recipe.reconstruct", "recipe.sample"]
SHARED_MEMORY = 1e9  # bytes; below it, loaders and NCCL may run out of it


class Failure(Exception):
    """Something is not as it must be; the message says what, and what helps."""


class Note(Exception):
    """Something that may be meant so, and may not."""


def locked() -> Iterator[Requirement]:
    """The locked packages that this Python and this platform need, less those of development alone."""
    left_out = set((HOME / "launch" / "dev_only.txt").read_text().split())
    for line in (HOME / "requirements.lock").read_text().splitlines():
        if not line.startswith(" "):
            requirement = Requirement(line.removesuffix("\\"))
            needed = requirement.marker is None or requirement.marker.evaluate()
            if needed and canonicalize_name(requirement.name) not in left_out:
                yield requirement


def check_packages() -> str:
    problems, count = [], 0
    for requirement in locked():
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement} is missing")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                problems.append(f"{requirement.name} is {version}, locked is {requirement.specifier}")
    if problems:
        raise Failure(f"{'; '.join(problems)}; build the image again from requirements.lock")
    return f"{count} packages, each in its locked version"


def check_imports() -> str:
    for name in [*MODULES, *OWN]:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever an import may raise
            raise Failure(f"import {name}: {type(error).__name__}: {error}") from None
    missing = [name for name in ("composer", "torchrun") if shutil.which(name) is None]
    if missing:
        raise Failure(f"{', '.join(missing)}: not on PATH ({os.environ.get('PATH')})")
    return f"{len(MODULES)} libraries and the recipe; composer and torchrun are on PATH"


def check_user() -> str:
    if os.getuid() == 0:
        raise Failure("is root: what a run writes would belong to root; start with --user UID:GID, or with no --user")
    return f"{os.getuid()}:{os.getgid()}, not root"


def check_folders() -> str:
    folders = [HOME / "data", HOME / "runs", Path.home(), Path(tempfile.gettempdir())]
    for folder in folders:
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise Failure(
                f"{folder}: {error.strerror} for user {os.getuid()}; mount a folder that this user may write to, "
                "or start with --user \"$(id -u):$(id -g)\" of the folder's owner"
            ) from None  # fmt: skip
    return f"{', '.join(map(str, folders))}: can be written to"


def check_shared_memory() -> str:
    space = shutil.disk_usage("/dev/shm")
    size = f"{space.total / 1e9:.1f} GB in /dev/shm"
    if space.total < SHARED_MEMORY:
        raise Note(f"{size}: little for data loaders and NCCL; start with --shm-size=16g")
    return size


def check_gpus() -> str:
    import torch
    from torch.version import cuda

    if not torch.cuda.is_available():
        raise Note("none is visible: training would run on the CPU. To see the host's, start with --gpus all")
    names = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(256, 256, dtype=torch.float16, device=f"cuda:{index}")
        if not bool((ones @ ones == 256).all()):
            raise Failure(f"GPU {index} ({torch.cuda.get_device_name(index)}) multiplies wrongly")
        names.append(torch.cuda.get_device_name(index))
    return f"{len(names)} with CUDA {cuda}: {', '.join(names)}"


CHECKS: dict[str, Callable[[], str]] = {
    "packages": check_packages,
    "imports": check_imports,
    "user": check_user,
    "folders": check_folders,
    "shared memory": check_shared_memory,
    "GPUs": check_gpus,
}


def main() -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    version = importlib.metadata.version("edm2-recipe")
    print(f"edm2-recipe {version}, commit {os.environ.get('EDM2_REVISION', 'unknown')}, Python {python}")
    failed = False
    for name, check in CHECKS.items():
        try:
            print(f"  ok      {name}: {check()}", flush=True)
        except Note as note:
            print(f"  note    {name}: {note}", flush=True)
        except Failure as failure:
            failed = True
            print(f"  FAILED  {name}: {failure}", flush=True)
    print("self-check failed" if failed else "self-check passed")
    sys.exit(failed)


if __name__ == "__main__":
    main()
