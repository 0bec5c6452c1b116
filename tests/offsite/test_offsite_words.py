"""What is said of copies: states, results, and what cannot be found."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from portal.ops.errors import (
    ConfigurationError,
    IdentityError,
    NotIntactError,
    StorageError,
    StoreFullError,
    StoreUnreachableError,
)
from portal.ops.model import BackupType, VerifyLevel
from portal.ops.offsite.commit import Commit, Segment
from portal.ops.offsite.copy import CopyResult, _Done, _gone, _unopened
from portal.ops.offsite.fetch import Fetched
from portal.ops.offsite.health import DestinationState, Proof, WalCopying
from portal.ops.offsite.layout import Stem
from portal.ops.offsite.listing import Listing
from portal.ops.offsite.prune import OffsitePruneResult
from portal.ops.offsite.result import DestinationsResult
from portal.ops.offsite.verify import CopyFinding, OffsiteVerification
from portal.ops.repository.entry import Entry
from portal.ops.retention.plan import Decision
from portal.ops.settings.destination import parse_destination

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW: Final = datetime(2026, 3, 1, tzinfo=UTC)
DAY: Final = timedelta(days=1)
ID: Final = "full_20260201_120000_abcdef"
AWAY: Final = StoreUnreachableError("the store is away", hint="Try again.")
WRONG_KEY: Final = IdentityError("no key fits", hint="Name another.")
STATE: Final = DestinationState(
    shown="file:///disk",
    identifier="disk",
    copies=2,
    newest=ID,
    moment=NOW - DAY,
    missing=(),
    oldest_missing=None,
    stored_bytes=17,
    verified=None,
    drilled=None,
    recipients_proven=True,
)


class TestState:
    def test_a_target_that_is_met(self) -> None:
        """To the very limit; nothing that was never copied is late."""
        assert STATE.fault(DAY, NOW) == STATE.fault(DAY, NOW - DAY / 2) == ""
        assert replace(STATE, missing=(ID,), oldest_missing=NOW - DAY).fault(DAY, NOW) == ""
        assert replace(STATE, newest=None, moment=None).fault(DAY, NOW) == ""
        assert replace(STATE, verified=Proof(moment=NOW, level="checksum")).fault(DAY, NOW) == ""

    def test_a_newest_copy_that_is_old(self) -> None:
        """Its age and what is allowed are told."""
        assert (
            STATE.fault(timedelta(hours=6), NOW)
            == "the newest archive with a copy in file:///disk is 24 h old, and 6 h are allowed"
        )

    def test_an_archive_without_a_copy(self) -> None:
        """The oldest one is named, and counts before the newest copy's age."""
        state = replace(STATE, missing=("newer", "older"), oldest_missing=NOW - 3 * DAY)
        assert state.fault(DAY / 2, NOW) == "older has no copy in file:///disk, although it is 3 days old"

    def test_damage(self) -> None:
        """It counts before anything else; three copies are named."""
        state = replace(
            STATE, verified=Proof(moment=NOW, level="checksum", damaged=tuple("abcd")), oldest_missing=NOW - 3 * DAY
        )
        assert state.fault(DAY, NOW) == "copies in file:///disk are damaged: a, b, c"

    def test_wal_has_two_minutes(self) -> None:
        """Longer, and it is told since when, why, and what helps."""
        since = NOW - timedelta(minutes=2)
        state = replace(STATE, wal=WalCopying(worked=since, problem="it is full\n  hint: Make room."))
        assert (STATE.wal_fault(NOW), state.wal_fault(NOW)) == (("", ""), ("", ""))
        what, hint = state.wal_fault(NOW + timedelta(minutes=1))
        assert (what, hint) == ("not all WAL has been copied to file:///disk for 3 min: it is full", "Make room.")
        what, hint = replace(state, wal=WalCopying(worked=since)).wal_fault(NOW + timedelta(seconds=1))
        assert what == "not all WAL has been copied to file:///disk for 2 min"
        assert hint.startswith("See whether the WAL service runs")

    def test_as_json(self) -> None:
        """Everything that is known, under its name."""
        found = replace(
            STATE,
            missing=("x",),
            verified=Proof(moment=NOW, level="contents", damaged=("y",)),
            foreign=("z",),
            wal=WalCopying(worked=NOW, problem="p"),
        ).to_dict(NOW)
        assert found == {
            "destination": "file:///disk",
            "copies": 2,
            "newest": ID,
            "age_seconds": 86400.0,
            "missing": ["x"],
            "stored_bytes": 17,
            "verified": {"timestamp": "2026-03-01T00:00:00Z", "level": "contents", "damaged": ["y"]},
            "drilled": None,
            "recipients_proven": True,
            "foreign": ["z"],
            "wal": {"worked": "2026-03-01T00:00:00Z", "problem": "p"},
        }
        bare = replace(STATE, newest=None, moment=None).to_dict(NOW)
        assert (bare["age_seconds"], bare["verified"], bare["wal"]) == (None, None, None)


class TestResult:
    def test_without_errors(self) -> None:
        """Nothing is wrong, and nothing is to be tried again."""
        result = DestinationsResult()
        assert (result.success, result.retryable, result.exit_code, result.errors, result.error) == (
            True,
            False,
            0,
            (),
            None,
        )

    def test_with_errors(self) -> None:
        """Each is told once, the first gives the exit code, and any makes a retry worth while."""
        result = DestinationsResult(faults=(WRONG_KEY, AWAY, WRONG_KEY))
        assert (result.success, result.retryable, result.exit_code) == (False, True, IdentityError.exit_code)
        assert result.errors == ("no key fits\n  hint: Name another.", "the store is away\n  hint: Try again.")
        assert result.error == "\n".join(result.errors)
        assert not DestinationsResult(faults=(WRONG_KEY,)).retryable

    def test_of_a_copy(self) -> None:
        """As JSON."""
        result = CopyResult(
            copied=(("disk", "a"),),
            stored_bytes=5,
            missing={"disk": ("b", "c")},
            failed=(("disk", "b"),),
            warnings=("w",),
            faults=(AWAY,),
            duration_seconds=1.23456,
        )
        assert result.to_dict() == {
            "success": False,
            "copied": [{"destination": "disk", "backup_id": "a"}],
            "stored_bytes": 5,
            "missing": {"disk": ["b", "c"]},
            "failed": [{"destination": "disk", "backup_id": "b"}],
            "warnings": ["w"],
            "error": str(AWAY),
            "errors": [str(AWAY)],
            "duration_seconds": 1.235,
            "format_version": 1,
        }

    @pytest.mark.parametrize(("count", "names"), [(1, "x.1"), (3, "x.1, x.2, x.3"), (5, "x.1, x.2, x.3 and 2 more")])
    def test_copies_that_are_gone(self, count: int, names: str) -> None:
        """Three are named, by their stems in order; none is no warning."""
        disk = parse_destination("file:///disk")
        assert _gone([], disk) == []
        assert _gone([Stem("x", number) for number in range(count, 0, -1)], disk) == [
            f"copies in file:///disk are gone: {names}; the off-site rules would keep them, so look for them with "
            "'offsite list --as-of TIME'"
        ]
        assert _unopened([commit("x")] * 2, disk).startswith(
            "2 copies in file:///disk are of archives that are no longer here,"
        )

    def test_after_a_failure(self) -> None:
        """The store may refuse one archive, and not two in a row; one that is away or full is given up at once."""
        done = _Done(missing=[])
        refused, full = StorageError("no"), StoreFullError("full")
        with done.attempt("a"):
            raise refused
        with done.attempt("b"):
            pass
        with done.attempt("c"):
            raise refused
        with done.attempt("d"):
            raise WRONG_KEY
        with done.attempt("e"):
            raise refused
        with pytest.raises(StorageError, match="no"), done.attempt("f"):
            raise refused
        assert (done.faults, done.is_logged) == ([refused, refused, WRONG_KEY, refused], True)
        for error in (AWAY, full):
            with pytest.raises(StorageError), _Done(missing=[]).attempt("a"):
                raise error
        assert list(done.failed) == list("acdef")
        entry = Entry(name="child", type=None, moment=NOW, modified=NOW, size=1, parent="d")
        with pytest.raises(IdentityError, match=r"^child was not copied: it needs d, which could not be copied\n"):
            done.refuse_orphan(entry)
        for parent in ("b", None):
            done.refuse_orphan(entry._replace(parent=parent))

    def test_of_a_prune(self) -> None:
        """As JSON; what is kept is counted."""
        entry = Entry(name=ID, type=BackupType.FULL, moment=NOW, modified=NOW, size=1)
        decisions = [("disk", Decision(entry=entry, keep=keep, reasons=())) for keep in (True, False, True)]
        result = OffsitePruneResult(
            dry_run=True,
            decisions=tuple(decisions),
            removed=(("disk", "a"),),
            freed_bytes=7,
            spared=("s",),
            swept=("t",),
            wal=("u", "v"),
            duration_seconds=0.00049,
        )
        assert result.to_dict() == {
            "success": True,
            "dry_run": True,
            "removed": [{"destination": "disk", "copy": "a"}],
            "freed_bytes": 7,
            "kept": 2,
            "spared": ["s"],
            "swept": ["t"],
            "wal_removed": 2,
            "warnings": [],
            "error": None,
            "errors": [],
            "duration_seconds": 0.0,
            "format_version": 1,
        }

    def test_of_a_fetch(self) -> None:
        """As JSON."""
        fetched = Fetched(
            backup_id=ID,
            path=Path("/archives/x"),
            destination="disk",
            checksum="ab",
            size=3,
            fetched=("a", "b"),
            signer="ef",
            warnings=("w",),
            duration_seconds=2.0006,
        )
        assert fetched.to_dict() == {
            "success": True,
            "backup_id": ID,
            "path": "/archives/x",
            "destination": "disk",
            "checksum": "ab",
            "size_bytes": 3,
            "fetched": ["a", "b"],
            "signer": "ef",
            "warnings": ["w"],
            "duration_seconds": 2.001,
            "format_version": 1,
        }


def finding(stem: str, *damages: str) -> CopyFinding:
    return CopyFinding(
        destination="disk", stem=stem, backup_id=ID, level=VerifyLevel.CHECKSUM, damages=damages, is_downloaded=True
    )


def verification(*findings: CopyFinding, faults: Sequence[IdentityError] = ()) -> OffsiteVerification:
    return OffsiteVerification(
        findings=findings, level=VerifyLevel.CONTENTS, faults=tuple(faults), duration_seconds=0.12345
    )


class TestVerification:
    def test_of_intact_copies(self) -> None:
        """One and more are counted."""
        one, two = verification(finding("a")), verification(finding("a"), finding("b"))
        assert one.message == "1 copy was verified (contents): every segment is as it should be"
        assert two.message == "2 copies were verified (contents): every segment is as it should be"
        assert (two.intact, two.exit_code, two.error) == (True, 0, None)

    def test_of_damaged_copies(self) -> None:
        """Three are named, each with its first damage; damage counts before what could not be verified."""
        damaged = [finding(name, f"{name} is cut", "more") for name in "abcd"]
        found = verification(finding("e"), *damaged, faults=(WRONG_KEY,))
        assert found.message == "4 of 5 copies are damaged: a: a is cut; b: b is cut; c: c is cut"
        assert (found.intact, found.exit_code) == (False, NotIntactError.exit_code)
        assert found.error == f"{found.message}\n{WRONG_KEY}"

    def test_of_what_could_not_be_verified(self) -> None:
        """It is not intact, even without damage."""
        found = verification(finding("a"), faults=(WRONG_KEY, WRONG_KEY))
        assert (found.intact, found.exit_code, found.error) == (False, IdentityError.exit_code, str(WRONG_KEY))

    def test_as_json(self) -> None:
        """Each copy with its damage."""
        found = verification(finding("a", "cut", "more"), finding("b"))
        assert found.to_dict() == {
            "success": False,
            "level": "contents",
            "message": "1 of 2 copies are damaged: a: cut",
            "copies": [
                {
                    "destination": "disk",
                    "copy": stem,
                    "backup_id": ID,
                    "level": "checksum",
                    "intact": not damages,
                    "damages": damages,
                    "downloaded": True,
                }
                for stem, damages in (("a", ["cut", "more"]), ("b", []))
            ],
            "error": "1 of 2 copies are damaged: a: cut",
            "duration_seconds": 0.123,
            "format_version": 1,
        }


def commit(backup_id: str, generation: int = 0, *, parent: str | None = None, on: str | None = None) -> Commit:
    """A copy whose archive has its own name for a digest.

    Arguments:
        on: the digest of the parent.
    """
    return Commit(
        stem=Stem(backup_id, generation),
        type=backup_id.partition("_")[0],
        moment=NOW,
        copied=NOW,
        archive_size=1,
        archive_sha256=backup_id,
        segment_bytes=1,
        segments=(Segment(1, "0" * 64),),
        recipients=(),
        parent=parent,
        parent_sha256=on,
    )


NEW, OLD, MEDIA = "full_20260202_120000_aaaaaa", "full_20260201_120000_aaaaaa", "media_20260203_120000_aaaaaa"
LISTING: Final = Listing(
    shown="disk",
    commits=(commit(MEDIA), commit(NEW, 1), commit(NEW), commit(OLD)),
    damaged={"full_20250101_120000_aaaaaa": "it is cut"},
    foreign=("media_20250101_120000_bbbbbb",),
)


class TestListing:
    @pytest.mark.parametrize(
        ("name", "stem"),
        [
            ("latest", f"{NEW}.1"),
            (NEW, f"{NEW}.1"),
            (f"{NEW}.0", NEW),
            (f"{NEW}.1", f"{NEW}.1"),
            (OLD, OLD),
            ("full_20260201", OLD),
            ("m", MEDIA),
        ],
    )
    def test_a_copy_is_found(self, name: str, stem: str) -> None:
        """By its id, the start of one, or its stem; the latest is that of a full archive."""
        assert str(LISTING.find(name).stem) == stem

    def test_without_full_archives_the_latest_is_the_newest(self) -> None:
        """Of any type."""
        assert replace(LISTING, commits=(commit(MEDIA), commit("audit_20260101_120000_aaaaaa"))).find(
            "latest"
        ) == commit(MEDIA)

    def test_a_start_of_several(self) -> None:
        """Five are named."""
        with pytest.raises(ConfigurationError, match=f"^'full_2026' could be any of {NEW}, {OLD} in disk\n") as caught:
            LISTING.find("full_2026")
        assert caught.value.hint == "Give more of the id."
        many = tuple(commit(f"media_2026020{day}_120000_aaaaaa") for day in range(1, 8))
        with pytest.raises(ConfigurationError) as caught:
            replace(LISTING, commits=many).find("media")
        assert caught.value.message.endswith("media_20260205_120000_aaaaaa in disk")

    @pytest.mark.parametrize("name", ["audit", "", f"{OLD}.1", f"{OLD}x"])
    def test_what_is_not_there(self, name: str) -> None:
        """No copy has that name."""
        with pytest.raises(ConfigurationError, match=f"^there is no copy '{name}' in disk\n") as caught:
            LISTING.find(name)
        assert caught.value.hint.startswith("'offsite list' shows the copies;")

    def test_none_at_all(self) -> None:
        """There is no latest one."""
        with pytest.raises(ConfigurationError, match=r"^there is no copy in disk\n"):
            Listing(shown="disk", commits=()).find("latest")

    @pytest.mark.parametrize(
        ("name", "why", "hint"),
        [
            ("full_2025", "full_20250101_120000_aaaaaa in disk is not used: it is cut", "Take another copy;"),
            ("media_2025", "media_20250101_120000_bbbbbb in disk is not used: it was not made", "If you know who"),
        ],
    )
    def test_what_cannot_be_used(self, name: str, why: str, hint: str) -> None:
        """The reason is told, and what to do."""
        with pytest.raises(NotIntactError) as caught:
            LISTING.find(name)
        assert caught.value.message.startswith(f"the copy {why}")
        assert caught.value.hint.startswith(hint)

    def test_the_latest_cannot_be_used(self) -> None:
        """Where no other copy is there."""
        with pytest.raises(NotIntactError, match="media_20250101"):
            replace(LISTING, commits=()).find("latest")


class TestLine:
    def test_it_begins_with_the_base(self) -> None:
        """Each archive is followed by the one that needs it."""
        line = (commit("a"), commit("b", parent="a"), commit("c", parent="b"))
        assert Listing(shown="disk", commits=line[::-1]).line_of(line[-1]) == line

    @pytest.mark.parametrize("base", [(), (commit("a", parent="b"),)])
    def test_it_has_a_gap_or_no_beginning(self, base: tuple[Commit, ...]) -> None:
        """Then it is of no use, and an older archive is advised."""
        child = commit("b", parent="a")
        with pytest.raises(NotIntactError, match=r"^b needs [ab], of which there is no copy in disk\n") as caught:
            Listing(shown="disk", commits=(child, *base)).line_of(child)
        assert caught.value.hint == "Take an older archive, or another destination."

    def test_its_faults(self) -> None:
        """None, a gap, another archive in the place of its parent, or a circle."""
        child, parent = commit("c", parent="b", on="b"), commit("b", parent="a")
        newest = {"a": commit("a"), "b": parent, "c": child}
        assert Listing.chain_fault(child, newest) == ""
        assert Listing.chain_fault(child, {"b": parent}) == "it needs a, of which there is no copy"
        other = replace(parent, archive_sha256="x")
        wrong = "the copy of b is not of the archive that c was made on"
        assert Listing.chain_fault(child, {**newest, "b": other}) == wrong
        assert Listing.chain_fault(commit("c", parent="b"), {**newest, "b": other}) == ""
        assert Listing.chain_fault(child, {**newest, "a": commit("a", parent="c")}) == (
            "the copy of c is not of the archive that a was made on"
        )
