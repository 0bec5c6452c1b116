"""What a dump needs on its server: roles, extensions, tablespaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from psycopg.sql import SQL, Identifier

from portal.ops.postgres.dump_contents import EXTENSION, roles_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from portal.ops.postgres.connection import Connection
    from portal.ops.postgres.toc import Entry

_ROLES: Final = "SELECT rolname FROM pg_roles"
_TABLESPACES: Final = "SELECT spcname FROM pg_tablespace"
_EXTENSIONS: Final = """
    SELECT e.name, v.superuser AND NOT v.trusted
    FROM pg_available_extensions AS e JOIN pg_available_extension_versions AS v
         ON v.name = e.name AND v.version = e.default_version
"""
_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the server lacks of that, and what needs an administrator.

    Arguments:
        missing_roles: roles named by privileges and policies.
        missing_tablespaces: tablespaces of tables and indexes.
        missing_extensions: extensions not installed on the server's machine.
        untrusted: extensions that only a superuser can create.
        trusted: extensions that any user with CREATE on the database can create.
    """

    missing_roles: tuple[str, ...]
    missing_tablespaces: tuple[str, ...]
    missing_extensions: tuple[str, ...]
    untrusted: tuple[str, ...]
    trusted: tuple[str, ...]

    def warnings(self) -> list[str]:
        """Warnings about everything that a restore leaves out, and what to do."""
        said = []
        if self.missing_roles:
            said.append(
                f"{_some(self.missing_roles)}: no such role on this server, so its privileges in the backup are left "
                f"out; to have it, before the restore, as an administrator: {create_roles(self.missing_roles)}"
            )
        if self.missing_tablespaces:
            said.append(
                f"{_some(self.missing_tablespaces)}: no such tablespace on this server; what was in it goes to the "
                "default one"
            )
        return said


def look_around(connection: Connection, entries: Iterable[Entry]) -> Surroundings:
    """Compare what a dump needs with a server."""
    entries = list(entries)
    roles = {str(name) for (name,) in connection.execute(_ROLES)}
    tablespaces = {str(name) for (name,) in connection.execute(_TABLESPACES)}
    extensions = {str(name): bool(is_untrusted) for name, is_untrusted in connection.execute(_EXTENSIONS)}
    named = [entry.name for entry in entries if entry.kind == EXTENSION]
    return Surroundings(
        missing_roles=_missing((role for entry in entries for role in roles_of(entry)), roles),
        missing_tablespaces=_missing((entry.tablespace for entry in entries if entry.tablespace), tablespaces),
        missing_extensions=_missing(named, extensions),
        untrusted=tuple(name for name in named if extensions.get(name, False)),
        trusted=tuple(name for name, is_untrusted in extensions.items() if not is_untrusted),
    )


def create_roles(names: Iterable[str]) -> str:
    """The statements that create roles."""
    return "; ".join(SQL("CREATE ROLE {}").format(Identifier(name)).as_string(None) for name in names)


def _missing(wanted: Iterable[str], present: Iterable[str]) -> tuple[str, ...]:
    found = set(present)
    return tuple(dict.fromkeys(name for name in wanted if name not in found))


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
