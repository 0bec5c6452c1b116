"""Off-site destinations, parsed from URLs such as ``s3://bucket/prefix?region=eu-central-1``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_OBJECT_KEY: Final = re.compile(r"[A-Za-z0-9._=/+-]*")


class DestinationError(ValueError):
    """Raised for an invalid destination; the message continues "the value" and contains no secret."""


class Scheme(StrEnum):
    """The kinds of off-site store."""

    S3 = "s3"
    GS = "gs"
    AZ = "az"
    SFTP = "sftp"
    FILE = "file"


_OPTIONS: Final[Mapping[Scheme, frozenset[str]]] = {
    Scheme.S3: frozenset({"endpoint", "region", "storage_class", "lock", "addressing"}),
    Scheme.GS: frozenset({"storage_class"}),
    Scheme.AZ: frozenset({"account", "endpoint", "storage_class"}),
    Scheme.SFTP: frozenset({"key", "known_hosts"}),
    Scheme.FILE: frozenset(),
}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {"lock": ("governance", "compliance"), "addressing": ("path", "host")}


@dataclass(frozen=True, kw_only=True)
class Destination:
    """One destination of off-site copies, without secrets.

    Arguments:
        scheme: the kind of store.
        place: the bucket or container; the host for SFTP; empty for a directory.
        prefix: the prefix of all names, without slashes around; for SFTP and directories an absolute path.
        user: the user on an SFTP server; empty for the user of this process.
        port: the port of an SFTP server.
        options: the options after the question mark.
    """

    scheme: Scheme
    place: str
    prefix: str
    user: str = ""
    port: int = 22
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The URL without its options, for people and logs."""
        if self.scheme in (Scheme.SFTP, Scheme.FILE):
            user = f"{self.user}@" if self.user else ""
            port = f":{self.port}" if self.scheme is Scheme.SFTP and self.port != 22 else ""
            return f"{self.scheme}://{user}{self.place}{port}{self.prefix}"
        return f"{self.scheme}://{self.place}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def identifier(self) -> str:
        """A short name, safe in paths and labels, that depends only on the place."""
        where = "\n".join((self.shown, self.options.get("endpoint", ""), self.options.get("account", "")))
        return f"{self.scheme}-{sha256(where.encode()).hexdigest()[:12]}"


def parse_destination(url: str) -> Destination:
    """Parse a URL.

    Raises:
        DestinationError: it is no destination, has an unknown option, or contains a password.
    """
    try:
        parts = urlsplit(url)
        scheme = Scheme(parts.scheme)
        port = parts.port
    except ValueError:
        kinds = ", ".join(f"{kind}://" for kind in Scheme)
        raise DestinationError(f"has a URL that starts with none of {kinds}, or has no valid port") from None
    if parts.password or (parts.username and scheme is not Scheme.SFTP):
        raise DestinationError(f"has a {scheme}:// URL with credentials in it; they belong in variables or files")
    if parts.fragment:
        raise DestinationError(f"has a {scheme}:// URL with a '#' in it")
    if (port is not None or ":" in parts.netloc.rpartition("@")[2]) and scheme is not Scheme.SFTP:
        raise DestinationError(f"has a {scheme}:// URL with a port in it")
    return Destination(
        scheme=scheme,
        place=_place(scheme, parts.hostname or "", parts.netloc),
        prefix=_prefix(scheme, unquote(parts.path)),
        user=unquote(parts.username or ""),
        port=port or 22,
        options=_options(scheme, parts.query),
    )


def parse_destinations(text: str) -> tuple[Destination, ...]:
    """Parse destinations separated by spaces.

    Raises:
        DestinationError: one is invalid, or occurs twice.
    """
    found = tuple(map(parse_destination, text.split()))
    if len({one.identifier for one in found}) < len(found):
        raise DestinationError("names the same place twice")
    return found


def with_own_names(
    urls: tuple[Destination, ...], *, place: str | None, bucket: str | None, prefix: str, endpoint: str | None
) -> tuple[Destination, ...]:
    """Destinations, including the bucket described by the portal's own variables.

    Arguments:
        urls: destinations given as URLs.
        place: ``s3`` requires a bucket, ``local`` forbids one; None uses a bucket if one is named.

    Raises:
        DestinationError: the variables contradict each other, or the URLs.
    """
    named = bool(bucket or prefix or endpoint)
    if place == "local" and named:
        raise DestinationError("has the destination local, but names a bucket, its prefix or its endpoint too")
    if not named and place != Scheme.S3:
        return urls
    if not bucket:
        raise DestinationError("asks for a copy on S3, but names no bucket")
    own = parse_destination(f"s3://{bucket}/{prefix.strip('/')}" + (f"?endpoint={endpoint}" if endpoint else ""))
    if not urls:
        return (own,)
    if not any(
        own.shown == one.shown and own.options.get("endpoint") in (None, one.options.get("endpoint")) for one in urls
    ):
        raise DestinationError(f"names {own.shown}, which is not among the URLs of off-site copies")
    return urls


def _place(scheme: Scheme, host: str, netloc: str) -> str:
    if scheme is Scheme.FILE:
        if netloc:
            raise DestinationError("has a file:// URL with a host in it; write three slashes, as file:///mnt/nas")
        return ""
    if not host:
        raise DestinationError(f"has a {scheme}:// URL without a {'host' if scheme is Scheme.SFTP else 'bucket'}")
    return host if scheme is Scheme.SFTP else netloc


def _prefix(scheme: Scheme, path: str) -> str:
    if "\0" in path or "\n" in path:
        raise DestinationError(f"has a {scheme}:// URL with a control character in it")
    if scheme in (Scheme.SFTP, Scheme.FILE):
        if not path.startswith("/") or path.strip("/") == "":
            raise DestinationError(f"has a {scheme}:// URL without an absolute path of a directory")
        return path.rstrip("/")
    prefix = path.strip("/")
    if not _OBJECT_KEY.fullmatch(prefix) or "//" in prefix or any(part in (".", "..") for part in prefix.split("/")):
        raise DestinationError(f"has a {scheme}:// URL with a prefix other than letters, digits and ._=+-/")
    return prefix


def _options(scheme: Scheme, query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS[scheme]:
            known = ", ".join(sorted(_OPTIONS[scheme])) or "none"
            raise DestinationError(f"has a {scheme}:// URL with an unknown option {name!r}; known: {known}")
        if name in found or not value:
            raise DestinationError(f"has a {scheme}:// URL with the option {name} twice, or without a value")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise DestinationError(f"has the option {name}={value}; expected one of {', '.join(_CHOICES[name])}")
        found[name] = value
    return found
