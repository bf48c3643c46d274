"""A report as one self-contained HTML file: style and images inside it, no script, nothing fetched.

Readable on a phone, in the dark and on paper; whatever text it shows is escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import jinja2

from simflow_plugin import __version__
from simflow_plugin.files import write_text_atomically

Emphasis = Literal["none", "best", "warning"]


@dataclass(frozen=True)
class NumberTile:
    """A key number, formatted; `note`: the conditions it was measured under, or a number to hold it against."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Tiles:
    """A row of key numbers."""

    tiles: Sequence[NumberTile]
    kind: ClassVar = "tiles"


@dataclass(frozen=True)
class Cell:
    """A table cell with more than text.

    Args:
        note: small print below it, an interval or a warning.
        emphasis: `best` in its row or column, or a `warning` that the number is not to be trusted.
    """

    text: str
    note: str = ""
    emphasis: Emphasis = "none"


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; the others are numbers, aligned to the right, or prose, to the left.

    Args:
        rows: each as long as `columns`; strings or `Cell`s.
        notes: below the table, one paragraph each.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    notes: Sequence[str] = ()
    kind: ClassVar = "table"

    def cells(self) -> list[list[Cell]]:
        """Return the rows with every cell a `Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def is_prose(self, column: int) -> bool:
        """Return whether a column holds small print alone: it is read, not compared, and aligned to the left."""
        cells = [row[column] for row in self.cells()]
        return column > 0 and any(c.note for c in cells) and not any(c.text for c in cells)


@dataclass(frozen=True)
class Figure:
    """An image with its caption.

    Args:
        caption: what is shown and how to read it.
        style: `plot` is recoloured in the dark and drawn at two pixels a point; `pixels` keeps hard pixel
            edges.
    """

    png: bytes
    caption: str
    style: Literal["plot", "pixels"] = "plot"
    kind: ClassVar = "figure"

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @property
    def display_size(self) -> tuple[int, int]:
        """Return (width, height) in CSS pixels."""
        width, height = (int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20))  # of the IHDR chunk
        return (width // 2, height // 2) if self.style == "plot" else (width, height)


@dataclass(frozen=True)
class Plots:
    """Small plots side by side where there is room and below each other on a phone, with one legend and one caption.

    Args:
        plots: (title, PNG at two pixels a point) of each.
        legend: (name, colour as #rrggbb) of each line; empty where there is one.
    """

    plots: Sequence[tuple[str, bytes]]
    legend: Sequence[tuple[str, str]] = ()
    caption: str = ""
    kind: ClassVar = "plots"

    @property
    def figures(self) -> list[Figure]:
        """Return each plot by itself, captioned by its title."""
        return [Figure(png, title) for title, png in self.plots]


@dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` is set apart."""

    text: str
    is_warning: bool = False
    kind: ClassVar = "text"


@dataclass(frozen=True)
class Collapsible:
    """Preformatted text behind a heading that opens it: the resolved configuration, say."""

    heading: str
    text: str
    kind: ClassVar = "collapsible"


Part = Tiles | Table | Figure | Plots | Text | Collapsible


@dataclass(frozen=True)
class Section:
    """Parts under one heading; an empty title has none."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def write_report(path: Path, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write the report, in place of an older one, all at once; `subtitle`: one line, what was run on what."""
    write_text_atomically(path, render_report(title, sections, subtitle))


def render_report(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """Return the HTML text of a report, sections without parts left out; see `write_report`."""
    shown = [section for section in sections if section.parts]
    return _template().render(title=title, subtitle=subtitle, sections=shown, version=__version__)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html")
