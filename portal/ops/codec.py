"""Converts frozen dataclasses to types of JSON and back, strictly, so that an invalid record is never used.

A field's annotation determines what is accepted: text, numbers, booleans, moments with a time zone, enumerations,
paths, lists, tuples, mappings, other dataclasses and named tuples, and optional ones of these. A class with several
historic forms reads them with a class method `decode`. Anything else is an error.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")
_Reader = Callable[[Any], Any]

_PLAIN: Final = (str, int, float, bool)
_UNIONS: Final = (Union, types.UnionType)


def encode(value: Any) -> Any:
    """Convert a value to types of JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): encode(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [encode(one) for one in value]
    return value


def decode(kind: type[Record], facts: object, *, beside: frozenset[str] = frozenset()) -> Record:
    """Make a dataclass from the output of `encode`.

    Arguments:
        beside: keys that are permitted besides the fields, such as the version of a format.

    Raises:
        ValueError: a key is unknown or missing, or a value is not of its field's type.
    """
    if not isinstance(facts, Mapping):
        raise ValueError(f"a {kind.__name__} is no {type(facts).__name__}")
    readers, required = _readers(kind)  # type: ignore[arg-type]
    if unknown := facts.keys() - readers.keys() - beside:
        raise ValueError(f"unknown: {', '.join(sorted(map(str, unknown)))}")
    if missing := required - facts.keys():
        raise ValueError(f"missing: {', '.join(sorted(missing))}")
    return kind(**{name: read(facts[name]) for name, read in readers.items() if name in facts})


@lru_cache
def _readers(kind: type[Any]) -> tuple[dict[str, _Reader], frozenset[str]]:
    """The reader of each field, and the required fields; cached, since this is slow."""
    hints = get_type_hints(kind)
    needed = (field.name for field in fields(kind) if field.default is field.default_factory is MISSING)
    return {field.name: _reader(hints[field.name]) for field in fields(kind)}, frozenset(needed)


def _reader(kind: Any) -> _Reader:
    """The function that reads a value of this annotation."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda found: found
    if origin in _UNIONS:
        (some,) = (_reader(one) for one in inner if one is not types.NoneType)
        return lambda found: None if found is None else some(found)
    if origin in (tuple, list):
        item = _reader(inner[0])
        return lambda found: origin(map(item, _checked(found, list, kind)))
    if origin in (Mapping, dict):
        key, item = map(_reader, inner)
        return lambda found: {key(name): item(value) for name, value in _checked(found, Mapping, kind).items()}
    return _class_reader(kind)


def _class_reader(kind: type[Any]) -> _Reader:
    if is_dataclass(kind):
        return lambda found: decode(kind, found)
    if own := getattr(kind, "decode", None):
        return lambda found: own(_checked(found, list, kind))
    if hasattr(kind, "_fields"):
        return _named_tuple(kind)
    if issubclass(kind, StrEnum | Path):
        return lambda found: kind(_checked(found, str, kind))
    if kind is datetime:
        return _moment
    if kind not in _PLAIN:
        raise TypeError(f"no record has a field of {kind}")
    return lambda found: _plain(kind, found)


def _named_tuple(kind: Any) -> _Reader:
    readers = [_reader(hint) for hint in get_type_hints(kind).values()]
    return lambda found: kind(*(read(one) for read, one in zip(readers, _checked(found, list, kind), strict=True)))


def _checked(found: Any, wanted: type[Any], kind: Any) -> Any:
    if not isinstance(found, wanted):
        raise ValueError(f"{found!r} is no {kind}")
    return found


def _plain(kind: type[Any], found: Any) -> Any:
    if type(found) is kind or (kind is float and type(found) is int):
        return found
    raise ValueError(f"{found!r} is no {kind.__name__}")


def _moment(found: Any) -> datetime:
    moment = datetime.fromisoformat(_checked(found, str, "moment"))
    if moment.tzinfo is None:
        raise ValueError(f"{found} is in no time zone")
    return moment
