"""A file of settings, as it was read: `portal.ops.settings.env_format` reads the text, where there is such a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class EnvFileError(ValueError):
    """A line cannot be read. The message holds the number of the line and nothing of a value."""


@dataclass(frozen=True, kw_only=True)
class EnvFile:
    """The contents of a settings file.

    Arguments:
        path: the file, for messages.
        values: the values by the variables' names.
        lines: the number of the line that each variable stands on.
    """

    path: str
    values: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
