"""`csv:PATH`: a file with a split column or without, a folder of train.csv, validation.csv and test.csv, or TSV."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from tasks.address import located
from tasks.base import SPLITS, TaskError, TaskSpec
from tasks.cache import sha256_of
from tasks.sources import NAMES, Opening, which
from tasks.sources.tables import Columns, Table, source_of
from tasks.splits import Source

SUFFIXES = (".csv", ".tsv")
SPLIT_COLUMN = "split"


def open_source(opening: Opening, path: Path) -> Source:
    """The table's splits as the model takes them; see `tasks.sources.tables`."""
    return source_of(opening, _table(opening.spec, path))


def _table(spec: TaskSpec, path: Path) -> Table:
    if not path.exists():
        raise TaskError(f"{path}: is not there; correct task.data", "data")
    files = _files(spec, path)
    columns = header(files["train"])
    name = f"csv:{path.name}"
    if len(files) == 1 and (column := _split_column(columns)):
        return _by_column(spec, files["train"], columns, column, name)
    read = {split: functools.partial(_read, file, columns) for split, file in files.items()}
    return Table(name, columns, read, {split: sha256_of(file) for split, file in files.items()})


def _files(spec: TaskSpec, path: Path) -> dict[str, Path]:
    """Split -> file. A file is the training split, with the others where the study names them."""
    if path.is_dir():
        there = sorted(each.name for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
        found = {split: _in_folder(spec, split, there, path) for split in SPLITS}
        if found["train"] is None:
            raise TaskError(
                f"{path}: has no train.csv; it holds {', '.join(there) or 'no .csv file'}; name it with task.train",
                "data",
            )
        return {split: path / file for split, file in found.items() if file}
    if _split_column(header(path)):
        return {"train": path}
    files = {"train": path}
    for split in SPLITS:
        if named := getattr(spec, split):
            files[split] = next((f for f in (located(spec, named), path.parent / named) if f.is_file()), Path())
            if files[split] == Path():
                raise TaskError(f"task.{split}: {named!r} is no file in {path.parent} or {spec.folder}", "data")
    return files


def first_file(spec: TaskSpec, path: Path) -> Path:
    """The file that the training split is read from."""
    return _files(spec, path)["train"]


def _in_folder(spec: TaskSpec, split: str, there: list[str], path: Path) -> str | None:
    if getattr(spec, split):
        return which(spec, split, there, str(path))
    stems = {Path(name).stem.lower(): name for name in there}
    return next((stems[name] for name in NAMES[split] if name in stems), None)


def _split_column(columns: tuple[str, ...]) -> str:
    return next((name for name in columns if name.lower() == SPLIT_COLUMN), "")


def header(file: Path) -> tuple[str, ...]:
    """The column names; raises TaskError when the first line holds none."""
    import csv

    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            columns = next(csv.reader(lines, delimiter=_delimiter(file)), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{file}: cannot be read as text in UTF-8: {error}", "data") from None
    if len(columns) == 1 and ";" in columns[0]:
        raise TaskError(f"{file}: columns are parted by ';'; write them with ',' or tabs (.tsv)", "data")
    if not columns or len(set(columns)) < len(columns):
        raise TaskError(f"{file}: its first line must name the columns, each once; it is {','.join(columns)!r}", "data")
    return tuple(columns)


def _delimiter(file: Path) -> str:
    return "\t" if file.suffix.lower() == ".tsv" else ","


def _by_column(spec: TaskSpec, file: Path, columns: tuple[str, ...], column: str, name: str) -> Table:
    values = _read(file, columns)[column]
    there = sorted({str(value) for value in values})
    named = {split: which(spec, split, there, f"column {column} of {file.name}") for split in SPLITS}
    if named["train"] is None:
        raise TaskError(
            f"{file.name}: column {column} names no training split; it holds {', '.join(there[:8])}; name it with "
            "task.train",
            "data",
        )

    def read(value: str) -> Columns:
        every = _read(file, columns)
        rows = np.array([str(each) == value for each in every[column]])
        return {each: array[rows] for each, array in every.items() if each != column}

    digest = sha256_of(file)
    reads = {split: functools.partial(read, value) for split, value in named.items() if value is not None}
    rest = tuple(each for each in columns if each != column)
    return Table(name, rest, reads, {split: f"{digest} {named[split]}" for split in reads})


@functools.lru_cache(maxsize=2)
def _parsed(file: Path, modified: int, size: int) -> Any:
    import pandas as pd

    try:
        # Empty fields of text columns are text, and "NA" may be a word.
        return pd.read_csv(file, sep=_delimiter(file), keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise TaskError(f"{file}: cannot be read: {' '.join(str(error).split())}", "data") from None


def _read(file: Path, columns: tuple[str, ...]) -> Columns:
    """The columns: numbers as int64 or float64, all else as objects; raises TaskError for missing ones."""
    status = file.stat()
    table = _parsed(file, status.st_mtime_ns, status.st_size)
    if missing := [name for name in columns if name not in table.columns]:
        raise TaskError(f"{file}: has no column {', '.join(missing)}; it has {', '.join(table.columns)}", "data")
    if not len(table):
        raise TaskError(f"{file}: has no rows", "data")
    found = {}
    for name in columns:
        series = table[name]
        numeric = series.dtype.kind in "iufb" if hasattr(series.dtype, "kind") else False
        found[name] = series.to_numpy() if numeric else series.astype(object).to_numpy()
    return found
