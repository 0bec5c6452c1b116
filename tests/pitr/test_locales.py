"""Locales that a scratch server needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from portal.ops.pitr.locales import absent_locales, database_locales

if TYPE_CHECKING:
    from demo.postgres import EmbeddedPostgres


def test_one_that_this_machine_lacks_is_named() -> None:
    """C is on every machine; the names are those of the C library."""
    assert absent_locales(["C", "POSIX", "tlh_KX.UTF-8"]) == ["tlh_KX.UTF-8"]


def test_those_of_the_databases_are_asked_for(postgres: EmbeddedPostgres) -> None:
    """Collation and character types of each database, once."""
    with postgres.connect() as connection:
        assert database_locales(connection) == ["C"]
