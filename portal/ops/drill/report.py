"""The reports of drills, in `.drills/`: the evidence that a restore would work.

The access log has the SHA-256 of each report's file, so that one that was changed later is found (`altered`), and one
that no drill has written (`unlogged`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime  # noqa: TC003  (the codec reads the annotations)
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from portal.ops.codec import decode, encode
from portal.ops.repository.records import RecordStore
from portal.ops.units import exact_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from portal.ops.repository.access_entry import AccessEntry
    from portal.ops.repository.repository import Repository

DIRECTORY: Final = ".drills"
_SHOWN_LINES: Final = 20


@dataclass(frozen=True, kw_only=True)
class DrillReport:
    """One drill.

    Arguments:
        drill_id: such as ``drill_20240115_120000_abc123``.
        backup_id: what was restored.
        started: when.
        who: who asked for it, on which `host`.
        success: everything was restored, is as in the backup, and makes a complete portal.
        seconds: how long the restore took: the RTO. `database_seconds` and `files_seconds` are its parts.
        total_seconds: with looking for remains, comparing and throwing away.
        tables: how many were compared; likewise `rows`, `files`, `bytes` of content.
        server_version: of the server that it was restored to.
        checksum: the SHA-256 of the archive.
        checks: what was compared, in words.
        damages: what is not as in the backup.
        problems: what a portal restored from it would lack, although it is as in the backup.
        command_exit_code: how the portal's own check ended; None if there was none, or it took too long.
        command_output: the end of what that check wrote.
        warnings: what should be known.
        error: why it was not finished, and what to do.
        exit_code: the code that a program should end with.
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
        """The report in the types of JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in encode(self).items()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> DrillReport:
        """The report that `to_dict` made, whatever is beside it; ValueError or TypeError where it is invalid."""
        return decode(cls, {one.name: facts[one.name] for one in fields(cls) if one.name in facts})


class DrillReports:
    """The reports of a repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._store = RecordStore(repository.path / DIRECTORY)

    def save(self, report: DrillReport) -> str:
        """Keep a report; the SHA-256 of its file.

        Raises:
            RepositoryError: it cannot be written, or the repository that was used here is not there.
        """
        self._repository.refuse_absent()
        return self._store.write(report.drill_id, report.to_dict())

    def altered(self, entries: Iterable[AccessEntry]) -> list[str]:
        """The drills whose reports are not what was written, by what the access log has of them.

        One that is gone is not among them: the log still has its outcome.

        Arguments:
            entries: those of the access log.

        Raises:
            RepositoryError: a report cannot be read.
        """
        seals = _seals(entries)
        return [drill_id for drill_id, seal in seals.items() if self._store.digest(drill_id) not in (None, seal)]

    def unlogged(self, entries: Iterable[AccessEntry]) -> list[str]:
        """The names of reports of which the access log has no digest: somebody has put them there.

        One that says that it is older than the log is not among them: a log that was begun anew cannot know it, and the
        newest drills are those that count. One whose drill was killed before it could write its line is among them:
        nobody can tell it from a forged one.

        Arguments:
            entries: those of the access log, the oldest first; not read before the reports are, for a drill that ends
                meanwhile writes its report before its line.

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
        """Every report, newest first; those that are damaged are logged.

        Raises:
            RepositoryError: the directory cannot be read.
        """
        found = [report for _, report in self._store.each(DrillReport.from_dict) if report]
        return sorted(found, key=lambda report: (report.started, report.drill_id), reverse=True)


def _seals(entries: Iterable[AccessEntry]) -> dict[str, str]:
    """The digests of reports that the access log has, by the ids of their drills."""
    return {
        str(entry.details["drill_id"]): str(entry.details["report"])
        for entry in entries
        if entry.action == "drill" and entry.details.get("report") and entry.details.get("drill_id")
    }
