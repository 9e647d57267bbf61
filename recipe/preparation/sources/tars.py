"""Several tars that are one data set: a folder of them, or a name with braces such as data-{000000..000099}.tar."""

import os
import re
from pathlib import Path

from recipe.preparation.sources.items import PreparationError, shown
from recipe.preparation.sources.layout import different_parts, looks_like_picture

TAR = re.compile(r".+\.(tar|tar\.(gz|bz2|xz)|tgz)", re.IGNORECASE)
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST_TARS = 1_000_000


def expanded(text: str) -> list[str]:
    """The names that a name with braces stands for: {00..12} is 00 to 12, {a,b} is a and b; without, the name itself.

    Raises:
        PreparationError: a range that falls or is very long, or braces that are no list.
    """
    found = BRACES.search(text)
    if found is None:
        return [text]
    inside = RANGE.fullmatch(found[1])
    if inside is not None:
        first, last = inside.groups()
        if not 0 <= int(last) - int(first) < MOST_TARS:
            raise PreparationError(f"{text}: {found[0]} must rise, by less than {MOST_TARS}")
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        raise PreparationError(f"{text}: {found[0]} is neither a range such as {{000..123}} nor a list such as {{a,b}}")
    rests = expanded(text[found.end() :])
    return [text[: found.start()] + choice + rest for choice in choices for rest in rests]


def tars_of_braces(text: str) -> list[Path] | None:
    """The tars that a name with braces stands for; None if it has none, or is a name that is there.

    Raises:
        PreparationError: one of them is missing.
    """
    if BRACES.search(text) is None or os.path.exists(text):
        return None
    paths = [Path(name) for name in expanded(text)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise PreparationError(
            f"{text}: {len(missing)} of {len(paths)} files are missing, the first {missing[0]}; check the name"
        )
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        raise PreparationError(f"{text}: two of the files have one name, {names[0]}; prepare each folder by itself")
    return sorted(paths)


def tars_of_folder(folder: Path) -> tuple[list[Path], str] | None:
    """The tars of a folder that holds no pictures beside them, and a remark on other files; None for other folders.

    Raises:
        PreparationError: they are different parts of a data set, such as a-train-0.tar and a-val-0.tar.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError:
        return None  # whoever reads it says why
    tars = [name for name in names if TAR.fullmatch(name)]
    others = [name for name in names if name not in set(tars)]
    if not tars or any((folder / name).is_dir() or _is_picture(name) for name in others):
        return None
    parts = different_parts(tars)
    if parts:
        raise PreparationError(
            f"{folder}: {' and '.join(map(shown, parts))} are of different parts of a data set; name those of one, "
            f"such as {folder}/NAME-{{000..123}}.tar"
        )
    remark = f"{folder}: its tars are read, not {', '.join(map(shown, others[:3]))}" if others else ""
    return [folder / name for name in tars], remark


def _is_picture(name: str) -> bool:
    return bool(Path(name).suffix) and looks_like_picture(name)
