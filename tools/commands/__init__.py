"""The commands of `backup.sh`, one module each, and the restore commands of `restore.sh`.

A module has `add_arguments`, which defines the command's arguments, and `run`, which calls the engine and reports the
result. It makes no decision about backups. Adding a command takes its module and its line here.
"""

from __future__ import annotations

from typing import Final

BACKUP_COMMANDS: Final = {
    "full": ("backup", "back up database, uploads and audit log", "starting the backup"),
    "database": ("backup", "back up the database only", "starting the backup"),
    "media": ("backup", "back up the uploads, or only those that changed", "starting the backup"),
    "base": ("backup", "back up the database cluster, for recoveries to any later moment", "starting the backup"),
    "timeline": ("timeline", "show the moments that can be restored, and when rows were removed", "reading the WAL"),
    "wal": ("wal", "show the WAL archive, or fetch it from an off-site copy", "reading the WAL archive"),
    "list": ("list", "list the archives, newest first", "reading the archives"),
    "status": ("status", "show the backup status; exit code 1 if a target is missed", "reading the archives"),
    "verify": ("verify", "check that an archive is intact", "reading the archive"),
    "versions": ("versions", "show the versions of a file, and which archives have them", "searching the archives"),
    "extract": ("extract", "take one file out of an archive", "reading the archive"),
    "drill": ("drill", "test a restore: restore, compare everything, remove it", "preparing the drill"),
    "prune": ("prune", "remove the archives that the retention policy does not keep", "deciding what to keep"),
    "offsite": ("offsite", "copy archives off-site; list, verify, fetch and prune copies", "asking the store"),
    "keygen": ("keygen", "make the key that off-site copies are encrypted for", "making a key"),
    "pin": ("pin", "keep an archive until it is unpinned", "reading the archives"),
    "unpin": ("pin", "let the retention policy remove an archive again", "reading the archives"),
    "schedule": ("schedule", "show the next and the last run of everything that is scheduled", "reading the archives"),
    "audit": ("audit", "show who did what with the backups", "reading the access log"),
    "report": ("report", "write the backup report, one HTML page", "reading the archives"),
    "doctor": ("doctor", "check everything that backups and restores need", "checking"),
    "config": ("config", "show every setting and where it comes from", "reading the settings"),
}
"""By name: the module, the help text, and the text for a person who waits.

A test compares the help of commands that request a task with the registry of operations; importing the registry here
would slow every command down.
"""
