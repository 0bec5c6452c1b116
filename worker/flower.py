"""`python -m worker.flower`: runs Flower on this application, which shows tasks and workers.

It does not start without a password. Flower's API can queue any task and stop any worker, so it is read-only unless
``FLOWER_READ_ONLY=false``; restores are refused in any case (see `authorization`). Flower's own options are the
variables ``FLOWER_*``; this module sets our defaults. Its history is stored in a file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from flower.app import Flower
from flower.command import apply_env_options
from flower.options import options
from flower.urls import settings as web_settings
from tornado.web import HTTPError

from portal.ops.errors import ConfigurationError, OpsError
from portal.ops.runtime.environment import current_settings
from portal.ops.runtime.logs import engine_log
from portal.ops.units import printable, system_reason
from worker.application import make_app
from worker.flower_progress import follow
from worker.logs import log_to_standard_error
from worker.operations import Requester

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from portal.ops.settings.load import Settings
    from worker.celery_internals import Application

log = engine_log("worker.flower")

USER: Final = "kekkai"
DIRECTORY: Final = ".flower"

_COLUMNS: Final = "name,state,kwargs,result,received,runtime,uuid,worker"
_SAVE_MILLISECONDS: Final = 60_000
_MOST_TASKS: Final = 10_000
_FORGET_WORKER_SECONDS: Final = 3600
_END_SECONDS: Final = 5


def run(settings: Settings) -> None:
    """Serve until somebody asks this process to end.

    Raises:
        ConfigurationError: there is no password or broker, or an option is invalid.
        OpsError: the port is in use.
    """
    app = make_app(settings, Requester.FLOWER)
    _prepare(app, settings)
    app.set_default()
    flower = Flower(capp=app, options=options, **web_settings)

    def end(*_: object) -> None:
        signal.alarm(_END_SECONDS)  # ends the process if anything below hangs
        flower.io_loop.add_callback_from_signal(flower.io_loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    port = _listen(flower)
    log.info("flower_ready", address=options.address, port=port, user=USER, read_only=options.read_only)
    _give_reasons(flower)
    following = follow(flower)
    try:
        flower.start()
    finally:
        following.stop()
        flower.stop()
        log.info("flower_stopping")


def _listen(flower: Flower) -> int | None:
    try:
        port: int | None = flower.start_http_server()
    except OSError as error:
        raise OpsError(
            f"Flower cannot listen at {options.address}:{options.port}: {system_reason(error)}",
            hint="Set FLOWER_ADDRESS and FLOWER_PORT to an address and port that are free.",
        ) from error
    return port


def _choose_options(repository: Path) -> None:
    """Set our defaults, overridden by the environment.

    Raises:
        ConfigurationError: a variable has an invalid value.
    """
    options.address = "127.0.0.1"
    options.read_only = True
    options.persistent = True
    options.db = str(repository / DIRECTORY / "history")
    options.state_save_interval = _SAVE_MILLISECONDS
    options.max_tasks = _MOST_TASKS
    options.purge_offline_workers = _FORGET_WORKER_SECONDS
    options.tasks_columns = _COLUMNS
    try:
        apply_env_options()
    except (ValueError, KeyError) as error:
        raise ConfigurationError(
            f"Flower cannot use one of its variables: {error}", hint="Look at those that begin with FLOWER_."
        ) from error
    if options.persistent:
        _make_history_directory(os.path.dirname(os.path.abspath(options.db)))


def _make_history_directory(directory: str) -> None:
    """Make sure that the history can be stored: Flower itself would run without storing it, and look healthy.

    Raises:
        ConfigurationError: this user cannot write there.
    """
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"the directory of Flower's history cannot be written: {system_reason(error)} ({directory})",
            hint=f"Give it to user {os.geteuid()}, or set FLOWER_DB to a file in another directory.",
        ) from error


def serve_by_celery(app: Application, settings: Settings) -> None:
    """Configure ``celery flower`` like ours; called while that command is being set up.

    Raises:
        ConfigurationError: there is no password, or an option is invalid.
    """
    from flower import command

    _prepare(app, settings)

    class Followed(Flower):  # type: ignore[misc]  # Flower has no types
        """A Flower that also follows the progress of tasks."""

        def start(self) -> None:
            """Serve until somebody asks this process to end."""
            _give_reasons(self)
            following = follow(self)
            try:
                super().start()
            finally:
                following.stop()

    command.Flower = Followed


def _answer_refusals(send: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Send a task for the API; answer it as forbidden if the registry does not permit Flower to request it."""
    try:
        return send(*args, **options)
    except OpsError as error:
        log.warning("request_refused", error=str(error))
        raise HTTPError(403, printable(error.message)) from error


def _give_reasons(flower: Flower) -> None:
    """Return our error's text to the client, where Flower would answer every error with an empty 500."""
    run = flower.blocking_runner.run

    async def run_and_tell(*args: Any, **options: Any) -> Any:
        try:
            return await run(*args, **options)
        except HTTPError as error:
            if isinstance(error.__cause__, HTTPError):
                raise error.__cause__ from None
            raise

    flower.blocking_runner.run = run_and_tell


def _prepare(app: Application, settings: Settings) -> None:
    """The common part of both ways of starting."""
    if settings.worker.flower_password is None:
        raise ConfigurationError(
            "Flower has no password, and would let anybody start tasks",
            hint="Set BACKUP_FLOWER_PASSWORD_FILE to a file that holds one, or BACKUP_FLOWER_PASSWORD.",
        )
    app.requester = Requester.FLOWER
    app.send_task = partial(_answer_refusals, app.send_task)  # type: ignore[method-assign]
    _choose_options(settings.local_path)
    options.basic_auth = [f"{USER}:{settings.worker.flower_password.reveal()}"]


def main() -> int:
    """Run Flower; the exit code."""
    try:
        settings = current_settings()
        log_to_standard_error(settings.log_format)
        logging.getLogger("tornado.access").setLevel(logging.WARNING)
        run(settings)
    except OpsError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    os._exit(0)  # Python would wait for threads that wait for the broker


if __name__ == "__main__":
    sys.exit(main())
