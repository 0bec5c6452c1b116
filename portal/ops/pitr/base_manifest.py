"""Reads the two files with which the server describes a base backup. This module is pure.

backup_label      where in the WAL, and on which timeline, a recovery has to begin
backup_manifest   size and digest of every file, and the WAL that makes the copy consistent
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import NotIntactError
from portal.ops.model import Component
from portal.ops.pitr.lsn import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Mapping

LABEL: Final = "backup_label"
MANIFEST: Final = "backup_manifest"
PREFIX: Final = Component.CLUSTER.member

_START: Final = re.compile(r"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", re.MULTILINE)
_TIMELINE: Final = re.compile(r"^START TIMELINE: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """Where a base backup starts and ends in the WAL.

    Arguments:
        start_lsn: where a recovery begins.
        end_lsn: where the copy becomes consistent.
    """

    timeline: int
    start_lsn: int
    end_lsn: int


def read_facts(kept: Mapping[str, bytes]) -> BaseFacts:
    """Read the two files that describe a base backup.

    Raises:
        NotIntactError: a file is missing or invalid.
    """
    try:
        label = kept[LABEL].decode("utf-8", "replace")
        start, timeline = _START.search(label), _TIMELINE.search(label)
        ranges: list[dict[str, Any]] = json.loads(kept[MANIFEST])["WAL-Ranges"]
        if not (start and timeline and ranges):
            raise ValueError("a line is missing")
        end = max(parse_lsn(one["End-LSN"]) for one in ranges)
        return BaseFacts(timeline=int(timeline[1]), start_lsn=parse_lsn(start[1]), end_lsn=end)
    except (KeyError, TypeError, ValueError) as error:
        raise NotIntactError(
            "the base backup does not describe itself as PostgreSQL's do", hint="Make another one."
        ) from error


def manifest_faults(files: Mapping[str, tuple[int, str]], manifest: bytes) -> list[str]:
    """Compare files with the server's own list of them, as pg_verifybackup does.

    Arguments:
        files: size and SHA-256 of every file, by its path in the data directory.
        manifest: the content of `backup_manifest`.

    Returns:
        the differences, in words.
    """
    try:
        body, _, tail = manifest.rpartition(b'"Manifest-Checksum"')
        found = json.loads(manifest)
        expected = {_path(one): one for one in found["Files"]}
        if sha256(body).hexdigest() != found["Manifest-Checksum"] or not tail:
            return [f"{MANIFEST} does not have its own checksum"]
        return [
            *(f"{path} is in {MANIFEST} and not in the backup" for path in sorted(expected.keys() - files.keys())),
            *(
                f"{path} is in the backup and not in {MANIFEST}"
                for path in sorted(files.keys() - expected.keys() - {MANIFEST})
            ),
            *(
                f"{path} is not what {MANIFEST} says"
                for path, one in sorted(expected.items())
                if path in files and not _fits(files[path], one)
            ),
        ]
    except (KeyError, TypeError, ValueError):
        return [f"{MANIFEST} is invalid"]


def _path(one: Mapping[str, Any]) -> str:
    return str(one["Path"]) if "Path" in one else bytes.fromhex(one["Encoded-Path"]).decode("utf-8", "surrogateescape")


def _fits(found: tuple[int, str], one: Mapping[str, Any]) -> bool:
    size, digest = found
    return size == one["Size"] and (one.get("Checksum-Algorithm") != "SHA256" or digest == one["Checksum"])
