"""Reads the settings of a running portal: its compose `.env` file, and its containers' environment and mounts."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from portal.ops.settings.database_url import DatabaseUrlError, parse_database_url
from portal.ops.settings.env_file import EnvFileError
from portal.ops.settings.env_format import parse_env_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_WANTED: Final = (
    *(f"DD_DATABASE_{name}" for name in ("URL", "HOST", "PORT", "NAME", "USER", "PASSWORD")),
    *("PORTAL_UPLOAD_DIR", "PORTAL_AUDIT_DIR", "BACKUP_LOCAL_PATH", "CELERY_BROKER_URL"),
)
_OWN_BROKER: Final = "CELERY_BROKER_URL"
"""The portal's own queue, which is not used: ours needs another one."""

_USUAL_PLACES: Final = (
    "/opt/kekkai",
    "/opt/kekkai-portal",
    "/opt/defectdojo",
    "/opt/django-DefectDojo",
    "/srv/defectdojo",
)
_UPLOADS: Final = "/var/lib/kekkai-portal/uploads"
_AUDIT: Final = "/var/lib/kekkai-portal/audit"
_MEDIA_OF_DEFECTDOJO: Final = "/app/media"
_SECONDS: Final = 20


@dataclass(kw_only=True)
class Learned:
    """Settings with their origins.

    Arguments:
        values: settings by name.
        origins: where each was found, in words.
        notes: remarks for the operator.
    """

    values: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, name: str, value: str, origin: str) -> None:
        """Set a value, unless there is one."""
        if value and name not in self.values:
            self.values[name] = value
            self.origins[name] = origin


def learn(directory: Path | None) -> Learned:
    """Read the running containers, then compose files.

    Arguments:
        directory: the directory of the portal's compose file; by default the usual places are searched.
    """
    learned = Learned()
    containers = _containers()
    for container in containers:
        _learn_from_container(container, containers, learned)
    for place in [directory] if directory else map(Path, _USUAL_PLACES):
        _learn_from_env_file(place / ".env", learned)
    if directory is None:
        _learn_from_directories(learned)
    return learned


def _learn_from_directories(learned: Learned) -> None:
    """The audit log has no default, and a portal on this machine keeps it beside the uploads."""
    if Path(_UPLOADS).is_dir() and Path(_AUDIT).is_dir():
        learned.take("PORTAL_AUDIT_DIR", _AUDIT, "the directories of this machine")
    if "PORTAL_UPLOAD_DIR" not in learned.values and not Path(_UPLOADS).is_dir():
        learned.notes.append(f"there are no uploads in {_UPLOADS}: set PORTAL_UPLOAD_DIR, to nothing to leave them out")


def _learn_from_env_file(path: Path, learned: Learned) -> None:
    try:
        found = parse_env_file(path.read_text("utf-8"), str(path), {})
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError, EnvFileError) as error:
        learned.notes.append(f"{path} was not used: {error}")
        return
    _take(found.values, str(path), learned)


def _take(values: Mapping[str, str], origin: str, learned: Learned) -> None:
    for name in _WANTED:
        if name in values and name not in (_OWN_BROKER, "DD_DATABASE_URL"):
            learned.take(name, values[name], origin)
    for name, value in _parts(values.get("DD_DATABASE_URL", "")).items():
        learned.take(name, value, origin)


def _parts(url: str) -> dict[str, str]:
    """The parts of a database URL as single settings."""
    try:
        parts: Mapping[str, Any] = parse_database_url(url) if url else {}
    except DatabaseUrlError:
        return {}
    names = {"host": "HOST", "port": "PORT", "name": "NAME", "user": "USER"}
    found = {f"DD_DATABASE_{names[part]}": str(parts[part]) for part in names if parts.get(part)}
    if password := parts.get("password"):
        found["DD_DATABASE_PASSWORD"] = password.reveal()
    return found


# -- containers -----------------------------------------------------------------------------------------------------


def _containers() -> list[dict[str, Any]]:
    """The running containers of Docker or Podman; none if neither answers."""
    for program in ("docker", "podman"):
        if shutil.which(program):
            ids = _output([program, "ps", "--quiet"]).split()
            listed = json.loads(_output([program, "inspect", *ids]) or "[]") if ids else []
            return [one for one in listed if isinstance(one, dict)]
    return []


def _output(command: Sequence[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _learn_from_container(container: dict[str, Any], others: Iterable[dict[str, Any]], learned: Learned) -> None:
    given = dict(entry.partition("=")[::2] for entry in container.get("Config", {}).get("Env") or [])
    if not given.keys() & {"DD_DATABASE_URL", "DD_DATABASE_HOST", "PORTAL_UPLOAD_DIR"}:
        return
    name = str(container.get("Name", "")).lstrip("/")
    origin = f"container {name}"
    values = {**given, **_parts(given.get("DD_DATABASE_URL", ""))}
    values.pop("DD_DATABASE_URL", None)
    if host := values.get("DD_DATABASE_HOST"):
        values |= _address_outside(host, values.get("DD_DATABASE_PORT", "5432"), others)
    for setting in ("PORTAL_UPLOAD_DIR", "PORTAL_AUDIT_DIR"):
        if inside := values.pop(setting, ""):
            values |= {setting: source} if (source := _source_of(container, inside)) else {}
    if "PORTAL_UPLOAD_DIR" not in values and (source := _source_of(container, _MEDIA_OF_DEFECTDOJO)):
        values["PORTAL_UPLOAD_DIR"] = source
    values.pop("BACKUP_LOCAL_PATH", None)  # a path inside the container
    _take(values, origin, learned)


def _address_outside(host: str, port: str, containers: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The address, from outside, of a server that containers reach by a network name."""
    for container in containers:
        networks = container.get("NetworkSettings", {})
        for network in (networks.get("Networks") or {}).values():
            if host not in _names(container, network):
                continue
            published = (networks.get("Ports") or {}).get(f"{port}/tcp") or []
            if published:
                return {"DD_DATABASE_HOST": "127.0.0.1", "DD_DATABASE_PORT": str(published[0]["HostPort"])}
            if network.get("IPAddress"):
                return {"DD_DATABASE_HOST": str(network["IPAddress"]), "DD_DATABASE_PORT": port}
    return {}


def _names(container: dict[str, Any], network: dict[str, Any]) -> Iterator[str]:
    yield str(container.get("Name", "")).lstrip("/")
    yield from network.get("Aliases") or []


def _source_of(container: dict[str, Any], inside: str) -> str:
    """The directory on this machine that is mounted at a container's path, or above it."""
    for mount in container.get("Mounts") or []:
        destination = Path(mount.get("Destination", "/nowhere"))
        if mount.get("Source") and Path(inside).is_relative_to(destination):
            return str(Path(mount["Source"]) / Path(inside).relative_to(destination))
    return ""
