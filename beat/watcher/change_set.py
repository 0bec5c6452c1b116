"""The changes for one task of the watcher, and the task's id. This module reads no clock."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from portal.ops.model import timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

ACTOR: Final = "watcher"
"""The requester in the access log."""


@dataclass(frozen=True, kw_only=True)
class ChangeSet:
    """Changes that are backed up together.

    Arguments:
        moment: when they were first to be sent.
        paths: changed paths, relative to the uploads; a directory includes everything below it.
        is_scan: the whole tree is to be examined, without a list of paths.
    """

    moment: datetime
    paths: frozenset[str] = field(default_factory=frozenset)
    is_scan: bool = False

    @property
    def task_id(self) -> str:
        """The id of the task: the same changes have the same id, however often they are sent."""
        said = json.dumps([self.moment.isoformat(), sorted(self.paths), self.is_scan])
        kind = "scan" if self.is_scan else "media"
        return f"{kind}-{self.moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}-{sha256(said.encode()).hexdigest()[:10]}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the task."""
        common = {"actor": ACTOR, "moment": timestamp(self.moment), "incremental": True}
        return common if self.is_scan else {**common, "changed": sorted(self.paths)}

    def to_dict(self) -> dict[str, Any]:
        """The changes as types of JSON."""
        return {"moment": self.moment.isoformat(), "paths": sorted(self.paths), "scan": self.is_scan}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ChangeSet:
        """The changes from the output of `to_dict`; KeyError, TypeError or ValueError if it is invalid."""
        moment = datetime.fromisoformat(facts["moment"])
        paths = facts["paths"]
        if moment.tzinfo is None or not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError("no moment in a time zone, or no list of paths")
        return cls(moment=moment, paths=frozenset(paths), is_scan=bool(facts["scan"]))
