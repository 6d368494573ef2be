"""Limits of settings, one line per kind: what a config's `__post_init__` asks for.

Each function names the first setting that is wrong, its value and the limit. NaN and infinity are refused everywhere;
of a setting that holds several numbers, every one must fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from medseg.errors import MedsegError


def choices(config: object, **known: Iterable[Any]) -> None:
    """Every named setting is one of the values it is given with: `checks.choices(self, norm=NORMS)`.

    Raises:
        MedsegError: names the known values.
    """
    for key, values in known.items():
        value = getattr(config, key)
        if value not in values:
            raise MedsegError(f"{key} = {value!r} is unknown; choose one of {', '.join(map(str, values))}")


def counts(config: object, *keys: str) -> None:
    """Every named setting is at least 1.

    Raises:
        MedsegError: names the first one that is not.
    """
    _check(config, keys, lambda number: 1 <= number < math.inf, "must be at least 1")


def from_zero(config: object, *keys: str) -> None:
    """Every named setting is a finite number from 0: weights, rates, seeds.

    Raises:
        MedsegError: names the first one that is not.
    """
    _check(config, keys, lambda number: 0 <= number < math.inf, "must be a number from 0")


def positive(config: object, *keys: str) -> None:
    """Every named setting is a finite number above 0: temperatures, lengths.

    Raises:
        MedsegError: names the first one that is not.
    """
    _check(config, keys, lambda number: 0 < number < math.inf, "must be positive")


def shares(config: object, *keys: str) -> None:
    """Every named setting lies in [0, 1].

    Raises:
        MedsegError: names the first one that does not.
    """
    _check(config, keys, lambda number: 0 <= number <= 1, "is outside [0, 1]")


def below_one(config: object, *keys: str) -> None:
    """Every named setting lies in [0, 1), because the whole would leave nothing.

    Raises:
        MedsegError: names the first one that does not.
    """
    _check(config, keys, lambda number: 0 <= number < 1, "is outside [0, 1)")


def _check(config: object, keys: Iterable[str], fits: Callable[[float], bool], otherwise: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if not all(map(fits, value if isinstance(value, tuple | list) else (value,))):
            raise MedsegError(f"{key} = {value} {otherwise}")
