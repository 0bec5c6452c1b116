"""The format of settings files: that of Docker Compose's ``.env`` files.

``NAME=value`` lines, comments, quotes and ``${NAME:-default}`` are interpreted as by Compose, with one exception: a
variable that is not set is an error, where Compose inserts nothing. That finds a ``$`` in a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from portal.ops.settings.env_file import EnvFile, EnvFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_ENTRY: Final = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*(=|(?=\n|$))")
_QUOTED: Final = {
    "'": re.compile(r"[ \t]*'((?:[^'\\]|\\.)*)'[ \t]*(?:#[^\n]*)?(?=\n|$)", re.DOTALL),
    '"': re.compile(r'[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(?:#[^\n]*)?(?=\n|$)', re.DOTALL),
}
_PLAIN: Final = re.compile(r"([^\n]*)")
_COMMENT: Final = re.compile(r"(?:^|[ \t])#.*")
_DOLLAR: Final = re.compile(rf"\$(?:(\$)|({_NAME})|\{{({_NAME})(:?[-+?])?)")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


def parse_env_file(text: str, path: str, environ: Mapping[str, str]) -> EnvFile:
    """Parse a settings file.

    Arguments:
        text: the whole file.
        path: the file, for messages.
        environ: variables for ``${NAME}``, with priority over earlier lines of the file.

    Raises:
        EnvFileError: a line is invalid, or names a variable that is not set.
    """
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, name, value, is_literal in _entries(text.removeprefix("\ufeff").replace("\r\n", "\n")):
        known = {**values, **environ}
        values[name] = value if is_literal else _Expansion(value, known, number).text()
        lines[name] = number
    return EnvFile(path=path, values=values, lines=lines)


def _entries(text: str) -> Iterator[tuple[int, str, str, bool]]:
    """Line number, name and value of each entry, and whether the value is literal."""
    position = 0
    while position < len(text):
        number = text.count("\n", 0, position) + 1
        end = text.find("\n", position) if "\n" in text[position:] else len(text)
        line = text[position:end].strip()
        if not line or line.startswith("#"):
            position = end + 1
            continue
        entry = _ENTRY.match(text, position)
        if not entry:
            raise EnvFileError(f"line {number} is not NAME=value")
        if not entry[2]:  # a name alone refers to the environment's variable, which has priority in any case
            position = entry.end() + 1
            continue
        quote = text[entry.end() : end].lstrip(" \t")[:1]
        value = _QUOTED.get(quote, _PLAIN).match(text, entry.end())
        if not value:
            raise EnvFileError(f"line {number}: {entry[1]} has a quote that is not closed, or text after its value")
        yield number, entry[1], _unescaped(value[1], quote), quote == "'"
        position = value.end() + 1


def _unescaped(value: str, quote: str) -> str:
    if quote == "'":
        return value.replace("\\'", "'")
    if quote == '"':
        return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[0]), value)
    return _COMMENT.sub("", value).strip()


class _Expansion:
    """Replaces ``$NAME`` and ``${NAME…}`` by values."""

    def __init__(self, value: str, known: Mapping[str, str], number: int) -> None:
        self._value, self._known, self._number = value, known, number
        self._position = 0

    def text(self) -> str:
        """The value with all replacements."""
        return self._until("")

    def _until(self, end: str) -> str:
        """Expand up to an unmatched `end`, or to the end of the value."""
        parts = []
        while self._position < len(self._value):
            character = self._value[self._position]
            if character == end:
                break
            if character == "$":
                parts.append(self._variable())
            else:
                parts.append(character)
                self._position += 1
        return "".join(parts)

    def _variable(self) -> str:
        found = _DOLLAR.match(self._value, self._position)
        if not found:
            raise self._fault("has a '$' that starts no variable")
        self._position = found.end()
        if found[1]:
            return "$"
        if found[2]:
            return self._lookup(found[2])
        operator = found[4] or ""
        other = self._until("}")
        if self._value[self._position : self._position + 1] != "}" or (not operator and other):
            raise self._fault("has a '${' that is not closed")
        self._position += 1
        if not operator:
            return self._lookup(found[3])
        given = self._known.get(found[3])
        is_given = bool(given) if operator.startswith(":") else given is not None
        if operator.endswith("+"):
            return other if is_given else ""
        if is_given:
            return given or ""
        if operator.endswith("-"):
            return other
        raise self._fault(f"needs {found[3]}, which is not set")

    def _lookup(self, name: str) -> str:
        if name not in self._known:
            raise self._fault(f"names the variable {name}, which is not set")
        return self._known[name]

    def _fault(self, said: str) -> EnvFileError:
        hint = "a value with a '$' of its own is written in single quotes"
        return EnvFileError(f"line {self._number} {said}; {hint}")
