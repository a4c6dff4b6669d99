"""Constraints on the fields of the configuration, as metadata of their `Annotated` types.

Dataclasses, since those of two kinds are never equal: `Annotated` takes equal metadata for the same.
"""

import dataclasses
import difflib
import math
from collections.abc import Collection
from typing import Any


class ConfigError(ValueError):
    """A field that is unknown, of the wrong type, out of range, or in contradiction to another."""


@dataclasses.dataclass(frozen=True)
class Above:
    """A finite number greater than `low`."""

    low: float

    def check(self, name: str, value: Any) -> None:
        if not self.low < value < math.inf:
            raise ConfigError(f'{name} must be greater than {self.low:g}, and is {value}.')


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """A finite number that is not less than `low`."""

    low: float

    def check(self, name: str, value: Any) -> None:
        if not self.low <= value < math.inf:
            wanted = 'must not be negative' if self.low == 0 else f'must be at least {self.low:g}'
            raise ConfigError(f'{name} {wanted}, and is {value}.')


@dataclasses.dataclass(frozen=True)
class Within:
    """A number in low..high, or below high; `why` explains the limit."""

    low: float
    high: float
    below: bool = False
    why: str = ''

    def check(self, name: str, value: Any) -> None:
        if not self.low <= value <= self.high or (self.below and value == self.high):
            also = f' and below {self.high:g}' if self.below else ''
            why = f' ({self.why})' if self.why else ''
            raise ConfigError(f'{name} must lie in {self.low:g}..{self.high:g}{also}{why}, and is {value}.')


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some names; `also_empty` accepts '' too."""

    names: Collection[str]
    also_empty: bool = False

    def check(self, name: str, value: Any) -> None:
        if value not in self.names and not (self.also_empty and not value):
            raise ConfigError(
                f'{name} must be one of {", ".join(self.names)}, and is {value!r}.{suggestion(value, self.names)}'
            )


@dataclasses.dataclass(frozen=True)
class NumberOr:
    """A whole number greater than 0 as text, one of some names, or ''."""

    names: Collection[str]

    def check(self, name: str, value: Any) -> None:
        if value and value not in self.names and not (value.isdecimal() and int(value)):
            names = ', '.join(map(repr, self.names))
            raise ConfigError(f"{name} must be {names}, a number greater than 0, or '', and is {value!r}.")


@dataclasses.dataclass(frozen=True)
class Length:
    """A tuple of a fixed length; `what` names the items."""

    size: int
    what: str

    def check(self, name: str, value: Any) -> None:
        if len(value) != self.size:
            raise ConfigError(f'{name} must be {self.what}, and is {value}.')


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """A tuple with at least one item."""

    def check(self, name: str, value: Any) -> None:
        if not value:
            raise ConfigError(f'{name} must name at least one.')


def suggestion(value: Any, allowed: Collection[str]) -> str:
    """ " Did you mean 'name'?", or an empty string if no name is close."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f' Did you mean {close[0]!r}?' if close else ''
