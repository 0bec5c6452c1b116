"""Finds out where an S3 bucket is, if the store refers requests for it to another region or endpoint.

A store says so in the body of an error, in a header, or by a redirect. `obstore` shows only the body. It follows some
redirects, with a signature that no other host accepts, and tells nothing about the others. So the store is asked for
the bucket once more: without credentials, which such an answer does not need, and without following.
"""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from portal.ops.storage.connection import open_connection
from portal.ops.storage.credentials import region_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from portal.ops.settings.destination import Destination

_SECONDS: Final = 10
_CODES: Final = ("PermanentRedirect", "TemporaryRedirect", "BareRedirect", "AuthorizationHeaderMalformed")
_REDIRECTED: Final = re.compile(r"status code: 30[1278]")
_REDIRECTS: Final = frozenset({301, 302, 307, 308})
_REGION: Final = re.compile(r"expecting \\?'([a-z0-9-]+)|<Region>([a-z0-9-]+)</Region>")
_ENDPOINT: Final = re.compile(r"<Endpoint>(?:https?://)?([A-Za-z0-9.:-]+)</Endpoint>")
_AMAZON: Final = re.compile(r"s3[.-]([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")


class Place(NamedTuple):
    """Where a bucket is, as far as the store tells.

    Arguments:
        region: the region, if it is another one.
        endpoint: the endpoint, if it is another one.
    """

    region: str | None = None
    endpoint: str | None = None

    @property
    def message(self) -> str:
        """Where the bucket is, to complete "the bucket is"."""
        region = f"in the region {self.region}" if self.region else ""
        if self.endpoint:
            return f"{region}, at {self.endpoint}" if region else f"at {self.endpoint}"
        return f"{region or 'in another region'}, or at another endpoint"

    @property
    def hint(self) -> str:
        """What to set."""
        given = {"region": self.region, "endpoint": self.endpoint}
        known = " and ".join(f"{name}={value}" for name, value in given.items() if value)
        return (
            f"Set {known} in BACKUP_OFFSITE_URLS." if known else "Correct region= and endpoint= in BACKUP_OFFSITE_URLS."
        )


class _Answer(NamedTuple):
    """What a store answers to a request for the bucket itself."""

    status: int = 0
    region: str = ""
    location: str = ""


def bucket_address(destination: Destination, region: str) -> tuple[str, str]:
    """The endpoint of an S3 destination, and the path of its bucket there, without a slash at the end."""
    endpoint = destination.options.get("endpoint")
    if endpoint and destination.options.get("addressing") == "host":
        return endpoint, ""
    return endpoint or f"https://s3.{region}.amazonaws.com", f"/{destination.place}"


def find_place(destination: Destination, environ: Mapping[str, str], said: str) -> Place | None:
    """Where a bucket is, if that is why a request failed; None if the store refers to no other place.

    Arguments:
        environ: variables with the region.
        said: the text of the error.
    """
    is_referred = any(code in said for code in _CODES) or _REDIRECTED.search(said) is not None
    region, host = _first(_REGION, said), _first(_ENDPOINT, said)
    if not (region or host):
        answer = _ask(destination, environ)
        is_referred |= answer.status in _REDIRECTS or (answer.status == http.client.BAD_REQUEST and bool(answer.region))
        region, host = answer.region, urlsplit(answer.location).netloc
    if not is_referred:
        return None
    return _place(destination, region_of(destination, environ), region, host)


def _place(destination: Destination, signed_for: str, region: str, host: str) -> Place:
    host = host.removeprefix(f"{destination.place}.")
    if amazon := _AMAZON.fullmatch(host):
        region = region or amazon[1]
    given = destination.options.get("endpoint", "")
    is_other = bool(host) and (bool(given) or not amazon) and host != urlsplit(given).netloc
    scheme = urlsplit(given).scheme or "https"
    return Place(region=region if region != signed_for else None, endpoint=f"{scheme}://{host}" if is_other else None)


def _ask(destination: Destination, environ: Mapping[str, str]) -> _Answer:
    endpoint, path = bucket_address(destination, region_of(destination, environ))
    connection = open_connection(endpoint, _SECONDS)
    try:
        connection.request("HEAD", f"{urlsplit(endpoint).path.rstrip('/')}{path}" or "/")
        found = connection.getresponse()
        return _Answer(found.status, found.getheader("x-amz-bucket-region", ""), found.getheader("Location", ""))
    except (OSError, http.client.HTTPException, ValueError):
        return _Answer()
    finally:
        connection.close()


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return next(filter(None, found.groups()), "") if found else ""
