"""What tests of crashes share."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from portal.ops.repository.repository import LOCK_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.portal import Portal


LONG = os.environ.get("KEKKAI_LONG_TESTS") == "1"

SEED = int(os.environ.get("KEKKAI_TEST_SEED", "1"))

_MOST_ROUNDS = int(os.environ.get("KEKKAI_LONG_ROUNDS", "1000"))


def rounds(usual: int, *, in_long: int) -> int:
    """The number of rounds of a test of kills or races; KEKKAI_LONG_ROUNDS sets the most in the long form."""
    return min(in_long, _MOST_ROUNDS) if LONG else usual


def lock_is_free(portal: Portal) -> bool:
    """Whether nobody holds the repository's lock."""
    try:
        descriptor = os.open(portal.archives / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def endless_dump(portal: Portal) -> Path:
    """A directory with a pg_dump that writes everything and then does not end."""
    program = portal.directory / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n"{portal.bin_dir}/pg_dump" "$@"\n[ "$1" = --version ] || exec sleep 600\n')
    program.chmod(0o755)
    return program.parent
