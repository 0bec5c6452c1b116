"""A real server of Azure's blobs for tests: Microsoft's Azurite, where npm has installed it."""

from __future__ import annotations

import base64
import hmac
import http.client
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from email.utils import formatdate
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from demo.ports import ReservedPort
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCOUNT: Final = "devstoreaccount1"
KEY: Final = base64.b64encode(b"a key of the test's own, 64 bytes long, which Azurite is told...").decode()
CONTAINER: Final = "backup"
_PROGRAM: Final = "azurite-blob"
_VERSION: Final = "2021-08-06"


@pytest.fixture(scope="session")
def azurite_port() -> Iterator[int]:
    """The port of one server for all tests of a process, with a container."""
    if not (program := shutil.which(_PROGRAM)):
        pytest.skip(f"there is no {_PROGRAM}: npm install --global azurite")
    with tempfile.TemporaryDirectory() as directory, _served(program, directory) as port:
        yield port


@pytest.fixture
def azure_url(azurite_port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """A destination of the test's own; its credentials are in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    place = f"az://{CONTAINER}/test-{uuid4().hex[:8]}"
    return f"{place}?account={ACCOUNT}&endpoint=http://127.0.0.1:{azurite_port}/{ACCOUNT}"


def sas_token(permissions: str) -> str:
    """A token for the container ("service SAS"), with permissions such as ``rcl``."""
    start, end = "2026-01-01T00:00:00Z", "2099-01-01T00:00:00Z"
    resource = f"/blob/{ACCOUNT}/{CONTAINER}"
    fields = [permissions, start, end, resource, "", "", "", _VERSION, "c", "", "", "", "", "", "", ""]
    given = {"sp": permissions, "st": start, "se": end, "sv": _VERSION, "sr": "c", "sig": _signature(fields)}
    return urlencode(given)


def _signature(fields: list[str]) -> str:
    mac = hmac.new(base64.b64decode(KEY), "\n".join(fields).encode(), "sha256").digest()
    return base64.b64encode(mac).decode()


@contextmanager
def _served(program: str, directory: str) -> Iterator[int]:
    reserved = ReservedPort()
    port = reserved.number
    command = [program, "--silent", "--disableTelemetry", "--skipApiVersionCheck", f"--blobPort={port}"]
    process = subprocess.Popen(
        [*command, f"--location={directory}"],
        env={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}", "PATH": "/usr/local/bin:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _has_container(port), seconds=60)
        yield port
    finally:
        process.terminate()
        process.wait()
        reserved.release()


def _has_container(port: int) -> bool:
    """Create the container; False while nobody answers. The signature is Azure's "Shared Key"."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION, "Content-Length": "0"}
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    fields = [*["PUT", *[""] * 11], f"x-ms-date:{headers['x-ms-date']}", f"x-ms-version:{_VERSION}", resource]
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{_signature(fields)}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("PUT", f"/{ACCOUNT}/{CONTAINER}?restype=container", headers=headers)
        return connection.getresponse().status in (201, 409)
    except OSError:
        return False
    finally:
        connection.close()
