"""The operator's commands: before and after backups and restores, and the portal's own check in a drill.

A command runs without a shell, as the engine's user, in its own process group, with a time limit. Its environment is
this process's without our secrets, plus facts about the operation. The end of its output is kept. Processes that it
leaves in its group are ended.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from portal.ops.errors import CommandFailedError, ConfigurationError
from portal.ops.runtime.logs import engine_log
from portal.ops.settings.table import SETTINGS
from portal.ops.units import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from portal.ops.runtime.process import ProcessRunner, RunningProcess
    from portal.ops.settings.database_url import DatabaseTarget, Secret
    from portal.ops.settings.table import PortalSettings

log = engine_log("portal.ops.commands")

BEFORE: Final = "BACKUP_BEFORE_COMMAND"
AFTER: Final = "BACKUP_AFTER_COMMAND"

MOST_OUTPUT_BYTES: Final = 16 << 10
_MASK: Final = "********"
_SHORTEST_SECRET: Final = 4
_DRAIN_SECONDS: Final = 2.0
_INTERRUPTED_SECONDS: Final = 10.0
_SAID_CHARACTERS: Final = 300


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """The result of a command.

    Arguments:
        command: the command, quoted as for a shell.
        exit_code: negative for a signal; None if it was stopped at its time limit.
        output: the end of its standard output, followed by that of its standard error.
        seconds: how long it took.
    """

    command: str
    exit_code: int | None
    output: str
    seconds: float

    @property
    def succeeded(self) -> bool:
        """True if it ended by itself with exit code 0."""
        return self.exit_code == 0

    def failure(self) -> str:
        """The failure in words that follow the command's name, with the last line of its output."""
        what = (
            f"was stopped after {duration(self.seconds)}" if self.exit_code is None else f"ended with {self.exit_code}"
        )
        lines = self.output.strip().splitlines()
        return f"{what}: {lines[-1][:_SAID_CHARACTERS]}" if lines else what


def run_command(
    runner: ProcessRunner,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout_seconds: float,
    secrets: Iterable[Secret | None] = (),
) -> CommandResult:
    """Run a command until it ends or reaches its time limit.

    Arguments:
        secrets: values to mask in its output.

    Raises:
        ConfigurationError: there is no such program.
    """
    started = time.monotonic()
    try:
        process = runner.start(argv, environment=environment)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no program {argv[0]}", hint="Give the command's absolute path, or correct the setting."
        ) from error
    output = _Tail(process.stdout)
    try:
        exit_code = _exit_code(process, timeout_seconds)
    finally:
        process.kill()
    text = output.text() + process.stderr_tail()
    return CommandResult(
        command=shlex.join(argv),
        exit_code=exit_code,
        output=_masked(text, secrets)[-MOST_OUTPUT_BYTES:],
        seconds=time.monotonic() - started,
    )


def _exit_code(process: RunningProcess, timeout_seconds: float) -> int | None:
    try:
        return process.wait(timeout_seconds)
    except TimeoutError:
        return None


class _Tail:
    """Reads a pipe to its end and keeps the last part, since a command blocks if nobody reads its output."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="command-output", daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while block := pipe.read1(8192) if hasattr(pipe, "read1") else pipe.read(8192):
                self._kept += block
                del self._kept[: -2 * MOST_OUTPUT_BYTES]  # more than is shown, which begins with no half of a secret

    def text(self) -> str:
        """The kept output."""
        self._thread.join(_DRAIN_SECONDS)
        return bytes(self._kept).decode(errors="replace")


def _masked(text: str, secrets: Iterable[Secret | None]) -> str:
    """The text with values masked, except values of a few characters, which would mask half of the text."""
    for value in (secret.reveal() for secret in secrets if secret is not None):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, _MASK)
    return text


def command_environment(facts: Mapping[str, str]) -> dict[str, str]:
    """The environment for a command: this process's without our secrets, plus `facts`."""
    secret = {entry.name for entry in SETTINGS if entry.secret}
    hidden = secret | {f"{name}_FILE" for name in secret}
    return {name: value for name, value in os.environ.items() if name not in hidden} | dict(facts)


def database_environment(target: DatabaseTarget) -> dict[str, str]:
    """The variables for a database, for DefectDojo and libpq, with the password: only for a child's environment."""
    password = target.password.reveal() if target.password else ""
    return {
        "DD_DATABASE_HOST": target.host,
        "DD_DATABASE_PORT": str(target.port),
        "DD_DATABASE_NAME": target.name,
        "DD_DATABASE_USER": target.user,
        "DD_DATABASE_PASSWORD": password,
        "PGHOST": target.host,
        "PGPORT": str(target.port),
        "PGDATABASE": target.name,
        "PGUSER": target.user,
        **({"PGPASSWORD": password} if password else {}),
        **({"PGSSLMODE": target.options["sslmode"]} if "sslmode" in target.options else {}),
        **({"PGSSLROOTCERT": target.options["sslrootcert"]} if "sslrootcert" in target.options else {}),
    }


@dataclass(frozen=True, kw_only=True)
class AroundCommands:
    """The commands before and after an operation.

    Arguments:
        before: runs first; if it fails, the operation is not started.
        after: runs last, in any case.
        timeout_seconds: the time limit of each, in seconds.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    timeout_seconds: float = 600.0


def around_commands(settings: PortalSettings) -> AroundCommands:
    """The configured commands."""
    return AroundCommands(
        before=settings.before_command,
        after=settings.after_command,
        timeout_seconds=settings.command_timeout.total_seconds(),
    )


@dataclass(kw_only=True)
class Around:
    """One operation with its commands; `facts` can be added while it runs, for the command after it."""

    commands: AroundCommands
    runner: ProcessRunner
    target: DatabaseTarget
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def note(self, **facts: Any) -> None:
        """Add facts for the command after the operation: upper-case names, prefixed with ``KEKKAI_``."""
        self.facts |= {f"KEKKAI_{name.upper()}": _word(value) for name, value in facts.items()}

    def before(self) -> None:
        """Run the first command.

        Raises:
            CommandFailedError: it failed, so the operation must not start.
        """
        if not self.commands.before:
            return
        ended = self._run(BEFORE, self.commands.before, self.commands.timeout_seconds)
        if not ended.succeeded:
            raise CommandFailedError(
                f"{BEFORE} {ended.failure()}",
                hint=f"Nothing was changed. Run it by hand to see why, or correct {BEFORE}: {ended.command}",
            )

    def after(self, timeout_seconds: float) -> None:
        """Run the last command; its failure is a warning, since the work is done."""
        if not self.commands.after:
            return
        try:
            ended = self._run(AFTER, self.commands.after, min(timeout_seconds, self.commands.timeout_seconds))
        except ConfigurationError as error:
            self.warnings.append(f"{AFTER}: {error.message}")
            return
        if not ended.succeeded:
            self.warnings.append(f"{AFTER} {ended.failure()}")

    def _run(self, name: str, argv: Sequence[str], timeout_seconds: float) -> CommandResult:
        environment = command_environment(database_environment(self.target) | self.facts)
        ended = run_command(
            self.runner,
            argv,
            environment=environment,
            timeout_seconds=timeout_seconds,
            secrets=[self.target.password],
        )
        tell = log.info if ended.succeeded else log.warning
        tell("command_finished", command=name, exit_code=ended.exit_code, seconds=round(ended.seconds, 3))
        return ended


@contextmanager
def within(around: Around) -> Iterator[None]:
    """Run an operation between its commands: the last one runs whenever the first one was started.

    The context has to note ``result``; otherwise the operation has failed. After an interruption, the last command has
    ten seconds. Its warnings are then in `Around.warnings`.

    Raises:
        CommandFailedError: the first command failed, and the context did not run.
    """
    around.note(result="failed")
    limit = _INTERRUPTED_SECONDS
    try:
        around.before()
        yield
        limit = around.commands.timeout_seconds
    except BaseException as error:
        if isinstance(error, Exception):
            limit = around.commands.timeout_seconds
        around.note(result="failed", error=str(error).partition("\n")[0])
        raise
    finally:
        around.after(limit)


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
