"""Lets a worker do a command's work: sends a task, waits for it, and shows its progress.

Without ``CELERY_BROKER_URL``, or with ``--local``, a command does the work itself; result and exit code are the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import ConfigurationError
from portal.ops.runtime.progress import Step
from portal.ops.units import duration
from tools.terminal.output import ask, print_result, say
from tools.terminal.run import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from portal.ops.settings.load import Settings
    from worker.arguments import Arguments
    from worker.authorization import Authorizations
    from worker.client import Client, TaskState
    from worker.errors import BrokerAwayError
    from worker.operations import Operation

_SLOWEST_LOOK_SECONDS: Final = 0.25
_QUICKEST_LOOK_SECONDS: Final = 0.02
_UNATTENDED_SECONDS: Final = 3.0
_RETURN_SECONDS: Final = 30.0
"""Seconds that workers need to reconnect to a broker."""

_AWAY_SECONDS: Final = 60.0
_LONGER_EACH_TIME: Final = 1.1
_WITHDRAWN: Final = "the task had not started, and was withdrawn"
_SAFE: Final = "Start it again when the broker is back, or use --local."
_UNSIGNED_REFUSAL: Final = (
    "the refusal is not signed: look for a worker of an older release, or for somebody else who writes to the broker"
)
_TOLD_BY: Final = frozenset({"backup", "verify", "drill", "offsite"})
"""The modules of commands that show a task's result, by the family of the operation."""


def add_options(parser: argparse.ArgumentParser, *, with_wait: bool = False) -> None:
    """Add the options for who does the work, and how long to wait.

    Arguments:
        with_wait: whether a task that was queued earlier can be waited for.
    """
    group = parser.add_argument_group("if CELERY_BROKER_URL names a broker, a worker does the work")
    group.add_argument("--local", action="store_true", help="do the work here, without broker and worker")
    group.add_argument("--no-wait", action="store_true", help="queue the task, print its id, and exit")
    if with_wait:
        group.add_argument("--wait", metavar="TASK_ID", help="wait for a task that was queued before")
    else:
        parser.set_defaults(wait=None)
    group.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="stop waiting after this time")


def _seconds(text: str) -> float:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return float(text)


def is_remote(settings: Settings, arguments: argparse.Namespace) -> bool:
    """True if a worker is to do the work.

    Raises:
        ConfigurationError: no worker is, and an option needs one.
    """
    if settings.worker.broker_url is not None and not arguments.local:
        return True
    if arguments.wait or arguments.no_wait or arguments.timeout:
        raise ConfigurationError(
            "--wait, --no-wait and --timeout need a worker, and this command does the work itself",
            hint="Set CELERY_BROKER_URL and omit --local, or omit these options.",
        )
    return False


def person() -> str:
    """The user who started this command, for the access log."""
    from portal.ops.repository.access_log import process_user, sudo_user

    return sudo_user() or process_user()


def absolute(archive: str) -> str:
    """An archive's name for a worker, which has another working directory."""
    return os.path.abspath(archive) if "/" in archive or os.path.isfile(archive) else archive


def do_remotely(
    settings: Settings,
    show: Callable[[Step], None],
    arguments: argparse.Namespace,
    operation: Operation,
    given: Arguments,
) -> int:
    """Let a worker do a task of `backup.sh`, or wait for one queued earlier; return the exit code.

    Arguments:
        operation: the operation; not requested if another task is waited for.
        given: the arguments.
    """
    there = Remote(settings=settings, show=show, command="./tools/backup.sh", timeout=arguments.timeout)
    task = there.pick_up(arguments.wait) if arguments.wait else there.hand_over(operation, given)
    if arguments.no_wait:
        say(f"queued; './tools/backup.sh --wait {task.task_id}' waits for it")
        print_result({"success": True, "task_id": task.task_id})
        return 0
    result, exit_code = task.result()
    if task.operation.family in _TOLD_BY:
        import_module(f"tools.commands.{task.operation.family}").tell(result)
    else:
        print_result(result)
    return exit_code


@dataclass(kw_only=True)
class Remote:
    """The workers from a command's point of view.

    Arguments:
        settings: the broker and the repository.
        show: receives progress.
        command: the command with which a person can wait for the task later.
        timeout: the most seconds to wait.
    """

    settings: Settings
    show: Callable[[Step], None]
    command: str
    timeout: float | None = None

    def hand_over(self, operation: Operation, given: Arguments, *, authorize: bool = False) -> RemoteTask:
        """Request a task from the workers.

        Arguments:
            operation: the operation.
            given: the arguments, without the actor.
            authorize: also write the authorization that a change of live data needs.

        Raises:
            BrokerAwayError: the broker does not answer.
            RepositoryError: the authorization cannot be written.
        """
        from worker.authorization import Authorizations
        from worker.client import Client
        from worker.task_ids import new_task_id

        task = RemoteTask(
            remote=self,
            client=Client(self.settings),
            operation=operation,
            arguments=replace(given, actor=person()).to_dict(),
            task_id=new_task_id(operation),
            authorizations=Authorizations(self.settings.local_path) if authorize else None,
        )
        task.submit()
        return task

    def pick_up(self, task_id: str) -> RemoteTask:
        """A task that was queued earlier.

        Raises:
            ConfigurationError: there is no such task.
        """
        from worker.client import Client
        from worker.operations import OPERATIONS, PING, of_task_id

        client = Client(self.settings)
        state = client.look(task_id)
        if state.is_lost:
            raise _unknown(task_id)
        operation = OPERATIONS.get(state.name) or of_task_id(task_id) or PING
        return RemoteTask(
            remote=self, client=client, operation=operation, arguments=None, task_id=task_id, authorizations=None
        )


@dataclass(kw_only=True)
class RemoteTask:
    """One task, from the request to its result."""

    remote: Remote
    client: Client
    operation: Operation
    arguments: Mapping[str, Any] | None
    task_id: str
    authorizations: Authorizations | None
    _is_attended: bool = False
    _away_since: float | None = None
    _patient_until: float = 0.0

    def submit(self) -> None:
        """Send the task, with its authorization if it needs one."""
        assert self.arguments is not None
        try:
            if self.authorizations:
                self.authorizations.grant(self.operation, self.task_id, self.arguments)
            self.client.submit(self.operation, self.arguments, self.task_id)
        except BaseException as error:
            if self.withdraw() and isinstance(error, StoppedError):
                error.outcome = _WITHDRAWN
            raise

    def withdraw(self) -> bool:
        """Withdraw the authorization of a restore that nobody waits for; return whether that prevents it."""
        return self.authorizations is not None and self.authorizations.withdraw(self.task_id)

    def result(self) -> tuple[dict[str, Any], int]:
        """Wait for the end; return the result and the exit code.

        Raises:
            UnattendedError: no worker listens, the broker is away, or the task takes too long.
        """
        started = time.monotonic()
        pause = _QUICKEST_LOOK_SECONDS
        self._patient_until = started + _UNATTENDED_SECONDS
        try:
            while not (state := self._look(started)).is_ended:
                time.sleep(pause)
                pause = min(pause * _LONGER_EACH_TIME, _SLOWEST_LOOK_SECONDS)
        except StoppedError as stopped:
            self._leave(stopped)
            raise
        return self._believed(state)

    def _believed(self, state: TaskState) -> tuple[dict[str, Any], int]:
        """The result, if the repository has what it claims; a warning says what could not be checked."""
        result = dict(state.result)
        if not state.is_checked:
            say(f"warning: {self.remote.settings.local_path} cannot be read: the broker's answer was not checked")
        elif state.exit_code == ConfigurationError.exit_code and not state.is_signed:
            say(f"warning: {_UNSIGNED_REFUSAL}")
        elif result.get("success") and self.operation.backup_type and "path" in result:
            repository = self.remote.settings.local_path
            name = os.path.basename(str(result["path"]))
            if not all(os.path.exists(repository / one) for one in (name, f"{name}.sha256")):
                error = f"a worker reports {name}, and {repository} does not have it"
                hint = "Look at BACKUP_LOCAL_PATH here and in the worker's environment: they have to be the same."
                return {**result, "success": False, "error": f"{error}\n  hint: {hint}"}, 1
        return result, state.exit_code

    def _look(self, started: float) -> TaskState:
        from worker.client import TaskState
        from worker.errors import BrokerAwayError

        waited = time.monotonic() - started
        if self.remote.timeout is not None and waited > self.remote.timeout:
            self._give_up(waited)
        try:
            state = self.client.look(self.task_id)
            if self._away_since is not None:
                say("the broker is back")
                self._away_since = None
                self._patient_until = time.monotonic() + _RETURN_SECONDS
            if state.is_lost and self.arguments is None:
                raise _unknown(self.task_id)
            if state.is_lost and self.arguments is not None:
                say("the broker lost the task; queueing it again, which does no harm")
                self.client.submit(self.operation, self.arguments, self.task_id)
            elif not state.is_begun and not state.is_ended and time.monotonic() > self._patient_until:
                self._make_sure_of_a_worker()
        except BrokerAwayError as error:
            self._be_patient(error)
            return TaskState()
        if state.progress:
            total = state.progress.get("total")
            step = Step(phase=state.progress["phase"], done=state.progress["done"], expect=lambda: total)
            self.remote.show(step)
        return state

    def _give_up(self, waited: float) -> None:
        from worker.errors import StillAtWorkError

        if self.withdraw():
            raise StillAtWorkError(
                f"{self.task_id} did not start within {duration(waited)}, and was withdrawn",
                hint="Try again when the workers have less to do, or use --local.",
            )
        raise StillAtWorkError(
            f"{self.task_id} is not finished after {duration(waited)}; it continues", hint=self._later()
        )

    def _be_patient(self, error: BrokerAwayError) -> None:
        """Wait for a broker that is away: a task that was begun continues."""
        if self._away_since is None:
            say(f"{error.message}; waiting for it")
            self._away_since = time.monotonic()
        if time.monotonic() - self._away_since > _AWAY_SECONDS:
            hint = f"The task had not started, and was withdrawn. {_SAFE}" if self.withdraw() else self._later()
            raise type(error)(f"{error.message}, for {duration(_AWAY_SECONDS)} now", hint=hint) from error

    def _make_sure_of_a_worker(self) -> None:
        from worker.errors import UnattendedError

        if self._is_attended:
            return
        if not self.client.is_attended(self.operation.queue):
            stays = "It was withdrawn." if self.withdraw() else f"It stays queued. {self._later()}"
            raise UnattendedError(
                f"no worker listens for {self.operation.queue} tasks",
                hint=f"Start one ('tools/service.sh worker', or docker compose up), or use --local. {stays}",
            )
        say(f"every worker for {self.operation.queue} tasks is busy; waiting for one")
        self._is_attended = True

    def _leave(self, stopped: StoppedError) -> None:
        """After an interruption, ask whether the task should continue; without a person to ask, it does."""
        is_asked = stopped.number == signal.SIGINT and sys.stdin.isatty()
        is_left = is_asked and self._is_left_running()
        if not is_left and self.withdraw():
            stopped.outcome = _WITHDRAWN
        elif is_asked and not is_left:
            stopped.outcome, stopped.hint = self._stop()
        else:
            stopped.outcome, stopped.hint = "the worker continues", self._later()

    def _stop(self) -> tuple[str, str]:
        """Ask the worker to stop; report what happened, and what to do next."""
        from worker.errors import BrokerAwayError

        try:
            self.client.stop(self.task_id)
        except BrokerAwayError as error:
            return f"the worker could not be told to stop: {error.message}", f"{error.hint} {self._later()}"
        return "the worker was told to stop, and undoes its unfinished work", "Start it again to finish it."

    def _is_left_running(self) -> bool:
        answer = ask("\nLeave the task running? Type no to stop it, anything else to leave it: ")
        return answer.lower() not in ("n", "no")

    def _later(self) -> str:
        return f"'{self.remote.command} --wait {self.task_id}' waits for it again."


def _unknown(task_id: str) -> ConfigurationError:
    return ConfigurationError(
        f"the broker knows no task {task_id}",
        hint="Results are kept for 7 days. './tools/backup.sh list' shows whether there is an archive of it.",
    )


def now() -> str:
    """The time of a request, as task arguments have it."""
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")
