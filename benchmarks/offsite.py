"""Compares off-site copies with rclone, age and restic, using one S3 server on this machine.

    tools/benchmark.sh offsite [--rounds N] [--scale FACTOR] [--directory DIR]

It backs up SARIF documents, and measures: copying the archive; fetching it; reading one file of a copy; a restore
directly from off-site; and the same with restic on the same server. Every program is run as a whole, in rounds. The
table has medians and, in parentheses, minimum and maximum; memory is that of all processes of a program.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.cases import SARIF
from benchmarks.data import files_below, in_words, provide, read_everything
from benchmarks.machine import machine_line, versions_line
from benchmarks.measure import Command, Memory, Statistic, run
from demo.object_store import ADMINISTRATOR, EmbeddedObjectStore
from portal.ops.storage.age_keys import generate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BUCKET: Final = "benchmark"
_MEMORY_LIMIT: Final = 250e6
_RCLONE_FLAGS: Final = "--s3-no-check-bucket --retries 1"
_CACHE: Final = Path("/var/tmp")  # noqa: S108 - the data set goes into a directory of our own


@dataclass(frozen=True, kw_only=True)
class Target:
    """A limit for the ratio of two medians."""

    what: str
    ours: str
    against: tuple[str, ...]
    limit: float


_COPY, _RCLONE, _AGE_PIPE = "offsite copy", "rclone copyto, encrypted before", "age | rclone rcat"
_FETCH, _CAT, _RCLONE_BACK = "offsite fetch", "cat segments | age -d", "rclone copy, then cat | age -d"
_READ = "extract, one file"
_RESTORE, _DIRECT = "restore, after a fetch", "restore offsite:latest"
_BACKUP, _RESTIC, _RESTIC_BACK = "backup and copy", "restic backup", "restic restore"
_TARGETS: Final = (
    Target(what="copying", ours=_COPY, against=(_RCLONE, _AGE_PIPE), limit=1.3),
    Target(what="fetching", ours=_FETCH, against=(_CAT,), limit=1.5),
    Target(what="one file", ours=_READ, against=(_FETCH,), limit=0.05),
)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.sh offsite", description="Measure off-site copies.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each program runs (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of 600 MB (default: %(default)s)")
    parser.add_argument("--directory", type=Path, default=_CACHE, help="where to work (default: %(default)s)")
    arguments = parser.parse_args()
    missing = [name for name in ("age", "rclone") if not shutil.which(name)]
    if missing:
        sys.exit(f"install first: {', '.join(missing)}")
    data = provide(SARIF.scaled(arguments.scale), arguments.directory / "kekkai-offsite-data")
    with (
        EmbeddedObjectStore() as server,
        tempfile.TemporaryDirectory(prefix="offsite-", dir=arguments.directory) as directory,
    ):
        server.create_bucket(_BUCKET)
        bench = _Bench(server, Path(directory), data)
        bench.prepare()
        _tell(f"{machine_line()}\n{versions_line()}\n{in_words(read_everything(data))} of SARIF documents, ")
        _tell(f"an archive of {in_words(bench.archive.stat().st_size)}; medians of {arguments.rounds} rounds\n")
        for number in range(arguments.rounds):
            bench.play(number)
        bench.show()
    return 0


class _Bench:
    """A server, a repository with one archive, and the measurements."""

    def __init__(self, server: EmbeddedObjectStore, directory: Path, data: Path) -> None:
        self._server = server
        self._directory = directory
        self._data = data
        self._key = generate(directory / "identity")
        self._walls: dict[str, list[float]] = defaultdict(list)
        self._peaks: dict[str, Memory] = {}
        self._segments = directory / "segments"
        self.archive = Path()
        self._member = ""

    def prepare(self) -> None:
        """Back up, encrypt the archive for rclone, and create restic's repository."""
        run(self._ours("backup", "media", "--local", repository="repository", url=""))
        self.archive = next((self._directory / "repository").glob("*.tar.gz"))
        files = files_below(self._data)
        self._member = f"media/{files[len(files) // 2].relative_to(self._data)}"
        sealed = self._directory / "sealed.age"
        run(self._shell(f"age -r {self._key.recipient} -o {sealed} {self.archive}"))
        self._segments.mkdir()

    def play(self, number: int) -> None:
        """One round: every program once, each in its own directory."""
        place, url = f"round-{number}", self._server.url(_BUCKET, f"copies-{number}")
        shutil.rmtree(self._directory / "repository" / ".offsite", ignore_errors=True)
        self._measure(_COPY, self._ours("backup", "offsite", "copy", "--local", repository="repository", url=url))
        target = f":s3:{_BUCKET}/other-{number}"
        self._measure(_RCLONE, self._shell(f"rclone {_RCLONE_FLAGS} copyto sealed.age {target}/sealed.age"))
        pipe = f"age -r {self._key.recipient} {self.archive} | rclone {_RCLONE_FLAGS} rcat {target}/piped.age"
        self._measure(_AGE_PIPE, self._shell(pipe))
        if not number:
            here = f":s3:{_BUCKET}/copies-0/{self.archive.name.removesuffix('.tar.gz')}"
            run(self._shell(f"rclone {_RCLONE_FLAGS} copy {here} {self._segments}"))
        fetched = f"{place}-fetched"
        self._measure(_FETCH, self._ours("backup", "offsite", "fetch", "latest", repository=fetched, url=url))
        key = self._key.path
        cat = f"for one in {self._segments}/*.age; do cat $one | age -d -i {key}; done > {place}.tar.gz"
        self._measure(_CAT, self._shell(cat))
        stem = self.archive.name.removesuffix(".tar.gz")
        back = f"rclone {_RCLONE_FLAGS} copy :s3:{_BUCKET}/copies-{number}/{stem} {place}-segments"
        there = cat.replace(str(self._segments), f"{place}-segments")
        self._measure(_RCLONE_BACK, self._shell(f"{back}; {there}"))
        reading = ("backup", "extract", "offsite:latest", self._member, "--output", str(self._directory / place))
        self._measure(_READ, self._ours(*reading, repository=f"{place}-read", url=url))
        self._measure(_RESTORE, self._restoring(self.archive.name, fetched, f"{place}-a", url))
        self._measure(_DIRECT, self._restoring("offsite:latest", f"{place}-direct", f"{place}-b", url))
        url = self._server.url(_BUCKET, f"whole-{number}")
        self._measure(_BACKUP, self._ours("backup", "media", "--local", repository=f"{place}-whole", url=url))
        if shutil.which("restic"):
            run(self._restic("init", repository=number))
            self._measure(_RESTIC, self._restic("backup", "--force", str(self._data), repository=number))
            back = str(self._directory / f"{place}-c")
            self._measure(_RESTIC_BACK, self._restic("restore", "latest", "--target", back, repository=number))
        for one in self._directory.glob(f"{place}*"):
            shutil.rmtree(one) if one.is_dir() else one.unlink()

    def show(self) -> None:
        """Print all figures, then the targets."""
        for name, walls in self._walls.items():
            _tell(f"{name:34} {_seconds(walls)}   {self._peaks[name].pss / 1e6:4.0f} MB")
        for line in (*self._ratios(), self._restore_ratio()):
            _tell(line)
        worst = max((memory.pss, name) for name, memory in self._peaks.items() if "rclone" not in name)
        _tell(f"most memory: {worst[0] / 1e6:.0f} MB ({worst[1]}), wanted: under {_MEMORY_LIMIT / 1e6:.0f} MB of ours")

    def _ratios(self) -> Iterator[str]:
        for target in _TARGETS:
            best = min(self._median(name) for name in target.against)
            yield _verdict(target.what, self._median(target.ours) / best, target.limit)

    def _restore_ratio(self) -> str:
        ratio = self._median(_DIRECT) / (self._median(_FETCH) + self._median(_RESTORE))
        return _verdict("a direct restore", ratio, 1.3)

    def _median(self, name: str) -> float:
        return Statistic.of(self._walls[name]).median

    def _measure(self, name: str, command: Command) -> None:
        found = run(command, watches_memory=True)
        self._walls[name].append(found.wall)
        self._peaks[name] = self._peaks.get(name, Memory()).maximum(found.peak or Memory())

    # -- commands -----------------------------------------------------------------------------------------------------

    def _ours(self, program: str, *arguments: str, repository: str, url: str) -> Command:
        env = {
            **ADMINISTRATOR.environ(),
            "BACKUP_LOCAL_PATH": str(self._directory / repository),
            "PORTAL_UPLOAD_DIR": str(self._data),
            "BACKUP_OFFSITE_URLS": url,
            "BACKUP_ENCRYPTION_RECIPIENTS": self._key.recipient,
            "BACKUP_ENCRYPTION_IDENTITY_FILE": str(self._key.path),
        }
        return Command(argv=(sys.executable, "-I", "-m", f"tools.{program}", *arguments), env=env)

    def _restoring(self, archive: str, repository: str, target: str, url: str) -> Command:
        to = str(self._directory / target)
        return self._ours(
            "restore", archive, "--media-only", "--force", "--media-dir", to, repository=repository, url=url
        )

    def _shell(self, line: str) -> Command:
        return Command(argv=("bash", "-ec", f"set -o pipefail; cd {self._directory}; {line}"), env=self._rclone())

    def _rclone(self) -> dict[str, str]:
        """The server's address for rclone, as variables."""
        return {
            "RCLONE_S3_PROVIDER": "SeaweedFS",
            "RCLONE_S3_ENDPOINT": self._server.endpoint,
            "RCLONE_S3_ACCESS_KEY_ID": ADMINISTRATOR.name,
            "RCLONE_S3_SECRET_ACCESS_KEY": ADMINISTRATOR.secret,
        }

    def _restic(self, *arguments: str, repository: int) -> Command:
        place = f"s3:{self._server.endpoint}/{_BUCKET}/restic-{repository}"
        cache = str(self._directory / f"round-{repository}-cache")
        env = {**ADMINISTRATOR.environ(), "RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": cache}
        return Command(argv=("restic", "-r", place, *arguments), env=env)


def _seconds(walls: Sequence[float]) -> str:
    found = Statistic.of(walls)
    return f"{found.median:6.2f} s ({found.minimum:.2f} - {found.maximum:.2f})"


def _verdict(what: str, ratio: float, limit: float) -> str:
    return f"{what}: {ratio:.3g}, wanted: at most {limit:g} — {'met' if ratio <= limit else 'MISSED'}"


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
