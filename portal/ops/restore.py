"""Restoring the portal, or a part of it: all of it or nothing, and it can be taken back.

    verify    the archive is intact
    plan      what will be done, and what is in the way
    confirm   somebody says yes
    stage     everything goes to the disks and the server that it is for, beside what is live
    apply     what is live steps aside, and the stage takes its place
    report    what was done, and how to take it back

Until `apply` nothing live is touched, and a crash is undone by the next restore; from `apply` on it is finished by it.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import structlog

from portal.ops.archive.index import Member, MemberType
from portal.ops.archive.lanes import available_cores
from portal.ops.archive.plain import PlainArchive
from portal.ops.archive.reader import ArchiveReader, is_below
from portal.ops.backup import BackupJob, Clock, Progress, Step, read_text, utc_now
from portal.ops.errors import (
    ConfigurationError,
    NotConfirmedError,
    NotIntactError,
    OpsError,
    RestoreError,
)
from portal.ops.manifest import Manifest
from portal.ops.model import Component, VerifyLevel, timestamp
from portal.ops.process import ProcessRunner, SystemRunner
from portal.ops.repository import ArchiveFile, Repository, read_sidecar
from portal.ops.restore_model import RestoreConfig, RestorePlan, RestoreResult, RestoreScope
from portal.ops.restore_record import RestoreRecord, RestoreRecords, RestoreState
from portal.ops.settings import load_settings
from portal.ops.sources.dump_header import HEAD_BYTES, dump_major
from portal.ops.targets.database import DatabaseRestore, RestoreMode
from portal.ops.targets.files import FileRestore
from portal.ops.verify import Verifier, open_archive

__all__ = ["RestoreConfig", "RestoreJob", "RestoreMode", "RestoreResult", "RestoreScope", "create_restore_job"]
