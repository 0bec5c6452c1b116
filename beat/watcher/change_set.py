"""The changes in one task of the watcher, and the task's name. It reads no clock."""

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
"""Who started it, as the access log says."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Changes that are backed up together.

    Arguments:
        moment: when they were first to be sent.
        paths: what has changed, relative to the uploads; a directory stands for all that is below it.
        is_scan: the whole tree is to be looked at; nothing is listed.
    """

    moment: datetime
    paths: frozenset[str] = field(default_factory=frozenset)
    is_scan: bool = False

    @property
    def task_id(self) -> str:
        """The task's name: the same batch has the same one, however often it is sent."""
        said = json.dumps([self.moment.isoformat(), sorted(self.paths), self.is_scan])
        kind = "scan" if self.is_scan else "media"
        return f"{kind}-{self.moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}-{sha256(said.encode()).hexdigest()[:10]}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the task."""
        common = {"actor": ACTOR, "moment": timestamp(self.moment), "incremental": True}
        return common if self.is_scan else {**common, "changed": sorted(self.paths)}

    def to_dict(self) -> dict[str, Any]:
        """The batch in the types of JSON."""
        return {"moment": self.moment.isoformat(), "paths": sorted(self.paths), "scan": self.is_scan}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Batch:
        """The batch that `to_dict` made; KeyError, TypeError or ValueError where it is invalid."""
        moment = datetime.fromisoformat(facts["moment"])
        paths = facts["paths"]
        if moment.tzinfo is None or not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError("no moment in a time zone, or no list of paths")
        return cls(moment=moment, paths=frozenset(paths), is_scan=bool(facts["scan"]))
