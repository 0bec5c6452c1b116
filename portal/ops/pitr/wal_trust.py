"""Decides which WAL to take from off-site: that of trusted signers, and unsigned WAL from before it was signed.

WAL is signed from some segment on. Objects before that segment are taken unsigned, and listed. After it, an unsigned
object was put there by somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from portal.ops.errors import NotIntactError
from portal.ops.pitr.lsn import parse_history_name
from portal.ops.pitr.wal_archive import DIRECTORY, SUFFIX
from portal.ops.pitr.wal_objects import place_in_wal, signer_of

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

_TIMELINE_DIGITS: Final = 8


class WalTrust:
    """Decides about objects, which have to come in the order of the WAL.

    Arguments:
        signers: the trusted signers; None to trust everyone.
    """

    def __init__(self, signers: AbstractSet[str] | None) -> None:
        self._signers = signers
        self._first_signed = ""
        self.unsigned: list[str] = []
        """The objects that were taken without a signature."""

    def begin(self) -> None:
        """Begin with another cluster."""
        self._first_signed = ""

    def is_signed(self, place: str, data: bytes) -> bool:
        """True if an object is signed by one of the signers, False if by nobody.

        Arguments:
            place: its whole name.
            data: a gzip file with a comment.

        Raises:
            NotIntactError: it is signed by somebody else, or the signature is not its own.
        """
        if self._signers is None:
            return False
        signer = signer_of(_signed_name(place), data)
        if signer and signer not in self._signers:
            raise NotIntactError(
                f"it is signed by key {signer}, which is not trusted",
                hint="If that is a repository of yours, add it to BACKUP_OFFSITE_SIGNERS.",
            )
        return bool(signer)

    def take(self, file: str, place: str, *, is_signed: bool) -> None:
        """Take an object.

        Arguments:
            file: the segment or history that it holds, or holds a part of.
            place: its whole name.

        Raises:
            NotIntactError: it is unsigned, and should not be.
        """
        if self._signers is None:
            return
        if is_signed:
            if parse_history_name(file) is None:
                self._first_signed = self._first_signed or file
            return
        if self._first_signed and not _is_older(file, self._first_signed):
            raise NotIntactError(
                "it is not signed, although earlier WAL is",
                hint="Find out who stored it; to use it all the same, set BACKUP_OFFSITE_SIGNERS=any.",
            )
        self.unsigned.append(place)


def in_order(file: str) -> tuple[bool, str, str]:
    """Sorts segments by their place in the WAL, then the histories of timelines."""
    return parse_history_name(file) is not None, place_in_wal(file), file


def _is_older(file: str, first_signed: str) -> bool:
    """True if a history was written before the first signed segment was, which is on its timeline or on a later one."""
    timeline = parse_history_name(file)
    return timeline is not None and timeline <= int(first_signed[:_TIMELINE_DIGITS], 16)


def _signed_name(place: str) -> str:
    """The part of an object's name that its signature covers: all but directory and digest."""
    return place.removeprefix(f"{DIRECTORY}/").removesuffix(".age").removesuffix(SUFFIX).rpartition(".")[0]
