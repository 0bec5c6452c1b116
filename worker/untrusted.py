"""Parses JSON that anyone who can write to the broker may have written: only plain values of bounded size pass.

kombu would turn some objects into other types, and calls that fail there end a worker. Numbers that Python reads but
cannot write again, and values nested to the limit of recursion, fail later and elsewhere.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

MOST_BYTES: Final = 64 << 20

_MOST_DEPTH: Final = 40
_LARGEST: Final = 1 << 63
_TYPED: Final = {"__type__", "__value__"}


def parse(text: bytes | str, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON text.

    Arguments:
        text: the text; bytes are UTF-8.
        most_bytes: the longest text that is parsed.

    Raises:
        ValueError: it is no JSON, or a value in it is none that our processes write.
    """
    if len(text) > most_bytes:
        raise ValueError("it is too long")
    try:
        found = json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check(found, 0)
    return found


def _check(value: Any, depth: int) -> None:
    if isinstance(value, dict):
        if value.keys() == _TYPED:
            raise ValueError("it has an object of a type of its own")
        value = value.values()
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("it has a number without end")
        return
    elif isinstance(value, int):
        if abs(value) > _LARGEST:
            raise ValueError("it has a number that is too large")
        return
    elif not isinstance(value, list):
        return
    if depth >= _MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    for one in value:
        _check(one, depth + 1)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
