"""Whether database and uploads belong together: every file that rows refer to, and every file that they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from portal.ops.drill.references import MOST_NAMED, check_references
from portal.ops.settings.file_columns import FileColumn, file_columns
from portal.ops.settings.parsers import UnusableError
from tests.support.portal import execute

if TYPE_CHECKING:
    from pathlib import Path

    from portal.ops.settings.load import DatabaseTarget


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """A tree of uploads."""
    for name in (
        "uploaded_files/a.txt",
        "uploaded_files/ä b.txt",
        "risk/2026/01/02/risk.pdf",
        "threat/1.png",
        "alone.bin",
    ):
        (tmp_path / "uploads" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "uploads" / name).write_text(name)
    return tmp_path / "uploads"


@pytest.fixture
def database(portal_database: DatabaseTarget) -> DatabaseTarget:
    """A database with DefectDojo's tables, all of whose files are there."""
    execute(
        portal_database,
        "CREATE TABLE dojo_fileupload (id int, file varchar(100) NOT NULL)",
        "INSERT INTO dojo_fileupload VALUES (1, 'uploaded_files/a.txt'), (2, 'uploaded_files/ä b.txt'), (3, '')",
        "CREATE TABLE dojo_risk_acceptance (id int, path varchar(100))",
        "INSERT INTO dojo_risk_acceptance VALUES (1, 'risk/2026/01/02/risk.pdf'), (2, NULL)",
        "CREATE TABLE dojo_engagement (id int, tmodel_path varchar(1000))",
        "INSERT INTO dojo_engagement VALUES (1, '/app/media/threat/1.png'), (2, 'none'), (3, 'none')",
    )
    return portal_database


def test_everything_is_there(database: DatabaseTarget, uploads: Path) -> None:
    """DefectDojo's columns are found in its schema; a path from the media root counts, and an orphan is no fault."""
    found = check_references(database, uploads)
    assert set(found.columns) == {"dojo_fileupload.file", "dojo_risk_acceptance.path", "dojo_engagement.tmodel_path"}
    assert (found.count, found.missing, found.elsewhere, found.orphans, found.problems()) == (4, 0, 0, 1, [])


def test_what_is_missing_is_named(database: DatabaseTarget, uploads: Path) -> None:
    """With the column that refers to it; of many, the first ones are named and the others counted."""
    (uploads / "uploaded_files/a.txt").unlink()
    (said,) = check_references(database, uploads).problems()
    assert said == "dojo_fileupload.file refers to 'uploaded_files/a.txt', and the uploads do not have it"
    execute(database, "INSERT INTO dojo_fileupload SELECT n, 'gone/' || n FROM generate_series(1, 500) AS n")
    found = check_references(database, uploads)
    assert (found.missing, len(found.problems())) == (501, MOST_NAMED + 1)
    assert found.problems()[-1].startswith("481 more files")


def test_the_same_file_counts_once(database: DatabaseTarget, uploads: Path) -> None:
    """However many rows and columns refer to it, and however they write it."""
    execute(
        database,
        "INSERT INTO dojo_fileupload VALUES (9, 'gone.txt'), (10, './gone.txt')",
        "INSERT INTO dojo_risk_acceptance VALUES (9, 'gone.txt'), (10, 'uploaded_files//a.txt')",
    )
    found = check_references(database, uploads)
    assert (found.count, found.missing, found.orphans) == (5, 1, 1)


def test_names_in_a_database_without_an_encoding(portal_database: DatabaseTarget, uploads: Path) -> None:
    """A server with SQL_ASCII gives the bytes of a name as they are, and these are the bytes of the file's name."""
    plain = replace(portal_database, name=f"{portal_database.name}_ascii")
    execute(portal_database, f"CREATE DATABASE {plain.name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    try:
        execute(
            plain,
            "CREATE TABLE dojo_fileupload (file text)",
            "INSERT INTO dojo_fileupload VALUES ('alone.bin'), "
            "(convert_from('\\x75706c6f616465645f66696c65732fc3a420622e747874', 'SQL_ASCII'))",
        )
        found = check_references(plain, uploads)
        assert (found.count, found.missing, found.orphans) == (2, 0, 3)
    finally:
        execute(portal_database, f"DROP DATABASE {plain.name} WITH (FORCE)")


@pytest.mark.parametrize(
    "value", ["../outside.txt", "uploaded_files/../../outside.txt", "link/outside.txt", "uploaded_files", "x" * 300]
)
def test_what_is_no_file_of_the_uploads_is_missing(
    database: DatabaseTarget, uploads: Path, tmp_path: Path, value: str
) -> None:
    """A path that leads out, through a link too, a directory, or a name that cannot be one."""
    (tmp_path / "outside.txt").write_text("")
    (uploads / "link").symlink_to(tmp_path)
    execute(
        database,
        "ALTER TABLE dojo_fileupload ALTER file TYPE text",
        f"UPDATE dojo_fileupload SET file = '{value}' WHERE id = 1",  # noqa: S608
    )
    assert check_references(database, uploads).missing == 1


def test_an_absolute_path_elsewhere_is_counted(database: DatabaseTarget, uploads: Path) -> None:
    """Nobody can say whether it is there; below the live uploads it is."""
    execute(database, "UPDATE dojo_engagement SET tmodel_path = '/srv/uploads/threat/1.png'")
    assert check_references(database, uploads).elsewhere == 1
    found = check_references(database, uploads, media_root="/srv/uploads")
    assert (found.elsewhere, found.missing) == (0, 0)


def test_other_columns_can_be_named(database: DatabaseTarget, uploads: Path) -> None:
    """With a directory that their values are relative to; one that the schema does not have is a problem."""
    execute(database, 'CREATE SCHEMA "Scans"', 'CREATE TABLE "Scans".report (name text)')
    execute(database, """INSERT INTO "Scans".report VALUES ('a.txt'), ('b.txt')""")
    columns = file_columns("Scans.report.name=uploaded_files, portal_scan.path").columns
    found = check_references(database, uploads, columns)
    assert found.problems() == [
        "portal_scan.path is not a column of the database, and BACKUP_FILE_COLUMNS names it",
        "report.name refers to 'uploaded_files/b.txt', and the uploads do not have it",
    ]


def test_a_database_without_such_columns(portal_database: DatabaseTarget, uploads: Path) -> None:
    """Nothing is looked for, and no file is called an orphan."""
    found = check_references(portal_database, uploads)
    assert (found.columns, found.count, found.orphans, found.problems()) == ((), 0, 0, [])


def test_the_setting() -> None:
    """Columns with commas between them, or off."""
    assert file_columns("").checked
    assert not file_columns(" OFF ").checked
    assert file_columns("a.b, s.c.d = e/f").columns == (
        FileColumn(table="a", column="b"),
        FileColumn(schema="s", table="c", column="d", directory="e/f"),
    )


@pytest.mark.parametrize("text", ["file", "a.b.c.d", "a.b=../c", "a b.c", "a.b="])
def test_a_setting_that_makes_no_sense(text: str) -> None:
    """Is named."""
    with pytest.raises(UnusableError):
        file_columns(text)
