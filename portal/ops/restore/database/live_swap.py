"""Swaps the restored database with the live one by renaming both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from portal.ops.postgres.database_names import Role
from portal.ops.postgres.removal import disabled_subscriptions, remove_database
from portal.ops.postgres.server import find_database, maintenance
from portal.ops.restore.database.means import database_absent
from portal.ops.restore.database.swap import Exchange, Exchanged, exchange

if TYPE_CHECKING:
    from portal.ops.postgres.database_names import Names
    from portal.ops.restore.database.newcomer import Newcomer
    from portal.ops.settings.database_url import DatabaseTarget


class LiveSwap:
    """The databases of one restore, identified by their names.

    Arguments:
        newcomer: records which database was swapped in where there was none.
        create_database: whether the live database may be missing.
        owner: the owner of the new live database; None for the owner of the present one.
    """

    def __init__(
        self, target: DatabaseTarget, names: Names, newcomer: Newcomer, *, create_database: bool, owner: str | None
    ) -> None:
        self._target = target
        self._names = names
        self._newcomer = newcomer
        self._create_database = create_database
        self._owner = owner

    def swap_in(self) -> Exchanged:
        """Make the staged database live and keep the previous one."""
        self._note_newcomer()
        done = self._exchange(Role.BEFORE, Role.STAGED, inherits=True)
        return replace(done, warnings=(*done.warnings, *disabled_subscriptions(self._target)))

    def swap_back(self) -> Exchanged:
        """Make the kept database live again and keep the restored one."""
        is_first = self._newcomer.number() is not None
        return self._exchange(Role.UNDONE, None if is_first else Role.BEFORE, inherits=False)

    def drop_stage(self) -> None:
        """Drop the scratch database."""
        with maintenance(self._target) as connection:
            for role in (Role.RESTORING, Role.STAGED):
                remove_database(connection, self._target, self._names.name(role))
        self._newcomer.forget()

    def _exchange(self, kept_as: Role, incoming: Role | None, *, inherits: bool) -> Exchanged:
        names = self._names
        return exchange(
            self._target,
            Exchange(
                live=names.live,
                kept_as=names.name(kept_as),
                incoming=None if incoming is None else names.name(incoming),
                inherits=inherits,
                owner=self._owner,
            ),
        )

    def _note_newcomer(self) -> None:
        """If there is no live database, record the one that will become it."""
        with maintenance(self._target) as connection:
            if find_database(connection, self._target.name):
                self._newcomer.forget()
                return
            if not self._create_database:
                raise database_absent(self._target)
            staged = find_database(connection, self._names.name(Role.STAGED))
        if staged is not None:
            self._newcomer.note(staged.oid)
