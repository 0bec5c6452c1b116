"""What is compared with what, as data.

A case is a data set, the contenders that work on it, and the ratios that are wanted. A contender is commands, with
these words in braces: `{data}` the data set, `{member}` a file from the middle of it, `{out}` an empty directory for
each run, `{kept}` one that lasts for the whole case, `{archive}` the archive in `{kept}`, `{tools}` the directory of
our scripts, and for a database `{pg_bin}`, `{host}`, `{port}`, `{name}`, `{user}` and `{password}`.

To add a case, write one more function that returns it and name it in `all_cases`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.data import Content, CopiedSet, DataSet
from benchmarks.database import Database
from benchmarks.measure import Command
from benchmarks.outcome import Bound, Measure, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS = "ours"
TAR = "tar czf"
PIGZ = "tar -I pigz"
ZSTD = "tar -I 'zstd -3 -T2'"
CAREFUL_TAR = "the same, then sync and sha256sum"
RESTIC = "restic backup"
BORG = "borg create, lz4"
PG_DUMP = "pg_dump -Fc"
PG_DUMP_RAW = "pg_dump -Fc -Z0 >/dev/null"

SARIF = DataSet(content=Content.SARIF, files=3_000, size=600_000_000)
SMALL = DataSet(content=Content.REPORTS, files=40_000, size=180_000_000, tenants=16)
RANDOM = DataSet(content=Content.RANDOM, files=100, size=500_000_000)
DATABASE = Database(megabytes=700)
MEMORY_INPUTS = tuple(CopiedSet(sources=(SARIF, RANDOM), size=size * 1_000_000) for size in (100, 1_000, 5_000))
MEMORY_LIMIT = 250_000_000
CHAIN_LENGTH = 500
_CONNECTION = ("--host", "{host}", "--port", "{port}", "--username", "{user}")
_PASSWORD = {"PGPASSWORD": "{password}"}
_RESTORE_JOBS = "2"
MEMORY_GROWTH = 1.1

Data = DataSet | CopiedSet | Database


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to do the work of a case.

    Arguments:
        name: as it stands in the table.
        run: what is measured.
        setup: commands once before the first round.
        prepare: commands before every run.
        check: commands after every run; each must succeed, or the run does not count.
        says_success: its standard output must be a JSON object whose `success` is true.
        output: the file or directory in `{out}` whose size is reported, as a pattern that matches once.
        needs: programs it cannot do without.
        data: what it works on, where that is not the data of the case.
    """

    name: str
    run: Command
    setup: tuple[Command, ...] = ()
    prepare: tuple[Command, ...] = ()
    check: tuple[Command, ...] = ()
    says_success: bool = False
    output: str | None = None
    needs: tuple[str, ...] = ()
    data: Data | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A comparison.

    Arguments:
        name: the word for `--only`.
        title: the heading of its table.
        data: what the contenders work on.
        contenders: the first is the one that the others are compared with.
        targets: what is wanted.
        watches_memory: sample the memory of each run; times are then a little longer than they are otherwise.
        keeps_outputs: what was written is removed when the case has ended, and not after each run.
    """

    name: str
    title: str
    data: Data
    contenders: tuple[Contender, ...]
    targets: tuple[Target, ...] = ()
    watches_memory: bool = False
    keeps_outputs: bool = False


def all_cases(scale: float = 1.0) -> tuple[Case, ...]:
    """Return every case over `scale` times the data, in the order in which they run."""
    sarif = SARIF.scaled(scale)
    return (
        _backup("sarif", sarif, tar=10, careful=1.2, restic=3, borg=1.5),
        _backup("small", SMALL.scaled(scale), tar=4, careful=1, restic=5, borg=3),
        _backup("random", RANDOM.scaled(scale), tar=5, careful=1, restic=1.8, borg=0.8),
        _database(DATABASE.scaled(scale)),
        _verify(sarif),
        _extract(sarif),
        _restore_files(sarif),
        _unchanged(SMALL.scaled(scale)),
        _restore_chain(SMALL.scaled(scale), max(1, round(CHAIN_LENGTH * scale))),
        _restore_database(DATABASE.scaled(scale)),
        _memory([data.scaled(scale) for data in MEMORY_INPUTS]),
    )


def _backup(name: str, data: DataSet, *, tar: float, careful: float, restic: float, borg: float) -> Case:
    return Case(
        name=name,
        title=f"first backup of {data.description()}",
        data=data,
        contenders=(_our_backup(), *_tars(), _restic(), _borg()),
        targets=(
            _faster(TAR, tar),
            _faster(CAREFUL_TAR, careful),
            _faster(RESTIC, restic),
            _faster(BORG, borg),
            Target(measure=Measure.SIZE, subject=OURS, reference=TAR, bound=Bound.AT_MOST, wanted=1.08),
        ),
    )


def _faster(peer: str, times: float) -> Target:
    return Target(measure=Measure.TIME, subject=OURS, reference=peer, bound=Bound.AT_LEAST, wanted=times)


def _our_backup(name: str = OURS, data: Data | None = None) -> Contender:
    return Contender(name=name, run=_media_into("{out}"), says_success=True, output="*.tar.gz", data=data)


def _media_into(repository: str) -> Command:
    return Command(
        argv=("{tools}/backup.sh", "media"),
        env={"BACKUP_LOCAL_PATH": repository, "PORTAL_UPLOAD_DIR": "{data}"},
    )


def _tars() -> tuple[Contender, ...]:
    return (
        Contender(name=TAR, run=_tar_into("{out}"), output="archive.tar.gz", needs=("tar", "gzip")),
        _tar_through(PIGZ, "pigz"),
        _tar_through(ZSTD, "zstd -3 -T2"),
        _careful_tar(),
    )


def _careful_tar() -> Contender:
    """What a careful person types: the archive is on the disk, and has a digest, as ours is and has."""
    script = (
        'tar -I \'zstd -3 -T2\' -cf "$2/archive.tar" -C "$1" . && sync "$2/archive.tar" "$2" && '
        'sha256sum "$2/archive.tar" >"$2/archive.tar.sha256"'
    )
    return Contender(
        name=CAREFUL_TAR,
        run=Command(argv=("sh", "-c", script, "sh", "{data}", "{out}")),
        output="archive.tar",
        needs=("tar", "zstd", "sha256sum"),
    )


def _tar_into(directory: str) -> Command:
    return Command(argv=("tar", "czf", f"{directory}/archive.tar.gz", "-C", "{data}", "."))


def _tar_through(name: str, program: str) -> Contender:
    return Contender(
        name=name,
        run=Command(argv=("tar", "-I", program, "-cf", "{out}/archive.tar", "-C", "{data}", ".")),
        output="archive.tar",
        needs=("tar", program.split()[0]),
    )


def _restic() -> Contender:
    return Contender(
        name=RESTIC,
        prepare=(_restic_command("{out}", "init"),),
        run=_restic_command("{out}", "backup", "{data}"),
        output="repository",
        needs=("restic",),
    )


def _restic_command(directory: str, *arguments: str) -> Command:
    return Command(
        argv=("restic", "--repo", f"{directory}/repository", *arguments),
        env={"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": f"{directory}/cache"},
    )


def _borg() -> Contender:
    env = {"BORG_BASE_DIR": "{out}/base", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    return Contender(
        name=BORG,
        prepare=(Command(argv=("borg", "init", "--encryption", "none", "{out}/repository"), env=env),),
        run=Command(argv=("borg", "create", "--compression", "lz4", "{out}/repository::first", "{data}"), env=env),
        output="repository",
        needs=("borg",),
    )


def _our_dump() -> Command:
    return Command(
        argv=("{tools}/backup.sh", "database"),
        env={
            "BACKUP_LOCAL_PATH": "{out}",
            "BACKUP_PG_BIN_DIR": "{pg_bin}",
            "DD_DATABASE_HOST": "{host}",
            "DD_DATABASE_PORT": "{port}",
            "DD_DATABASE_NAME": "{name}",
            "DD_DATABASE_USER": "{user}",
            "DD_DATABASE_PASSWORD": "{password}",
        },
    )


def _database(data: Database) -> Case:
    return Case(
        name="database",
        title=f"dump of a findings database of {data.description()}",
        data=data,
        contenders=(
            Contender(name=OURS, run=_our_dump(), says_success=True, output="*.tar.gz"),
            Contender(name=PG_DUMP, run=_pg_dump("--file", "{out}/dump"), output="dump"),
            Contender(name=PG_DUMP_RAW, run=replace(_pg_dump("--compress", "0"), discards_output=True)),
        ),
        targets=(
            _faster(PG_DUMP, 6),
            Target(measure=Measure.TIME, subject=OURS, reference=PG_DUMP_RAW, bound=Bound.AT_MOST, wanted=1.7),
        ),
    )


def _pg_dump(*arguments: str) -> Command:
    return Command(
        argv=("{pg_bin}/pg_dump", "--format", "custom", *_CONNECTION, "--dbname", "{name}", *arguments), env=_PASSWORD
    )


def _verify(data: DataSet) -> Case:
    check = "restic check --read-data"
    return Case(
        name="verify",
        title=f"every byte of the SARIF backup checked, {data.description()}",
        data=data,
        contenders=(
            Contender(
                name=OURS,
                setup=(_media_into("{kept}"),),
                run=Command(
                    argv=("{tools}/backup.sh", "verify", "{archive}", "--level", "contents"),
                    env={"BACKUP_LOCAL_PATH": "{kept}"},
                ),
                says_success=True,
            ),
            Contender(
                name=check,
                setup=(_restic_command("{kept}", "init"), _restic_command("{kept}", "backup", "{data}")),
                run=_restic_command("{kept}", "check", "--read-data"),
                needs=("restic",),
            ),
        ),
        targets=(_faster(check, 1),),
    )


def _extract(data: DataSet) -> Case:
    whole, single = "tar xzf, everything", "tar xzf, this file"
    unpack = ("tar", "xzf", "{kept}/archive.tar.gz", "-C", "{out}")
    same = ("cmp", "{data}/{member}")
    return Case(
        name="extract",
        title=f"one file out of the middle of the SARIF backup, {data.description()}",
        data=data,
        contenders=(
            Contender(
                name=OURS,
                setup=(_media_into("{kept}"),),
                run=Command(
                    argv=("{tools}/backup.sh", "extract", "{archive}", "media/{member}", "--output", "{out}/file"),
                    env={"BACKUP_LOCAL_PATH": "{kept}"},
                ),
                check=(Command(argv=(*same, "{out}/file")),),
                says_success=True,
            ),
            *(
                Contender(
                    name=name,
                    setup=(_tar_into("{kept}"),),
                    run=Command(argv=(*unpack, *members)),
                    check=(Command(argv=(*same, "{out}/{member}")),),
                    needs=("tar", "gzip"),
                )
                for name, members in ((whole, ()), (single, ("./{member}",)))
            ),
        ),
        targets=(_faster(whole, 50),),
    )


def _restore_files(data: DataSet) -> Case:
    tar, restic = "tar xzf", "restic restore"
    same = (Command(argv=("diff", "--recursive", "--exclude=.kekkai-restore", "{data}", "{out}/files")),)
    return Case(
        name="restore",
        title=f"all files of the SARIF backup restored, {data.description()}",
        data=data,
        contenders=(
            Contender(
                name=OURS,
                setup=(_media_into("{kept}"),),
                run=Command(
                    argv=("{tools}/restore.sh", "{archive}", "--force", "--media-dir", "{out}/files"),
                    env={"BACKUP_LOCAL_PATH": "{kept}"},
                ),
                check=same,
                says_success=True,
            ),
            Contender(
                name=tar,
                setup=(_tar_into("{kept}"),),
                prepare=(Command(argv=("mkdir", "{out}/files")),),
                run=Command(argv=("tar", "xzf", "{kept}/archive.tar.gz", "-C", "{out}/files")),
                check=same,
                needs=("tar", "gzip"),
            ),
            Contender(
                name=restic,
                setup=(_restic_command("{kept}", "init"), _restic_command("{kept}", "backup", "{data}")),
                run=_restic_command("{kept}", "restore", "latest", "--target", "{out}/files"),
                needs=("restic",),
            ),
        ),
        targets=(_faster(tar, 2.5), _faster(restic, 1.3)),
        keeps_outputs=True,
    )


def _unchanged(data: DataSet) -> Case:
    """Everybody has backed the files up once before; ours twice, since the first incremental fills the cache."""
    ours = _media_into("{kept}")
    again = replace(ours, argv=(*ours.argv, "--incremental"))
    borg_env = {"BORG_BASE_DIR": "{kept}/base", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    borg = Command(argv=("borg", "create", "--compression", "lz4"), env=borg_env)
    name = "{kept}/repository::{{now:%s.%f}}"
    return Case(
        name="unchanged",
        title=f"nothing has changed since the last backup of {data.description()}",
        data=data,
        contenders=(
            Contender(name=OURS, setup=(ours, again), run=again, says_success=True),
            Contender(
                name=RESTIC,
                setup=(_restic_command("{kept}", "init"), _restic_command("{kept}", "backup", "{data}")),
                run=_restic_command("{kept}", "backup", "{data}"),
                needs=("restic",),
            ),
            Contender(
                name=BORG,
                setup=(
                    Command(argv=("borg", "init", "--encryption", "none", "{kept}/repository"), env=borg_env),
                    replace(borg, argv=(*borg.argv, name, "{data}")),
                ),
                run=replace(borg, argv=(*borg.argv, name, "{data}")),
                needs=("borg",),
            ),
        ),
        targets=(_faster(RESTIC, 4), _faster(BORG, 4)),
    )


def _restore_chain(data: DataSet, incrementals: int) -> Case:
    chain, base = f"ours, from a chain of {incrementals:,}", "ours, from one base"
    return Case(
        name="restore-chain",
        title=f"{data.description()} restored from the last of {incrementals:,} incrementals, and from a base",
        data=data,
        contenders=tuple(
            Contender(
                name=name,
                setup=(Command(argv=(sys.executable, "-m", "benchmarks.chain", "{data}", "{kept}", str(length))),),
                run=Command(
                    argv=("{tools}/restore.sh", "latest", "--media-only", "--force", "--media-dir", "{out}/files"),
                    env={"BACKUP_LOCAL_PATH": "{kept}/archives"},
                ),
                check=(Command(argv=("diff", "--recursive", "--exclude=.kekkai-restore", "{data}", "{out}/files")),),
                says_success=True,
            )
            for name, length in ((chain, incrementals), (base, 0))
        ),
        targets=(Target(measure=Measure.TIME, subject=chain, reference=base, bound=Bound.AT_MOST, wanted=1.5),),
        keeps_outputs=True,
    )


def _quiet_server() -> tuple[Command, Command, Command]:
    """What lets every run start from the same server."""
    # Each run starts where the databases of the last one are gone: they have memory that would have to be found anew.
    kept = "SELECT datname FROM pg_database WHERE datname LIKE '%\\_before\\_%'"
    words = " ".join(_CONNECTION)
    script = f'"{{pg_bin}}/psql" {words} -Atc "{kept}" postgres | xargs -r -n 1 "{{pg_bin}}/dropdb" {words}'
    # What was restored last is what the server would vacuum during the next run.
    vacuum = ("{pg_bin}/psql", *_CONNECTION, "--command", "VACUUM", "{name}")
    settle = ("{pg_bin}/psql", *_CONNECTION, "--quiet", "--command", "CHECKPOINT")
    return (
        Command(argv=("sh", "-c", script), env=_PASSWORD),
        Command(argv=vacuum, env=_PASSWORD),
        Command(argv=settle, env=_PASSWORD),
    )


def _restore_database(data: Database) -> Case:
    plain = f"pg_restore --jobs {_RESTORE_JOBS}"
    scratch = "restored_by_pg_restore"
    cleared, vacuumed, settled = _quiet_server()
    return Case(
        name="restore-database",
        title=f"a findings database of {data.description()} restored beside the live one, and put in its place",
        data=data,
        contenders=(
            Contender(
                name=OURS,
                setup=(replace(_our_dump(), env={**_our_dump().env, "BACKUP_LOCAL_PATH": "{kept}"}),),
                prepare=(cleared, vacuumed, settled),
                run=Command(
                    argv=("{tools}/restore.sh", "{archive}", "--force", "--database-only", "--jobs", _RESTORE_JOBS),
                    env={**_our_dump().env, "BACKUP_LOCAL_PATH": "{kept}"},
                ),
                says_success=True,
            ),
            Contender(
                name=plain,
                setup=(replace(_pg_dump("--compress", "0", "--file", "{kept}/dump")),),
                prepare=(
                    Command(argv=("{pg_bin}/dropdb", *_CONNECTION, "--if-exists", scratch), env=_PASSWORD),
                    Command(argv=("{pg_bin}/createdb", *_CONNECTION, scratch), env=_PASSWORD),
                    vacuumed,
                    settled,
                ),
                run=Command(
                    argv=(
                        "{pg_bin}/pg_restore",
                        *_CONNECTION,
                        "--dbname",
                        scratch,
                        "--no-owner",
                        "--jobs",
                        _RESTORE_JOBS,
                        "{kept}/dump",
                    ),
                    env=_PASSWORD,
                ),
            ),
        ),
        targets=(Target(measure=Measure.TIME, subject=OURS, reference=plain, bound=Bound.AT_MOST, wanted=1.25),),
    )


def _memory(inputs: Sequence[CopiedSet]) -> Case:
    *_, middle, largest = names = [f"{OURS}, {data.description()}" for data in inputs]
    return Case(
        name="memory",
        title="peak of all our processes together, by the size of what is backed up",
        data=inputs[0],
        contenders=tuple(_our_backup(name, data) for name, data in zip(names, inputs, strict=True)),
        targets=(
            Target(measure=Measure.PSS, subject=largest, bound=Bound.AT_MOST, wanted=MEMORY_LIMIT),
            Target(measure=Measure.PSS, subject=largest, reference=middle, bound=Bound.AT_MOST, wanted=MEMORY_GROWTH),
        ),
        watches_memory=True,
    )
