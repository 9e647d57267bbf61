"""Label files as people and tools write them: tables (CSV and its like), JSON, and JSON lines."""

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from recipe.preparation.sources.items import PreparationError, shown
from recipe.preparation.sources.labels import NUMBER, FileNames, Pairs
from recipe.preparation.sources.layout import looks_like_picture

FILE_COLUMNS = (
    "file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_name", "image_file",
    "image_id", "img", "img_path", "img_name", "img_id", "name", "fname", "id", "key",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "class_id", "classid", "class_name", "class_label", "category", "category_id",
    "category_name", "label_id", "label_name", "target", "cls", "y",
)  # fmt: skip
DELIMITERS = ",;\t|"
LOOKED_AT = 1000  # rows that decide which column names the files
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
Row = Sequence[Any]


class NoLabels(PreparationError):
    """A table of files has no column that is known to hold labels."""


def label_text(data: bytes, where: str) -> str:
    """The text of a label file. Raises PreparationError."""
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise PreparationError(f"{where}: cannot be read (it is not UTF-8 text); name a CSV or JSON file") from None


def read_label_file(path: Path, where: str) -> bytes:
    """What a label file holds. Raises PreparationError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PreparationError(f"{where}: cannot be read ({error.strerror}); name a CSV or JSON file") from None


def label_pairs(
    text: str, suffix: str, files: FileNames, where: str, only_known: bool = False
) -> tuple[Pairs, list[str]]:
    """The entries of a label file, and remarks on how it was understood.

    Tables: two columns, file and label, or any columns with a header such as `file,label`; between them commas,
    semicolons, tabs, bars, or blanks. JSON: {name: label}, [[name, label], ...], [{"file": name, "label": label}, ...],
    or one of these below the key "labels". JSON lines: the same entries, one a line.

    Args:
        suffix: of the file's name.
        only_known: refuse a column of labels whose name is not known.

    Raises:
        PreparationError: a file that cannot be read so.
        NoLabels: a table without a column of labels.
    """
    if suffix in (".json", ".jsonl", ".ndjson") or (suffix != ".csv" and text.lstrip()[:1] in ("{", "[")):
        content = _json(text, where)
        lines = suffix in (".jsonl", ".ndjson") and isinstance(content, dict)  # a single one
        return _json_pairs([content] if lines else content, files, where, only_known)
    rows = _rows(text, where)
    return _table_pairs(rows, files, where, only_known) if rows else ([], [])


def json_object(text: str, where: str) -> Any:
    """JSON in which no object says a key twice with different values, of which Python would keep the last.

    Raises:
        ValueError: it is no JSON.
        PreparationError: such an object.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found and found[key] != value:
                raise PreparationError(
                    f"{where}: lists {shown(key)} twice, with different labels; remove one of the two"
                )
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=once)


def _json(text: str, where: str) -> Any:
    try:
        return json_object(text, where)
    except RecursionError:
        raise PreparationError(f"{where}: is not valid JSON (it is nested too deeply); correct it") from None
    except PreparationError:
        raise
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or lines[0].strip()[-1:] not in ("}", "]"):
            raise PreparationError(f"{where}: is not valid JSON ({error}); correct it") from None
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entries += [json_object(line, where)] if line.strip() else []
        except PreparationError:
            raise
        except (ValueError, RecursionError) as error:
            raise PreparationError(f"{where}: line {number} is not valid JSON ({error}); correct it") from None
    return entries


def _json_pairs(content: Any, files: FileNames, where: str, only_known: bool) -> tuple[Pairs, list[str]]:
    if isinstance(content, dict) and isinstance(content.get("labels"), list | dict):
        content = content["labels"]
    if isinstance(content, dict) and not _is_record(content):
        return list(content.items()), []
    entries = content if isinstance(content, list) else [content]
    if entries and all(isinstance(entry, dict) for entry in entries):
        keys = list(dict.fromkeys(key for entry in entries for key in entry))
        rows = [keys, *([entry.get(key) for key in keys] for entry in entries)]
        return _table_pairs(rows, files, where, only_known, keyed=True)
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise PreparationError(f"{where}: {json.dumps(entry)[:80]} is not [file name, label]; correct it")
    return [(entry[0], entry[1]) for entry in entries], []


def _is_record(entry: Mapping[str, Any]) -> bool:
    keys = set(map(_plain, entry))
    return bool(keys & set(FILE_COLUMNS) and keys & set(LABEL_COLUMNS))


def _rows(text: str, where: str) -> list[list[str]]:
    """The cells of a table; of the delimiters, the first by which every line has two columns."""
    first: list[list[str]] = []
    for delimiter in DELIMITERS:
        try:
            found = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter != "\t")
            rows = [[cell.strip() for cell in row] for row in found if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise PreparationError(f"{where}: is not a table ({error}); correct it") from None
        if all(len(row) > 1 for row in rows):
            return rows
        first = first or rows
    spaced = [line.strip().rsplit(None, 1) for line in text.splitlines() if line.strip()]
    if all(len(row) == 2 for row in spaced) and not any(len(row) > 1 for row in first):
        return spaced
    short = next(row for row in first if len(row) < 2)
    raise PreparationError(f"{where}: the line {','.join(short)!r} has too few columns; write file,label")


def _table_pairs(
    rows: Sequence[Row], files: FileNames, where: str, only_known: bool, keyed: bool = False
) -> tuple[Pairs, list[str]]:
    """`keyed`: the first row is known to hold the names of the columns."""
    file, label, has_header, remarks = _columns(rows, files, where, only_known, keyed)
    short = next((row for row in rows if len(row) <= max(file, label)), None)
    if short is not None:
        raise PreparationError(f"{where}: the line {','.join(map(str, short))!r} has too few columns; write file,label")
    pairs = [(row[file], row[label]) for row in rows[has_header:]]
    wrong = next((name for name, _ in pairs if not isinstance(name, str)), "")
    if not isinstance(wrong, str):
        raise PreparationError(f"{where}: {json.dumps(wrong)[:80]} is no name of a file; correct it")
    return pairs, remarks


def _columns(
    rows: Sequence[Row], files: FileNames, where: str, only_known: bool, keyed: bool
) -> tuple[int, int, bool, list[str]]:
    """Which columns hold the file and the label, whether the first row is a header, and remarks."""
    header = [_plain(cell) for cell in rows[0]]
    known = [header.index(name) for name in LABEL_COLUMNS if name in header]
    named = [header.index(name) for name in FILE_COLUMNS if name in header]
    matches = _matches(rows, files)
    most = max(range(len(header)), key=lambda column: (matches[column], column in named, -column))
    file = most if matches[most] or not named else named[0]
    labels = [column for column in known if column != file]
    others = [column for column in range(len(header)) if column != file]
    has_header = keyed or bool(labels and file in named) or _is_header(rows, file, labels or others, files)
    cells = ", ".join(shown(str(cell)) or '""' for cell in rows[0])
    if has_header and labels:
        unused = f"{where}: the column {rows[0][labels[0]]} is used, not {', '.join(rows[0][c] for c in labels[1:])}"
        return file, labels[0], True, [unused] if len(labels) > 1 else []
    if only_known:
        raise NoLabels(f"{where}: has no column of labels among {cells}; call one of them label")
    if len(others) == 1:
        remark = f"{where}: {cells} in the first line are taken for names of columns, not for a file and its class"
        return file, others[0], has_header, [remark] if has_header and not keyed else []
    if has_header:
        raise NoLabels(f"{where}: has the columns {cells}; call the one that is meant label")
    raise PreparationError(
        f"{where}: has {len(header)} columns, and the first line, {cells}, does not say what they are; put "
        "file,label or the like before it"
    )


def _plain(cell: object) -> str:
    return str(cell).strip().lower().replace(" ", "_").replace("-", "_")


def _matches(rows: Sequence[Row], files: FileNames) -> Mapping[int, int]:
    """How well the first cells of each column name files: names without their ending may be numbers, and count less."""
    found: dict[int, int] = {}
    for column in range(len(rows[0])):
        cells = [row[column] for row in rows[:LOOKED_AT] if len(row) > column and isinstance(row[column], str)]
        names = [(cell, files.find(cell)) for cell in cells]
        found[column] = sum(2 if name.endswith(cell[-4:]) else 1 for cell, name in names if name is not None)
    return found


def _is_header(rows: Sequence[Row], file: int, labels: Sequence[int], files: FileNames) -> bool:
    """Whether the first row, which has no name that is known for files, is one of names all the same."""
    name = str(rows[0][file])
    if files.find(name) is not None or (PurePosixPath(name).suffix and looks_like_picture(name)):
        return False
    for column in labels:
        label = str(rows[0][column])
        elsewhere = any(len(row) > column and str(row[column]) == label for row in rows[1:])
        if NUMBER.fullmatch(label) or elsewhere:
            return False
    return len(rows) > 1
