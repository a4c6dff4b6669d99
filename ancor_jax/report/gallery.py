"""A page of pictures in groups: one HTML file that needs no network."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ancor_jax.report.page import breakable

_SIDE = 144  # pixels of a thumbnail's longer side


class Picture(NamedTuple):
    """One image of a group."""

    image: np.ndarray  # uint8 [H, W, 3]
    title: str  # what it is, for those who do not see it
    caption: str  # below it
    mark: str = ''  # 'right' or 'wrong', where the truth is known


class Group(NamedTuple):
    """A class."""

    name: str
    examples: list[Picture]  # that define it
    members: list[Picture]  # that were sorted to it
    total: int  # number of members, shown or not


class Matrix(NamedTuple):
    """Numbers of images by true class (rows) and answer (columns)."""

    truths: Sequence[str]
    answers: Sequence[str]
    counts: Sequence[Sequence[int]]


def page(
    title: str, subtitle: str, groups: list[Group], unreadable: Sequence[str] = (), matrix: Matrix | None = None
) -> str:
    """The page as HTML: a section a group, the examples before the members; last the images that cannot be read."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('ancor_jax', 'report'), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {'thumbnail': thumbnail, 'breakable': breakable}
    return environment.get_template('gallery.html.j2').render(
        title=title, subtitle=subtitle, groups=groups, unreadable=unreadable, matrix=matrix
    )


def thumbnail(image: np.ndarray, side: int = _SIDE) -> str:
    """A data URI of an image uint8 [H, W, 3], no larger than `side` pixels; small images stay as they are."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    encoded = io.BytesIO()
    # What is small already keeps every pixel.
    picture.save(encoded, 'WEBP', quality=80, lossless=max(image.shape[:2]) <= 64)
    return f'data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}'
