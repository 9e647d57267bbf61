"""Labels in files beside each picture, as WebDataset stores them: 000001.jpg with 000001.cls or 000001.json."""

import json
import posixpath
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from recipe.preparation.sources.items import ItemError, PreparationError, shown
from recipe.preparation.sources.label_files import LABEL_COLUMNS, json_object, label_text
from recipe.preparation.sources.labels import FileNames, Labels, Pairs, of_files
from recipe.preparation.sources.layout import looks_like_picture

CLASS, DESCRIPTION = "cls", "json"  # endings of files that may hold a label
LABEL_FILES = (f".{CLASS}", f".{DESCRIPTION}")
Read = Callable[[str], bytes]


class Sidecars:
    """The files of a source that belong to a picture of it, by the picture and by their ending.

    Args:
        names: all files of the source.
        in_tar: whatever has a picture's name belongs to it; if not, that has to be said by a file `NAME.cls`.

    Raises:
        PreparationError: files that belong to several pictures of one sample.
    """

    def __init__(self, names: Sequence[str], in_tar: bool, where: str):
        self.where = where
        self.by_picture: Mapping[str, dict[str, str]] = defaultdict(dict)
        others = [name for name in names if not _is_picture(name)]
        if not others or not (in_tar or any(_ending(name) == CLASS for name in others)):
            return
        pictures = [name for name in names if _is_picture(name)]
        stems, samples = _grouped(pictures, _stem), _grouped(pictures, _sample)
        for name in others:
            owners = stems.get(_stem(name)) or samples.get(_sample(name)) or []
            if len(owners) > 1:
                raise PreparationError(
                    f"{where}: {shown(name)} belongs to several pictures, {shown(owners[0])} and {shown(owners[1])}; "
                    "keep one picture of each sample"
                )
            if owners:
                self.by_picture[owners[0]][_ending(name)] = name
        self.endings = sorted({ending for found in self.by_picture.values() for ending in found})

    def files(self) -> set[str]:
        """All files that belong to a picture."""
        return {name for found in self.by_picture.values() for name in found.values()}

    def labels(self, pictures: Sequence[str], read: Read) -> Labels | None:
        """What the files say are the classes of the pictures; None if they speak of none.

        Raises:
            PreparationError: a picture of several has no label, or a file cannot be read as one.
        """
        pairs: Pairs = []
        if CLASS in self.endings:
            pairs = [
                (name, self._class(found[CLASS], read)) for name, found in self.by_picture.items() if CLASS in found
            ]
        elif DESCRIPTION in self.endings:
            described = [
                (name, self._described(found[DESCRIPTION], read))
                for name, found in self.by_picture.items()
                if DESCRIPTION in found
            ]
            pairs = [(name, label) for name, (is_there, label) in described if is_there]
        if not pairs:
            return None
        labels = of_files(pairs, FileNames(pictures), self.where)
        used = CLASS if CLASS in self.endings else DESCRIPTION
        return Labels(labels.ids, labels.names, [*self.remarks(used), *labels.remarks])

    def remarks(self, used: str = "") -> list[str]:
        """What of the samples is used."""
        unused = [ending for ending in self.endings if ending != used]
        labels = f"labels are those of the files .{used}" if used else "its samples have no labels"
        return [f"{self.where}: {labels}" + (f"; not used: .{', .'.join(unused)}" if unused else "")]

    def _class(self, name: str, read: Read) -> str:
        return label_text(self._read(name, read), f"{self.where}/{shown(name)}").strip()

    def _described(self, name: str, read: Read) -> tuple[bool, object]:
        """Whether a file of JSON has a label, and which."""
        where = f"{self.where}/{shown(name)}"
        try:
            content = json_object(label_text(self._read(name, read), where), where)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PreparationError(f"{where}: is not valid JSON ({error}); correct it") from None
        keys = [key for key in LABEL_COLUMNS if key in content] if isinstance(content, dict) else []
        return (True, content[keys[0]]) if keys else (False, None)

    def _read(self, name: str, read: Read) -> bytes:
        try:
            return read(name)
        except ItemError as error:
            raise PreparationError(f"{self.where}/{shown(name)}: {error}; repair it or leave it out") from None


def _is_picture(name: str) -> bool:
    return posixpath.splitext(name)[1] != "" and looks_like_picture(name)


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1][1:].lower()


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _sample(name: str) -> str:
    """The name up to the first dot of its last part: how WebDataset groups files into samples."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.split(".")[0])


def _grouped(names: Sequence[str], key: Callable[[str], str]) -> Mapping[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return groups
