"""The page of `--mode=serve`: one HTML file with its script, which a nonce allows."""

from typing import NamedTuple


class Limits(NamedTuple):
    """What the page checks before it sends a request."""

    bytes: int
    images: int
    classes: int
    name: int  # characters of a class's name
    content_type: str  # of the request


def page(title: str, nonce: str, limits: Limits) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('ancor_jax', 'report'), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template('local_page.html.j2').render(title=title, nonce=nonce, limits=limits._asdict())
