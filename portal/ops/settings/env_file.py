"""The contents of a settings file; `portal.ops.settings.env_format` parses the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class EnvFileError(ValueError):
    """Raised for an invalid line. The message has its number, and nothing of a value."""


@dataclass(frozen=True, kw_only=True)
class EnvFile:
    """The contents of a settings file.

    Arguments:
        path: the file, for messages.
        values: the values by variable.
        lines: the line number of each variable.
    """

    path: str
    values: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
