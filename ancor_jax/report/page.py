"""The page as HTML: sections of text, tables and pictures, all in one file."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from ancor_jax.report import figures


class Cell(NamedTuple):
    """A cell of a table that is shaded by value."""

    text: str
    shade: float  # 0..1
    warm: bool = False  # shaded orange, not blue


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a heading; the first cell of each row names it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1  # number of columns from the left that contain words
    kind: ClassVar[str] = 'table'


class Key(NamedTuple):
    """An entry of a legend: the style of the points and their name."""

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
    """Figures next to each other if there is room."""

    charts: Sequence[Chart]
    wide: bool = False
    kind: ClassVar[str] = 'charts'


class Photo(NamedTuple):
    """A small picture in a strip."""

    source: str  # data URI
    alt: str
    caption: str = ''
    relation: str = ''  # 'same', 'coarse', 'other': how it is framed; '' for no frame
    small: bool = False  # it has few pixels, which are shown without smoothing


class Strip(NamedTuple):
    """Pictures that belong together."""

    title: str
    photos: Sequence[Photo]


@dataclasses.dataclass(frozen=True)
class Strips:
    """Rows of pictures; `layout` is 'neighbours' (one large, the others next to it) or 'pairs' (two by two)."""

    title: str
    layout: str
    strips: Sequence[Strip]
    kind: ClassVar[str] = 'strips'


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading of the page and its content."""

    anchor: str
    title: str
    text: Sequence[str]  # sentences
    blocks: Sequence[Table | Charts | Strips] = ()


def breakable(name: str) -> Any:
    """A name as HTML with line breaks allowed after separators, but not inside words."""
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
