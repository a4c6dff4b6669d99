"""The page as HTML: sections of text, tables and pictures; everything is in the one file."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from ancor_jax.report import figures


class Cell(NamedTuple):
    """Of a table that is shaded by value."""

    text: str
    shade: float  # 0..1
    warm: bool = False  # shaded orange, not blue


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a heading; the first cell of each row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1  # the columns from the left that hold words, not numbers
    kind: ClassVar[str] = 'table'


class Key(NamedTuple):
    """An entry of a legend: 'how the points look' and what they are."""

    style: figures.Style
    name: str


class Chart(NamedTuple):
    """A figure."""

    source: str  # data URI
    alt: str
    title: str = ''
    legend: Sequence[Key] = ()


@dataclasses.dataclass(frozen=True)
class Charts:
    """Figures beside one another where there is room."""

    charts: Sequence[Chart]
    wide: bool = False
    kind: ClassVar[str] = 'charts'


class Photo(NamedTuple):
    """A small picture in a strip."""

    source: str  # data URI
    alt: str
    caption: str = ''
    relation: str = ''  # 'same', 'coarse', 'other': how it is framed; '' for no frame
    small: bool = False  # it has few pixels: they are shown as they are


class Strip(NamedTuple):
    """Pictures that belong together."""

    title: str
    photos: Sequence[Photo]


@dataclasses.dataclass(frozen=True)
class Strips:
    """Rows of pictures; `layout` is 'neighbours' (one large, the others beside it) or 'pairs' (two by two)."""

    title: str
    layout: str
    strips: Sequence[Strip]
    kind: ClassVar[str] = 'strips'


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading of the page with what stands under it."""

    anchor: str
    title: str
    text: Sequence[str]  # sentences
    blocks: Sequence[Table | Charts | Strips] = ()


def breakable(name: str) -> Any:
    """A name as HTML that may be broken after the signs that join its words, and nowhere inside a word."""
    import markupsafe

    return markupsafe.Markup('<wbr>').join(re.split(r'(?<=[_/|])(?=[^_/|])', name))


def render(title: str, settings: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The page; every name in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('ancor_jax.report', '.'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters['breakable'] = breakable
    return environment.get_template('page.html.j2').render(title=title, settings=settings, sections=sections)
