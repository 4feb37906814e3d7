"""Tables for a terminal, as lines: rich draws them, and nothing is printed here."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

import msgspec
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from registry_gc.wording.shown import shown

_WIDE = 120  # columns of a terminal
_FOLDED = 8
# The box and the padding beside each column.
_BESIDE = 2


class Column(msgspec.Struct, frozen=True):
    """One column of a table.

    ``number``: it holds numbers, which stand at its right. ``fold``: long values may take several
    lines; all others are whole on any terminal. ``wide``: shown only where there is much room.
    ``style``: where colour is shown.
    """

    heading: str
    number: bool = True
    fold: bool = False
    wide: bool = False
    style: str = ""


class TableStyle(msgspec.Struct, frozen=True):
    """How wide the lines may be, and whether the reader's terminal shows colour."""

    width: int = 160
    colour: bool = False

    @property
    def wide(self) -> bool:
        """Whether there is room for every column."""
        return self.width >= _WIDE


def table(
    style: TableStyle, title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]
) -> Table:
    """A table; every cell is shown as it is, and never read as markup."""
    shown_here = [style.wide or not column.wide for column in columns]
    cells = [[Text(shown(value)) for value in compress(row, shown_here)] for row in rows]
    drawn = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for at, column in enumerate(compress(columns, shown_here)):
        widest = max([len(column.heading), *(row[at].cell_len for row in cells)])
        drawn.add_column(
            column.heading,
            justify="right" if column.number else "left",
            style=column.style,
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
            # A number that is cut is a wrong one, and a date or a state says nothing.
            min_width=min(widest, _FOLDED) if column.fold else widest,
        )
    for row in cells:
        drawn.add_row(*row)
    return drawn


def lines_of(style: TableStyle, *drawn: Table | Text) -> Iterator[str]:
    """What was drawn, line by line; longer ones than *style* has room for, where cells need it."""
    needed = [
        sum(column.min_width or 0 for column in part.columns) + _BESIDE * len(part.columns)
        for part in drawn
        if isinstance(part, Table)
    ]
    console = Console(
        file=io.StringIO(),
        width=max([style.width, *needed]),
        force_terminal=style.colour,
        no_color=None if style.colour else True,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(Group(*drawn))
    return (line.rstrip() for line in capture.get().splitlines())
