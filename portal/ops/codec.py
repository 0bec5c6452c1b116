"""Frozen dataclasses as the types of JSON, and back: strictly, so that a record that makes no sense is no record.

What a field's annotation says is what is read: text, numbers, truth values, moments with a time zone, words of an
enumeration, tuples, mappings, other dataclasses, and each of these or nothing. Anything else is an error.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_PLAIN: Final = (str, int, float, bool)
_UNIONS: Final = (Union, types.UnionType)


def encode(value: Any) -> Any:
    """A value in the types of JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): encode(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [encode(one) for one in value]
    return value


def decode(kind: type[Record], facts: object, *, beside: frozenset[str] = frozenset()) -> Record:
    """A dataclass from what `encode` made of it.

    Arguments:
        beside: keys that are there beside the fields, such as the version of a format.

    Raises:
        ValueError: a key is unknown or missing, or a value is not of its field's type.
    """
    if not isinstance(facts, Mapping):
        raise ValueError(f"a {kind.__name__} is no {type(facts).__name__}")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    if unknown := facts.keys() - hints.keys() - beside:
        raise ValueError(f"unknown: {', '.join(sorted(map(str, unknown)))}")
    required = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}  # type: ignore[arg-type]
    if missing := required - facts.keys():
        raise ValueError(f"missing: {', '.join(sorted(missing))}")
    return kind(**{name: _value(hints[name], facts[name]) for name in hints if name in facts})


@lru_cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _value(kind: Any, found: Any) -> Any:
    """One value, as its annotation says."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (found is None and types.NoneType in inner):
        return found
    if origin in _UNIONS:
        (some,) = (one for one in inner if one is not types.NoneType)
        return _value(some, found)
    if origin is tuple and isinstance(found, list):
        return tuple(_value(inner[0], one) for one in found)
    if origin in (Mapping, dict) and isinstance(found, Mapping):
        return {_value(inner[0], key): _value(inner[1], one) for key, one in found.items()}
    if isinstance(kind, type):
        return _simple(kind, found)
    raise ValueError(f"{found!r} is no {kind}")


def _simple(kind: type[Any], found: Any) -> Any:
    """One value of a class without parameters."""
    if is_dataclass(kind):
        return decode(kind, found)
    if issubclass(kind, StrEnum):
        return kind(found)
    if kind is datetime and isinstance(found, str):
        moment = datetime.fromisoformat(found)
        if moment.tzinfo is None:
            raise ValueError(f"{found} is in no time zone")
        return moment
    if kind in _PLAIN and (type(found) is kind or (kind is float and type(found) is int)):
        return found
    raise ValueError(f"{found!r} is no {kind.__name__}")
