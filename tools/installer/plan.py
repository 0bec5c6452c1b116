"""The steps of the installer; each can tell whether it is done already."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from portal.ops.runtime.environment import SECRET_NAME
from portal.ops.settings.table import SETTINGS as TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.installer.learn import Learned

ROOT: Final = Path(__file__).parents[2]
USER: Final = "kekkai-backup"
SETTINGS: Final = "etc/kekkai-backup/backup.env"
UNITS: Final = "etc/systemd/system"
LOGS: Final = "var/log/kekkai-backup"

_TIMED: Final = ("kekkai-backup", "kekkai-backup-database", "kekkai-backup-verify", "kekkai-backup-drill")
_SERVICES: Final = ("kekkai-backup-worker", "kekkai-backup-beat", "kekkai-backup-watcher")
_EXAMPLES: Final = ROOT / "examples" / "systemd"
_PLACE_IN_EXAMPLES: Final = "/opt/kekkai-backup"
_RUNNING_SYSTEMD: Final = "/run/systemd/system"
_SECRETS: Final = frozenset(setting.name for setting in TABLE if setting.secret)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@%+,=?&*^~-]*")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step.

    Arguments:
        what: a description for people.
        is_done: whether there is nothing to do.
        do: executes the step.
    """

    what: str
    is_done: Callable[[], bool]
    do: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Installation:
    """An installation on one machine.

    Arguments:
        root: the root of the machine's file system.
        units: ``timer`` or ``service``.
        learned: the portal's settings.
    """

    root: Path
    units: str
    learned: Learned

    @property
    def _stamp(self) -> Path:
        return ROOT / ".venv" / "stamp"

    @property
    def repository(self) -> str:
        """The destination of archives."""
        return self.learned.values.get("BACKUP_LOCAL_PATH", "/var/backups/kekkai")

    def owner(self) -> str:
        """The user for backups: the owner of the uploads, which no other user may read; otherwise our own."""
        uploads = self._at(self.learned.values.get("PORTAL_UPLOAD_DIR", "/var/lib/kekkai-portal/uploads"))
        if uploads.is_dir() and (uid := uploads.stat().st_uid):
            try:
                return pwd.getpwuid(uid).pw_name if self._is_here() else str(uid)
            except KeyError:
                return str(uid)
        return USER

    def names(self) -> list[str]:
        """The names of the units to install."""
        if self.units == "service":
            return [f"{name}.service" for name in _SERVICES]
        return [f"{name}.{kind}" for name in _TIMED for kind in ("service", "timer")]

    def settings_text(self) -> str:
        """The settings file's content."""
        values = {"BACKUP_LOCAL_PATH": self.repository, **self.learned.values}
        lines = [
            "# Settings of the backup: docs/settings.md explains each of them. 'tools/backup.sh config' shows them."
        ]
        for name, value in values.items():
            origin = self.learned.origins.get(name)
            lines += [f"# from {origin}"] if origin else []
            lines.append(f"{name}={quoted(value)}")
        if "DD_DATABASE_PASSWORD" not in values:
            lines.append("#DD_DATABASE_PASSWORD_FILE=/etc/kekkai-backup/database-password")
        return "\n".join(lines) + "\n"

    def shown_settings(self) -> Iterator[str]:
        """The settings for a person, with secrets masked."""
        for name, value in {"BACKUP_LOCAL_PATH": self.repository, **self.learned.values}.items():
            shown = "********" if name in _SECRETS or SECRET_NAME.search(name) else value
            yield f"{name}={shown}   ({self.learned.origins.get(name, 'default')})"

    def lacks_environment(self) -> bool:
        """True if the environment of the commands has to be made."""
        return self._is_here() and not self._stamp.exists()

    def steps(self) -> list[Step]:
        """All steps that install, in order."""
        owner = self.owner()
        steps = [self._user()] if owner == USER else []
        steps += [
            self._directory("etc/kekkai-backup", "root", owner, 0o750),
            self._directory(self.repository, owner, owner, 0o700),
            self._directory(LOGS, owner, owner, 0o750),
            self._settings(owner),
            *(self._unit(name, owner) for name in self.names()),
        ]
        if self._is_here():
            steps += [self._environment(), self._start()]
        return steps

    def removals(self) -> list[Step]:
        """All steps that uninstall, in order; archives stay."""
        every = sorted({path.name for path in _EXAMPLES.glob("kekkai-backup*")})
        steps = []
        if self._is_here() and os.path.isdir(_RUNNING_SYSTEMD):
            steps.append(Step(what="stop and disable the units", is_done=lambda: False, do=lambda: _disable(every)))
        for name in [*(f"{UNITS}/{unit}" for unit in every), SETTINGS]:
            path = self._at(name)
            if path.exists():
                steps.append(Step(what=f"remove /{name}", is_done=lambda: False, do=path.unlink))
        steps += self._removal_of_directories()
        if self._uid(USER) is not None:
            steps.append(Step(what=f"remove the user {USER}", is_done=lambda: False, do=self._remove_user))
        return steps

    def _removal_of_directories(self) -> Iterator[Step]:
        """The directories, with our logs; files of others beside the settings, such as keys, are kept."""
        path = self._at("etc/kekkai-backup")
        if path.exists():
            kept = sorted(one.name for one in path.iterdir() if one.name != Path(SETTINGS).name)
            if kept:
                what = f"/etc/kekkai-backup stays, for it holds more than the settings: {', '.join(kept)}"
                yield Step(what=what, is_done=lambda: True, do=lambda: None)
            else:
                yield Step(what="remove /etc/kekkai-backup", is_done=lambda: False, do=path.rmdir)
        logs = self._at(LOGS)
        if logs.exists():
            yield Step(what=f"remove /{LOGS}", is_done=lambda: False, do=lambda: shutil.rmtree(logs))

    # -- steps ------------------------------------------------------------------------------------------------------

    def _user(self) -> Step:
        command = ["useradd", *self._prefix(), "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", USER]
        return Step(
            what=f"create the system user {USER}",
            is_done=lambda: self._uid(USER) is not None,
            do=lambda: _run(command),
        )

    def _directory(self, name: str, owner: str, group: str, mode: int) -> Step:
        path = self._at(name)

        def is_done() -> bool:
            return path.is_dir()

        def do() -> None:
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, self._uid(owner) or 0, self._gid(group))
            path.chmod(mode)

        return Step(what=f"create /{name.lstrip('/')} ({owner}:{group}, {mode:o})", is_done=is_done, do=do)

    def _settings(self, group: str) -> Step:
        path = self._at(SETTINGS)

        def do() -> None:
            temporary = path.with_name(f".{path.name}.new")
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self.settings_text())
                os.fchown(descriptor, 0, self._gid(group))
                os.fchmod(descriptor, 0o640)
            temporary.rename(path)

        what = f"write /{SETTINGS} (root:{group}, 640); an existing file is kept"
        return Step(what=what, is_done=path.exists, do=do)

    def _unit(self, name: str, owner: str) -> Step:
        path = self._at(f"{UNITS}/{name}")
        text = (_EXAMPLES / name).read_text("utf-8").replace(_PLACE_IN_EXAMPLES, str(ROOT))
        if any(path.startswith(("/home/", "/root/")) for path in (self.repository, *self.learned.values.values())):
            text = text.replace("ProtectHome=read-only\n", "")
        text = text.replace(f"User={USER}\nGroup={USER}\n", f"User={owner}\nGroup={self._group_name(owner)}\n")

        def is_done() -> bool:
            return path.exists() and path.read_text("utf-8") == text

        def do() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            path.chmod(0o644)

        return Step(what=f"write /{UNITS}/{name}", is_done=is_done, do=do)

    def _environment(self) -> Step:
        return Step(
            what=f"prepare {ROOT}/.venv (tools/setup.sh)",
            is_done=self._stamp.exists,
            do=lambda: _run(["bash", str(ROOT / "tools" / "setup.sh")]),
        )

    def _start(self) -> Step:
        started = [name for name in self.names() if self.units == "service" or name.endswith(".timer")]

        def do() -> None:
            _run(["systemctl", "daemon-reload"])
            _run(["systemctl", "enable", "--now", *started])

        if not os.path.isdir(_RUNNING_SYSTEMD):
            what = "systemd does not run here: start the units yourself, or use examples/cron"
            return Step(what=what, is_done=lambda: True, do=do)
        return Step(what=f"enable and start {', '.join(started)}", is_done=lambda: False, do=do)

    # -- this machine, or another root ------------------------------------------------------------------------------

    def _is_here(self) -> bool:
        return self.root == Path("/")

    def _at(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def _prefix(self) -> list[str]:
        return [] if self._is_here() else ["--prefix", str(self.root)]

    def _entries(self, name: str) -> list[list[str]]:
        try:
            return [line.split(":") for line in self._at(f"etc/{name}").read_text("utf-8").splitlines() if ":" in line]
        except FileNotFoundError:
            return []

    def _uid(self, user: str) -> int | None:
        if user.isdecimal() or user == "root":
            return int(user) if user.isdecimal() else 0
        return next((int(entry[2]) for entry in self._entries("passwd") if entry[0] == user), None)

    def _gid(self, user: str) -> int:
        uid = self._uid(user)
        if uid == 0 and user == "root":
            return 0
        return next((int(entry[3]) for entry in self._entries("passwd") if int(entry[2]) == uid), uid or 0)

    def _group_name(self, user: str) -> str:
        if user == USER:
            return USER
        gid = self._gid(user)
        return next((entry[0] for entry in self._entries("group") if int(entry[2]) == gid), str(gid))

    def _remove_user(self) -> None:
        _run(["userdel", *self._prefix(), USER])


def quoted(value: str) -> str:
    """A value as a literal in the settings file."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("\n", "\\n")
    escaped = escaped.replace("\r", "\\r")
    return f'"{escaped}"'


def _disable(names: list[str]) -> None:
    subprocess.run(["systemctl", "disable", "--now", *names], stderr=subprocess.DEVNULL, check=False)  # noqa: S607


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)
