"""The front as lines of a terminal of any width: what matters most is kept, and no value is ever cut.

Plain data, so that a finished sweep keeps it and shows it again without reading its record.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

KNEE, UNCONFIRMED = "◆", "○"
_GAP = 2  # columns between two of the table's
_LEAST, _READABLE = 14, 22  # columns of the recipe: with the columns that are always shown, with more of them
_ALWAYS = 3  # columns of the lowest ranks that are shown as long as the recipe has _LEAST


@dataclass(frozen=True)
class Column:
    """One figure of every row as people read it. `rank`: the lowest are shown on the narrowest terminal."""

    head: str
    cells: tuple[str, ...]
    rank: int

    @property
    def width(self) -> int:
        """Columns of a terminal."""
        return max(map(cell_len, (self.head, *self.cells)))


@dataclass(frozen=True)
class Listing:
    """`marks`, `trials`, `recipes`: one per row. `columns`: in the order shown. `below`: sentences under the table."""

    title: str
    marks: tuple[str, ...]
    trials: tuple[str, ...]
    recipes: tuple[str, ...]
    columns: tuple[Column, ...]
    below: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stored with the sweep."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Listing:
        """What `to_dict` gave, or its JSON, -> Listing."""
        columns = tuple(Column(**{**each, "cells": tuple(each["cells"])}) for each in values["columns"])
        rest = {name: tuple(values[name]) for name in ("marks", "trials", "recipes", "below")}
        return Listing(title=values["title"], columns=columns, **rest)

    def fitted(self, width: int) -> tuple[list[Column], int]:
        """(the columns that a terminal `width` wide has room for, the width that is left for the recipe)."""
        room, chosen = width - self._left(), list[Column]()
        for column in sorted(self.columns, key=lambda column: column.rank):
            least = min(_LEAST if len(chosen) < _ALWAYS else _READABLE, self._recipe())
            if room - column.width - _GAP < least:
                break
            chosen.append(column)
            room -= column.width + _GAP
        return [column for column in self.columns if column in chosen], max(min(room, self._recipe()), 8)

    def _left(self) -> int:
        return 2 + max(map(len, ("Trial", *self.trials))) + _GAP

    def _recipe(self) -> int:
        return max(map(cell_len, ("Recipe", *self.recipes)))

    def lines(self, width: int) -> Iterator[Text]:
        """The table, each line at most `width` columns wide."""
        if not self.trials:
            return
        columns, recipe = self.fitted(width)
        number = self._left() - 2 - _GAP
        heads = "".join(f"{'':{_GAP}}{column.head:>{column.width}}" for column in columns)
        head = f"  {'Trial':>{number}}{'':{_GAP}}{'Recipe':<{recipe}}{heads}"
        yield Text(head, "bold")
        yield Text("─" * len(head), "dim")
        for row, (mark, trial) in enumerate(zip(self.marks, self.trials, strict=True)):
            style = "bold" if mark == KNEE else ""
            first, *rest = textwrap.wrap(self.recipes[row], recipe) or [""]
            figures = "".join(f"{'':{_GAP}}{_right(column.cells[row], column.width)}" for column in columns)
            yield Text(f"{mark:<1} {trial:>{number}}{'':{_GAP}}{first:<{recipe}}{figures}", style)
            for more in rest:
                yield Text(f"{'':{self._left()}}{more}", style)

    def show(self, console: Console) -> None:
        """Print title, table and what stands below."""
        console.print(Text(self.title, "bold"), soft_wrap=not console.is_terminal)
        console.print()
        for line in self.lines(console.width):
            console.print(line, no_wrap=True, overflow="fold")
        console.print()
        for sentence in self.below:
            console.print(Text(sentence), soft_wrap=not console.is_terminal)


def _right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
