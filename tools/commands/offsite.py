"""`backup.sh offsite`: copies archives off-site; lists, verifies, fetches and prunes the copies."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from portal.ops.errors import NotIntactError, OpsError
from portal.ops.hints import Advice
from portal.ops.units import exact_duration
from tools import tasks
from tools.command_line import Parser, add_output_options
from tools.jobs import known
from tools.terminal import output
from tools.terminal.output import Lines, is_json, print_listing, print_result, say, say_error, warn
from tools.terminal.run import watched_settings
from tools.terminal.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from portal.ops.runtime.progress import Step
    from portal.ops.settings.load import Settings

_COLUMNS: Final = (
    Column(title="TIME (UTC)", width=16),
    Column(title="TYPE", width=10),
    Column(title="SIZE", width=8, is_number=True),
    Column(title="COPY", width=34),
    Column(title="DESTINATION", width=20, least=8),
)
_SAID_BY_THE_NAME: Final = 2
"""How many of the columns say what the name of a copy says too, which is never cut: a command takes it."""

_WIDE: Final = 100
"""From this width on there is room for them."""


def add_arguments(parser: argparse.ArgumentParser, _name: str) -> None:
    """Define the commands' arguments."""
    commands = parser.add_subparsers(metavar="WHAT", dest="what", required=True, parser_class=Parser)
    copy = commands.add_parser("copy", help="copy off-site whatever is missing, or one archive with all that it needs")
    copy.add_argument("archive", nargs="?", help="a path, an id or the start of one, or 'latest'")
    copy.add_argument("--again", action="store_true", help="copy once more, for the recipients of now")
    tasks.add_options(copy)
    listing = commands.add_parser("list", help="list the copies, newest first")
    listing.add_argument(
        "--as-of",
        metavar="TIME",
        help="as they were then, such as '2 hours ago', by the versions of an S3 bucket (needs boto3)",
    )
    verify = commands.add_parser("verify", help="verify off-site copies; exit code 4 if one is damaged")
    verify.add_argument(
        "archive", nargs="?", metavar="ID", help="an id or the start of one, or 'latest' (default: all)"
    )
    verify.add_argument("--level", choices=("checksum", "contents", "dump"), default="checksum", help=_LEVELS)
    fetch = commands.add_parser("fetch", help="bring an archive back into the repository")
    fetch.add_argument("archive", metavar="ID", help="an id or the start of one, or 'latest'")
    fetch.add_argument("--as-of", metavar="TIME", help="as it was at that time, by the versions of an S3 bucket")
    prune = commands.add_parser(
        "prune", help="remove the off-site copies that BACKUP_OFFSITE_RETENTION_RULES do not keep"
    )
    prune.add_argument("--dry-run", action="store_true", help="show the plan with its reasons, and remove nothing")
    for command in (copy, listing, verify, fetch, prune):
        _add_output_options(command)


_LEVELS: Final = (
    "checksum (default): by the store's own digests, without the key; contents: fetched and decrypted, every file; "
    "dump: the database dump as well"
)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    """Accept the same options after the second word as after the first, whose values are the defaults."""
    before = set(parser._actions)  # noqa: SLF001  (argparse has no other way to ask)
    add_output_options(parser)
    for action in parser._actions:  # noqa: SLF001
        if action not in before:
            action.default = argparse.SUPPRESS


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands."""
    command: Callable[[argparse.Namespace, Settings, Callable[[Step], None]], int] = _COMMANDS[arguments.what]
    return command(arguments, *watched_settings())


# -- copy -------------------------------------------------------------------------------------------------------------


def _copy(arguments: argparse.Namespace, settings: Settings, show: Callable[[Step], None]) -> int:
    if tasks.is_remote(settings, arguments):
        from worker.arguments import OffsiteCopyArguments
        from worker.operations import OFFSITE_COPY

        archive = tasks.absolute(arguments.archive) if arguments.archive else None
        given = OffsiteCopyArguments(archive=archive, again=arguments.again)
        return tasks.do_remotely(settings, show, arguments, OFFSITE_COPY, given)
    from portal.ops.backup.aftercare import copy_job

    result = copy_job(settings, progress=show, **known(settings)).run(arguments.archive, again=arguments.again)
    tell(result.to_dict())
    return result.exit_code


def tell(result: Mapping[str, Any]) -> None:
    """Show the result of copying."""
    for line in copy_lines(result):
        say(line)
    for warning in result.get("warnings", ()):
        warn(warning)
    for error in result.get("errors") or filter(None, [result.get("error")]):
        say_error(error)
    print_result(result)


def copy_lines(result: Mapping[str, Any]) -> Iterable[str]:
    """One line for each copy."""
    from portal.ops.units import human_bytes

    copied = result.get("copied", ())
    for one in copied:
        yield f"copied: {one['backup_id']} to {one['destination']}"
    if copied:
        yield f"{human_bytes(result['stored_bytes'])} stored in {exact_duration(result['duration_seconds'])}"
    elif result["success"]:
        yield "nothing is missing off-site"


# -- list -------------------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace, settings: Settings, _show: Callable[[Step], None]) -> int:
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.listing import list_copies, listed
    from portal.ops.offsite.signing import Trust

    config = OffsiteConfig.from_settings(settings)
    opening = _opening(settings, arguments.as_of)
    copies: list[dict[str, Any]] = []
    damaged: dict[str, str] = {}
    foreign: list[str] = []
    faults: list[OpsError] = []
    destinations = config.require_destinations()
    for destination in destinations:
        try:
            with closing(opening(destination)) as backend:
                found = list_copies(backend, trust=Trust.of(config, destination))
        except OpsError as error:  # the copies elsewhere are needed all the more
            faults.append(error)
            continue
        copies += (listed(commit, found.shown) for commit in found.commits)
        damaged |= found.damaged
        foreign += found.foreign
    if len(faults) == len(destinations):
        raise faults[0]
    copies.sort(key=lambda one: (one["timestamp"], one["copy"]), reverse=True)
    _show_copies(copies)
    for stem, why in damaged.items():
        warn(f"the copy {stem} cannot be used: {why}")
    for stem in foreign:
        warn(f"the copy {stem} was not made by this repository: its signature is missing or another's")
    for fault in faults:
        say_error(fault)
    if not (copies or faults):
        say(f"there is no copy yet; {Advice.COPY_OFFSITE} makes the first one")
    print_listing(
        "copies",
        iter(copies),
        success=not (damaged or faults),
        damaged=list(damaged),
        foreign=foreign,
        errors=list(map(str, faults)),
    )
    return NotIntactError.exit_code if damaged else faults[0].exit_code if faults else 0


def _show_copies(copies: list[dict[str, Any]]) -> None:
    from portal.ops.units import human_bytes

    left_out = 0 if is_json() or output.width() >= _WIDE else _SAID_BY_THE_NAME
    table = Table(_COLUMNS[left_out:], output.width())
    with Lines() as lines:
        if copies and not is_json():
            lines.say(table.head(), "head")
        for one in copies:
            kind = f"+ {one['type']}" if one["parent"] else str(one["type"])
            size = human_bytes(one["stored_bytes"])
            cells = [one["timestamp"][:16].replace("T", " "), kind, size, one["copy"], one["destination"]]
            lines.say(f"{'  '.join(cells)}" if is_json() else table.row(cells[left_out:]))


def _opening(settings: Settings, as_of: str | None) -> Callable[..., Any]:
    """A function that opens the stores, at present or as they were at a time."""
    from portal.ops.offsite.config import OffsiteConfig

    if as_of is None:
        return OffsiteConfig.from_settings(settings).open
    from portal.ops.pitr.moment import parse_moment
    from portal.ops.runtime.progress import utc_now
    from portal.ops.storage.versions import VersionedBackend

    now = utc_now()
    moment = parse_moment(as_of, now, settings.schedules.time_zone) or now
    return lambda destination: VersionedBackend(destination, settings.store_variables, moment)


# -- verify, fetch, prune ---------------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace, settings: Settings, show: Callable[[Step], None]) -> int:
    return verify_copy(settings, show, arguments.archive, arguments.level)


def verify_copy(settings: Settings, show: Callable[[Step], None], name: str | None, level: str) -> int:
    """Verify copies and show the result; return the exit code."""
    from portal.ops.backup.config import BackupConfig
    from portal.ops.model import VerifyLevel
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.prune import offsite_policy
    from portal.ops.offsite.verify import OffsiteVerifyJob

    policy = offsite_policy(BackupConfig.from_settings(settings).retention, settings.offsite.rules)
    job = OffsiteVerifyJob(OffsiteConfig.from_settings(settings), policy, progress=show, **known(settings))
    found = job.run(name, VerifyLevel(level))
    damages = [f"{one.stem}: {damage}" for one in found.findings for damage in one.damages]
    if not damages:
        say(found.message)
    else:
        hint = (
            "Take another copy: 'offsite list' shows them; with versions, 'offsite list --as-of TIME' finds older ones."
        )
        say_error("copies are damaged", damages, hint)
    for error in dict.fromkeys(map(str, found.faults)):
        say_error(error)
    if any(one.is_downloaded for one in found.findings) and level == "checksum":
        say("note: a store keeps no SHA-256 of its own, so copies were read for that")
    print_result(found.to_dict())
    return found.exit_code


def _fetch(arguments: argparse.Namespace, settings: Settings, show: Callable[[Step], None]) -> int:
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.fetch import FetchJob

    opening = _opening(settings, arguments.as_of)
    job = FetchJob(OffsiteConfig.from_settings(settings), open_store=opening, progress=show, **known(settings))
    fetched = job.run(arguments.archive)
    for warning in fetched.warnings:
        warn(warning)
    for name in fetched.fetched:
        say(f"fetched: {name} from {fetched.destination}")
    say(f"the archive is in {fetched.path}")
    print_result(fetched.to_dict())
    return 0


def _prune(arguments: argparse.Namespace, settings: Settings, _show: Callable[[Step], None]) -> int:
    from portal.ops.backup.config import BackupConfig
    from portal.ops.offsite.config import OffsiteConfig
    from portal.ops.offsite.prune import OffsitePruneJob
    from portal.ops.units import human_bytes

    policy = BackupConfig.from_settings(settings).retention
    job = OffsitePruneJob(OffsiteConfig.from_settings(settings), policy, **known(settings))
    result = job.run(dry_run=arguments.dry_run)
    with Lines() as lines:
        for place, decision in result.decisions:
            lines.say(f"{place}  {decision.line()}")
    for spared in result.spared:
        say(f"spared: {spared}")
    for warning in result.warnings:
        warn(warning)
    for error in result.errors:
        say_error(error)
    what = (
        f"{len(result.removed)} {'copy' if len(result.removed) == 1 else 'copies'}, {human_bytes(result.freed_bytes)}"
    )
    if result.wal:
        what = f"{what} with {len(result.wal)} {'object' if len(result.wal) == 1 else 'objects'} of WAL"
    say(f"would be removed: {what}; nothing was" if arguments.dry_run else f"removed: {what}")
    plan = ({"destination": place, **decision.to_dict()} for place, decision in result.decisions)
    print_listing("plan", plan, **result.to_dict())
    return result.exit_code


_COMMANDS: Final[Mapping[str, Callable[..., int]]] = {
    "copy": _copy,
    "list": _list,
    "verify": _verify,
    "fetch": _fetch,
    "prune": _prune,
}
