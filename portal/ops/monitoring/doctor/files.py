"""Checks the sources other than the database: uploads, the audit log, and files with secrets."""

from __future__ import annotations

import os
import stat
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.backup.walk import open_root
from portal.ops.filesystem.tree import GONE, portable
from portal.ops.model import RESTORE_DIRECTORY
from portal.ops.monitoring.doctor.check import Check, Finding, fault, ok, this_user, warning
from portal.ops.restore.files.preflight import closed, obstacles_in
from portal.ops.settings.load import SETTINGS
from portal.ops.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from portal.ops.errors import OpsError

_SAMPLE: Final = 500
_LOOKED_AT: Final = 20_000
_NAMED: Final = 3
_OTHERS: Final = stat.S_IRWXO
_GROUP_AND_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_KEY: Final = "DD_CREDENTIAL_AES_256_KEY"
_PGPASS: Final = "PGPASSFILE"


class FileChecks:
    """The checks of files.

    Arguments:
        uploads: the uploads; None if they are excluded.
        audit: the audit log's directory or file; None if it is excluded.
        environ: the variables of this process.
        has_key: whether the portal's key for stored credentials is set and not empty.
    """

    def __init__(
        self, *, uploads: Path | None, audit: Path | None, environ: Mapping[str, str], has_key: bool = False
    ) -> None:
        self._uploads = uploads
        self._audit = audit
        self._environ = environ
        self._has_key = has_key

    def all(self) -> list[Check]:
        """All checks."""
        return [
            Check(name="uploads", look=lambda: _tree(self._uploads, "PORTAL_UPLOAD_DIR", "the uploads")),
            Check(name="audit log", look=lambda: _tree(self._audit, "PORTAL_AUDIT_DIR", "the audit log")),
            Check(name="restore of files", look=self._places),
            Check(name="credential key", look=self._key),
            Check(name="secret files", look=self._secrets),
            Check(name="python", look=_python),
        ]

    def _key(self) -> Finding:
        keep = "Keep a copy of it away from this machine and from the archives; no backup holds it."
        if self._has_key:
            return ok(f"{_KEY} is set here. {keep}")
        return warning(
            f"{_KEY} is not set here, so it is unknown whether it is kept: a restored database needs it",
            f"Make sure that you have the portal's own. {keep}",
        )

    def _places(self) -> Finding:
        """Check that this user can restore backups to the uploads and next to the audit log."""
        uploads = self._uploads and os.path.realpath(self._uploads)
        audit = self._audit and os.path.dirname(os.path.realpath(self._audit))
        there = {place: place != uploads for place in (uploads, audit) if place and os.path.isdir(place)}
        obstacles: list[OpsError] = []
        for place, partial in there.items():
            what = "the audit log" if partial else place
            obstacles += closed(place, what) or obstacles_in(place, most=_LOOKED_AT, partial=partial)
        if obstacles:
            return fault(
                f"user {this_user()} can back up, and not restore: {'; '.join(one.message for one in obstacles)}",
                " ".join(dict.fromkeys(one.hint for one in obstacles)),
            )
        return ok("this user may write where files are restored to" if there else "there are no files to restore")

    def _secrets(self) -> Finding:
        open_to_others, ignored = [], []
        for name in (f"{setting.name}_FILE" for setting in SETTINGS if setting.secret):
            path = self._environ.get(name)
            if path and (mode := _mode(Path(path))) is not None and mode & _OTHERS:
                open_to_others.append(name)
        pgpass = Path(self._environ.get(_PGPASS) or Path(self._environ.get("HOME", "/")) / ".pgpass")
        if (mode := _mode(pgpass)) is not None and mode & _GROUP_AND_OTHERS:
            ignored.append(str(pgpass))
        if ignored:
            return fault(f"others may read {ignored[0]}, so libpq does not use it", f"chmod 600 {ignored[0]}")
        if open_to_others:
            return warning(
                f"everybody on this machine may read the file of {', '.join(open_to_others)}",
                "Make it readable for the backup's user alone: chmod 400.",
            )
        return ok("no file of a secret can be read by others")


def _tree(root: Path | None, variable: str, what: str) -> Finding:
    if root is None:
        return ok(
            f"{what} are left out, as {variable} says" if what == "the uploads" else f"left out: {variable} is not set"
        )
    if not root.exists():
        return fault(
            f"{root} does not exist, so no full backup can be made",
            f"Mount or create it, or correct {variable}; set {variable} to nothing to leave it out on purpose.",
        )
    sample = list(islice(_files(root), _SAMPLE))
    unreadable = [path for path, may_read in sample if not may_read]
    if unreadable:
        return fault(
            f"user {this_user()} may not read {', '.join(unreadable[:_NAMED])}",
            "Run backups as the portal's user: a backup with a file missing would not be whole, so it is refused.",
        )
    return ok(f"{root} can be read ({counted(len(sample), 'file')} tried)")


def _files(root: Path) -> Iterator[tuple[str, bool]]:
    """The files of a source but for what restores keep, and whether each can be read; no links are followed."""
    tree, file = open_root(root)
    with tree:
        if file is not None:
            yield str(root), os.access(file, os.R_OK, dir_fd=tree.fileno())
            return
        todo = [""]
        while todo:
            directory = todo.pop()
            try:
                with tree.entries(directory) as entries:
                    for entry in entries:
                        path = f"{directory}/{portable(entry.name)}" if directory else portable(entry.name)
                        if entry.is_dir(follow_symlinks=False):
                            todo += [path] if path != RESTORE_DIRECTORY else []
                        elif not entry.is_symlink():
                            name, above = tree.place(path)
                            yield tree.name(path), os.access(name, os.R_OK, dir_fd=above, follow_symlinks=False)
            except OSError as error:
                if error.errno not in GONE:
                    yield tree.name(directory), False


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _python() -> Finding:
    import psycopg

    version = psycopg.pq.version()
    release = ".".join(map(str, sys.version_info[:3]))
    return ok(f"Python {release}, psycopg {psycopg.__version__}, libpq {version // 10000}.{version % 10000}")
