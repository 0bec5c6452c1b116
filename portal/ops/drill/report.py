"""The reports of drills, in `.drills/`: evidence that a restore would work.

The access log has the SHA-256 of each report's file, by which changed reports (`altered`) and forged ones (`unlogged`)
are found.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.errors import NotIntactError
from portal.ops.repository.records import RecordStore
from portal.ops.units import exact_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from portal.ops.repository.access_entry import AccessEntry
    from portal.ops.repository.repository import Repository

DIRECTORY: Final = ".drills"
KEPT_REPORTS: Final = 100
KEPT_FOR: Final = timedelta(days=366)
"""The newest reports are kept, whatever their age, and all that are younger than this."""

_SHOWN_LINES: Final = 20


@dataclass(frozen=True, kw_only=True)
class DrillReport:
    """The report of one drill.

    Arguments:
        drill_id: such as ``drill_20240115_120000_abc123``.
        backup_id: the restored backup.
        started: when it started.
        who: the requester; `host` is the machine.
        success: everything was restored, equals the backup, and makes a complete portal.
        seconds: how long the restore took: the RTO. `database_seconds` and `files_seconds` are its parts.
        total_seconds: the same with preparing, comparing and removing.
        tables: the number of compared tables; likewise `rows`, `files`, `bytes` of content.
        server_version: the version of the server that was restored to.
        checksum: the SHA-256 of the archive.
        checks: what was compared, in words.
        damages: differences from the backup.
        problems: what a portal restored from it would lack, although it equals the backup.
        command_exit_code: exit code of the portal's own check; None if there is none, or it took too long.
        command_output: the end of that check's output.
        warnings: what should be known.
        error: why the drill was not finished, and what to do.
        exit_code: the exit code for a program.
    """

    drill_id: str
    backup_id: str
    started: datetime
    who: str = ""
    host: str = ""
    success: bool = False
    seconds: float = 0.0
    database_seconds: float = 0.0
    files_seconds: float = 0.0
    total_seconds: float = 0.0
    tables: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    server_version: str = ""
    checksum: str = ""
    checks: tuple[str, ...] = ()
    damages: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    command_exit_code: int | None = None
    command_output: str = ""
    warnings: tuple[str, ...] = ()
    error: str | None = None
    exit_code: int = 0

    @property
    def is_as_backed_up(self) -> bool | None:
        """Whether what was restored equals the backup, whatever a portal would lack; None if that was not found out."""
        if self.damages or self.exit_code == NotIntactError.exit_code:
            return False
        return True if self.success or self.problems else None

    def lines(self) -> list[str]:
        """The report in plain words."""
        name = self.backup_id or "the archive"
        lines = [f"damage: {damage}" for damage in self.damages if damage not in (self.error or "")]
        lines += [f"problem: {problem}" for problem in self.problems]
        if self.command_output and self.problems:
            lines += ["the end of what the portal's own check wrote:"]
            lines += [f"  {line}" for line in self.command_output.splitlines()[-_SHOWN_LINES:]]
        lines += [f"warning: {warning}" for warning in self.warnings]
        if self.success:
            lines += [
                f"{name} was restored for a try in {exact_duration(self.seconds)} "
                f"(database {exact_duration(self.database_seconds)}, files {exact_duration(self.files_seconds)}), "
                "and everything is as in the backup:",
                *(f"  {check}" for check in self.checks),
                "What was restored has been removed again; the live data was not touched.",
            ]
        elif self.damages:
            lines.append(f"{name} was restored for a try, and is NOT as in the backup")
        elif self.problems:
            lines.append(f"{name} was restored as it was backed up, but the portal would NOT be complete")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as types of JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in encode(self).items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> DrillReport:
        """The report from the output of `to_dict`, ignoring other keys; ValueError or TypeError if it is invalid."""
        return decode(cls, {one.name: facts[one.name] for one in fields(cls) if one.name in facts})


class DrillReports:
    """The reports of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._store = RecordStore(repository.path / DIRECTORY)

    def save(self, report: DrillReport) -> str:
        """Save a report; return the SHA-256 of its file.

        Raises:
            RepositoryError: it cannot be written, or the repository used here before is absent.
        """
        self._repository.refuse_absent()
        return self._store.write(report.drill_id, report.to_dict())

    def remove_old(self, now: datetime, *, newest: int = KEPT_REPORTS) -> int:
        """Remove old reports, except the newest ones and the newest of a success; return how many were removed.

        The access log keeps their outcome.

        Arguments:
            newest: how many to keep whatever their age.

        Raises:
            RepositoryError: a report cannot be removed.
        """
        reports = self.all()
        proof = next((report.drill_id for report in reports if report.success), None)
        old = [
            report.drill_id
            for report in reports[newest:]
            if now - report.started > KEPT_FOR and report.drill_id != proof
        ]
        for drill_id in old:
            self._store.remove(drill_id)
        return len(old)

    def altered(self, entries: Iterable[AccessEntry]) -> list[str]:
        """The drills whose reports were changed after they were logged.

        A missing report is not listed: the access log still has its outcome.

        Arguments:
            entries: the access log's entries.

        Raises:
            RepositoryError: a report cannot be read.
        """
        seals = _seals(entries)
        return [drill_id for drill_id, seal in seals.items() if self._store.digest(drill_id) not in (None, seal)]

    def unlogged(self, entries: Iterable[AccessEntry]) -> list[str]:
        """The names of reports without a digest in the access log, which others may have put there.

        Reports that claim to be older than the log are not listed: a new log cannot know them, and only the newest
        drills matter. A report whose drill was killed before it could write its line is listed: it cannot be told from
        a forged one.

        Arguments:
            entries: the access log's entries, oldest first. Read the reports first: a drill that ends in between writes
                its report before its line.

        Raises:
            RepositoryError: the directory cannot be read.
        """
        started = {name: report.started for name, report in self._store.each(DrillReport.from_dict) if report}
        lines = iter(entries)
        first = next(lines, None)
        if first is None:
            return []
        seals = _seals(chain([first], lines))
        return [name for name, moment in started.items() if name not in seals and moment >= first.moment]

    def all(self) -> list[DrillReport]:
        """Every valid report, newest first; damaged ones are logged.

        Raises:
            RepositoryError: the directory cannot be read.
        """
        found = [report for _, report in self._store.each(DrillReport.from_dict) if report]
        return sorted(found, key=lambda report: (report.started, report.drill_id), reverse=True)


def _seals(entries: Iterable[AccessEntry]) -> dict[str, str]:
    """The digests of reports in the access log, by drill."""
    return {
        str(entry.details["drill_id"]): str(entry.details["report"])
        for entry in entries
        if entry.action == "drill" and entry.details.get("report") and entry.details.get("drill_id")
    }
