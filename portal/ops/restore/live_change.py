"""The operator's commands around a change of live data, and the check that the portal answers.

The first command runs after staging, so that a portal which it stops is down only for a short time. If it fails, live
data is unchanged, and the stage is removed.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from portal.ops.restore.portal_health import ask_portal
from portal.ops.runtime.commands import Around, within
from portal.ops.runtime.progress import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from portal.ops.restore.config import RestoreConfig
    from portal.ops.restore.outcome import ResultBuilder
    from portal.ops.runtime.process import ProcessRunner
    from portal.ops.runtime.progress import Progress


@contextmanager
def live_change(
    config: RestoreConfig,
    runner: ProcessRunner,
    builder: ResultBuilder,
    *,
    facts: dict[str, Any],
    give_up: Callable[[BaseException], None] | None = None,
) -> Iterator[None]:
    """Change live data between the operator's commands.

    Arguments:
        builder: receives a warning if the command after the change fails.
        facts: facts passed to the commands.
        give_up: called if the change is not begun.

    Raises:
        CommandFailedError: the command before the change failed.
    """
    around = Around(commands=config.commands, runner=runner, target=config.database)
    around.note(**facts)
    has_begun = False
    try:
        with within(around):
            has_begun = True
            yield
            around.note(result="succeeded")
    except BaseException as error:
        if not has_begun and give_up is not None:
            give_up(error)
        raise
    finally:
        builder.warn(around.warnings)


def note_portal_health(config: RestoreConfig, builder: ResultBuilder, progress: Progress | None) -> None:
    """Ask the portal whether it answers after a successful change, and note the answer in the result."""
    result = builder.result
    if not result.success or result.dry_run or not config.health.url:
        return
    if progress:
        progress(Step(phase="ask the portal", done=0))
    health = ask_portal(config.health)
    if health is None:
        return
    builder.note(portal=health.to_dict())
    if not health.answers:
        advice = (
            "start it, or look at its log"
            if result.is_rollback
            else f"start it, or look at its log; a rollback of {result.restore_id} brings the previous data back"
        )
        builder.warn([f"{health.sentence()}; {advice}"])
