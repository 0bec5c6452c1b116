"""A drill with a copy restores the portal from it, and is the proof that its recipients can read copies."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from portal.ops.monitoring.doctor.offsite import OffsiteChecks
from portal.ops.monitoring.facts import read_status
from portal.ops.runtime.progress import read_text, utc_now
from portal.ops.settings.load import load_settings
from portal.ops.storage.age_keys import generate
from tests.support.commands import done
from tests.support.portal import succeeded

if TYPE_CHECKING:
    from tests.support.portal import Portal


@pytest.fixture
def environ(portal: Portal) -> dict[str, str]:
    """A portal with one full backup and a copy of it, encrypted for two recipients, one of whose identities is here."""
    disk = portal.directory / "disk"
    disk.mkdir()
    own, other = (generate(portal.directory / name) for name in ("identity", "other"))
    made = portal.environ(
        BACKUP_OFFSITE_URLS=f"file://{disk}",
        BACKUP_ENCRYPTION_RECIPIENTS=f"{own.recipient} {other.recipient}",
        BACKUP_ENCRYPTION_IDENTITY_FILE=str(own.path),
    )
    succeeded(portal.job().backup_full())
    done("offsite", "copy", environ=made)
    return made


def recipients(environ: dict[str, str]) -> tuple[bool, str]:
    """Whether status says that they are proven, and what the doctor says."""
    settings = load_settings(environ, read_text)
    (state,) = read_status(settings, utc_now()).facts.offsite
    (check,) = [one for one in OffsiteChecks(settings).checks() if one.name == "off-site recipients"]
    return state.recipients_proven, check.look().what


def test_a_drill_from_nothing_but_the_copy(portal: Portal, environ: dict[str, str]) -> None:
    """The portal is restored from the copy; status and doctor then call its recipients proven, until one is added."""
    assert recipients(environ) == (False, "2 recipients, which no drill has proven yet")
    for path in portal.archives.glob("full_*"):
        path.unlink()
    report, _ = done("drill", "offsite:latest", environ=environ)
    assert report["success"]
    assert (report["tables"], report["files"]) > (0, 0)
    assert recipients(environ) == (True, "2 recipients, proven by a drill")
    more = f"{environ['BACKUP_ENCRYPTION_RECIPIENTS']} {generate(portal.directory / 'third').recipient}"
    assert not recipients({**environ, "BACKUP_ENCRYPTION_RECIPIENTS": more})[0]


def test_a_portal_that_would_not_be_complete_is_no_damage_of_the_copy(portal: Portal, environ: dict[str, str]) -> None:
    """The copy was restored as it was backed up: status calls it intact and its recipients proven; the drill failed."""
    done("drill", "offsite:latest", environ={**environ, "BACKUP_DRILL_COMMAND": "false"}, code=1)
    assert recipients(environ)[0]
    status = read_status(load_settings(environ, read_text), utc_now())
    (state,) = status.facts.offsite
    assert state.drilled is not None
    assert state.drilled.damaged == ()
    assert "drill" in {miss.target for miss in status.misses}


def test_a_drill_that_could_not_begin_says_nothing_of_the_copy(portal: Portal, environ: dict[str, str]) -> None:
    """Without a server nothing is known: no proof, and no damage."""
    done("drill", "offsite:latest", environ={**environ, "DD_DATABASE_PORT": "1"}, code=1)
    (state,) = read_status(load_settings(environ, read_text), utc_now()).facts.offsite
    assert state.drilled is None
    assert not state.recipients_proven


def test_an_archive_that_is_here_proves_nothing_of_its_copy(portal: Portal, environ: dict[str, str]) -> None:
    """With the archive in the repository, its copy is decrypted all the same: without the key, or where the copy is
    damaged, the drill fails, and the recipients are not proven."""
    wrong = generate(portal.directory / "wrong").path
    done("drill", "offsite:latest", environ={**environ, "BACKUP_ENCRYPTION_IDENTITY_FILE": str(wrong)}, code=2)
    assert not recipients(environ)[0]
    (segment,) = (portal.directory / "disk").rglob("*.age")
    shutil.copy(segment, portal.directory / "whole")
    segment.write_bytes(segment.read_bytes()[:-1])
    done("drill", "offsite:latest", environ=environ, code=4)
    assert not recipients(environ)[0]
    shutil.copy(portal.directory / "whole", segment)
    done("drill", "offsite:latest", environ=environ)
    assert recipients(environ)[0]
