"""The course of `sample.py`: what is missing is drawn by all ranks; then rank 0 makes the archive and the grid."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from recipe.progress import progress
from recipe.ranks import Ranks
from recipe.sampling.archives import KINDS, Archive
from recipe.sampling.distributed import Drawer, Wanted, draw, rows_of, share
from recipe.sampling.outputs import PictureFolder
from recipe.sampling.pictures import write_grid
from recipe.sampling.settings import DrawnBy

BEGIN = "sample/begin"  # what rank 0 tells the others
PARTS = ".parts"  # added to an archive's name: the folder of its pictures until all are there
GRID_MOST = 1000  # pictures in a grid


def is_archive(out: str) -> bool:
    """Whether the pictures go to one file, by its ending."""
    return PurePosixPath(out).suffix.lower() in KINDS


@dataclass(frozen=True)
class Grid:
    """A picture of the first GRID_MOST pictures.

    Attributes:
        address: of the file, local or s3://.
        columns: pictures in a row.
        zoom: side of the square that a pixel becomes.
    """

    address: str
    columns: int = 10
    zoom: int = 1


@dataclass(frozen=True)
class Job:
    """Pictures, and where they go.

    Attributes:
        wanted: the images, in order.
        out: a folder or an archive, local or s3://.
        settings: that they are drawn by.
        subdirs: a subfolder for each 1000 seeds.
        overwrite: replace what is not our own, or drawn otherwise.
        grid: None = none.
        batch_size: images in memory at once.
    """

    wanted: Sequence[Wanted]
    out: str
    settings: DrawnBy
    subdirs: bool = False
    overwrite: bool = False
    grid: Grid | None = None
    batch_size: int = 64

    @property
    def shown(self) -> Sequence[Wanted]:
        """The images in the grid."""
        return self.wanted[:GRID_MOST] if self.grid else []

    def run(self, drawer: Drawer, ranks: Ranks) -> str:
        """Draw what is missing, and make archive and grid; returns, on rank 0, what was done. Raises StorageError."""
        began = time.time()
        archive = Archive(self.out, self.wanted, self.settings) if is_archive(self.out) else None
        whole = archive is not None and archive.is_there(self.overwrite)
        place = self.out if archive is None else f"{self.out}{PARTS}"
        folder = PictureFolder(place, self.subdirs or archive is not None, self.settings)
        asked = self.shown if whole else self.wanted
        missing, mine = self._missing(asked, folder, drawer, ranks)
        started = time.monotonic()
        with progress(len(mine), "sample", "image", shown=ranks.first) as bar:
            for count in draw(drawer, mine, folder.write, self.batch_size):
                bar.update(count)
        ranks.gather()
        seconds = time.monotonic() - started
        if ranks.first:
            folder.sweep(asked, began)
            self._show(folder)
            if archive is not None:
                self._assemble(archive, whole, folder, began)
        if whole or missing == 0:
            return "all of them were there already"
        there = f"{len(asked) - missing} were there already, " if missing < len(asked) else ""
        return f"{there}{missing} drawn in {seconds:.1f} s, {missing / seconds:.2f} images/s"

    def _missing(
        self, asked: Sequence[Wanted], folder: PictureFolder, drawer: Drawer, ranks: Ranks
    ) -> tuple[int, list[Wanted]]:
        """How many images are missing (known to rank 0), and those that this rank is to draw.

        Rank 0 looks at all that is there, and refuses it before any rank has drawn.
        """
        rows = rows_of(drawer.device)
        if not ranks.first:
            ranks.hear(BEGIN)
            mine = folder.missing(share(asked, rows, ranks.rank, ranks.size), self.overwrite)
            return len(mine), mine
        missing = folder.missing(asked, self.overwrite)
        if missing:
            folder.begin(self.overwrite)
        ranks.tell(BEGIN, "")
        return len(missing), share(missing, rows, 0, ranks.size)

    def _show(self, folder: PictureFolder) -> None:
        if self.grid is not None:
            pngs = [folder.read(each) for each in self.shown]
            write_grid(pngs, self.grid.address, self.grid.columns, self.grid.zoom)

    def _assemble(self, archive: Archive, whole: bool, folder: PictureFolder, began: float) -> None:
        """Make the archive unless it is whole; only then its pictures go."""
        if not whole:
            archive.assemble(folder.read)
        archive.sweep(began)
        folder.clear()
