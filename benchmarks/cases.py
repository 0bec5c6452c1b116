"""The comparisons; see `case.py` for what a case is.

To add a case, write a function that returns it, and add it to `all_cases`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.case import OURS, SYNCED, Case, Contender, Data, at_most, faster, repository_at
from benchmarks.data import Content, CopiedSet, DataSet
from benchmarks.database import Database, Shape
from benchmarks.database_cases import PG_DUMP, PG_DUMP_RAW, database_case, restore_database_case
from benchmarks.measure import Command
from benchmarks.outcome import Bound, Measure, Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TAR = "tar czf"
PIGZ = "tar -I pigz"
ZSTD = "tar -I 'zstd -3 -T2'"
CAREFUL_TAR = f"{ZSTD}; sync; sha256sum"
RESTIC = "restic backup"
BORG = "borg create, lz4"

SARIF = DataSet(content=Content.SARIF, files=3_000, size=600_000_000)
SMALL = DataSet(content=Content.REPORTS, files=40_000, size=180_000_000, tenants=16)
RANDOM = DataSet(content=Content.RANDOM, files=100, size=500_000_000)
FINDINGS = Database(megabytes=700)
PORTAL = Database(megabytes=350, shape=Shape.PORTAL)
MEMORY_INPUTS = tuple(CopiedSet(sources=(SARIF, RANDOM), size=size * 1_000_000) for size in (100, 1_000, 5_000))
MEMORY_LIMIT = 250_000_000
CHAIN_LENGTH = 500
MEMORY_GROWTH = 1.1


def all_cases(scale: float = 1.0, dump: Path | None = None, pg_bin: Path | None = None) -> tuple[Case, ...]:
    """Return every case over `scale` times the data, in the order in which they run.

    Arguments:
        dump: a file of `pg_dump -Fc`; its database becomes a case of its own.
        pg_bin: the directory of the PostgreSQL that serves the databases; None for the embedded one.
    """
    sarif = SARIF.scaled(scale)
    findings, portal = (replace(data.scaled(scale), bin_dir=pg_bin) for data in (FINDINGS, PORTAL))
    own = [Database(dump=dump, bin_dir=pg_bin)] if dump else []
    return (
        _backup("sarif", sarif, tar=10, careful=1.2, restic=3, borg=1.5),
        _backup("small", SMALL.scaled(scale), tar=4, careful=1, restic=5, borg=3),
        _backup("random", RANDOM.scaled(scale), tar=5, careful=1, restic=1.8, borg=0.8),
        database_case("database", findings, faster(PG_DUMP, 6), at_most(PG_DUMP_RAW, 1.45)),
        database_case("portal", portal, at_most(PG_DUMP, 0.75)),
        *(database_case("dump", data, at_most(PG_DUMP, 0.75)) for data in own),
        _verify(sarif),
        _extract(sarif),
        _restore_files(sarif),
        _unchanged(SMALL.scaled(scale)),
        _restore_chain(SMALL.scaled(scale), max(1, round(CHAIN_LENGTH * scale))),
        restore_database_case("restore-database", findings, most=1.25),
        restore_database_case("restore-portal", portal, most=1.05),
        *(restore_database_case("restore-dump", data, most=1.05) for data in own),
        _memory([data.scaled(scale) for data in MEMORY_INPUTS]),
    )


def _backup(name: str, data: DataSet, *, tar: float, careful: float, restic: float, borg: float) -> Case:
    return Case(
        name=name,
        title=f"first backup of {data.description()}",
        data=data,
        contenders=(_our_backup(), *_tars(), _restic(), _borg()),
        targets=(
            faster(TAR, tar),
            faster(CAREFUL_TAR, careful),
            faster(RESTIC, restic),
            faster(BORG, borg),
            at_most(TAR, 1.08, Measure.SIZE),
        ),
        guard=CAREFUL_TAR,
    )


def _our_backup(name: str = OURS, data: Data | None = None) -> Contender:
    return Contender(name=name, run=_media_into("{out}"), says_success=True, output="*.tar.gz", data=data, proof=SYNCED)


def _media_into(repository: str) -> Command:
    return Command(
        argv=("{tools}/backup.sh", "media"),
        env={**repository_at(repository), "PORTAL_UPLOAD_DIR": "{data}"},
    )


def _tars() -> tuple[Contender, ...]:
    return (
        Contender(
            name=TAR, run=_tar_into("{out}"), output="archive.tar.gz", needs=("tar", "gzip"), proof="CRC-32; not synced"
        ),
        _tar_through(PIGZ, "pigz", "CRC-32; not synced"),
        _tar_through(ZSTD, "zstd -3 -T2", "XXH64; not synced"),
        _careful_tar(),
    )


def _careful_tar() -> Contender:
    """What a careful person runs: the archive is synced and has a digest, like ours."""
    script = (
        'tar -I \'zstd -3 -T2\' -cf "$2/archive.tar" -C "$1" . && sync "$2/archive.tar" "$2" && '
        'sha256sum "$2/archive.tar" >"$2/archive.tar.sha256"'
    )
    return Contender(
        name=CAREFUL_TAR,
        run=Command(argv=("sh", "-c", script, "sh", "{data}", "{out}")),
        output="archive.tar",
        needs=("tar", "zstd", "sha256sum"),
        proof="SHA-256 of the archive; synced",
    )


def _tar_into(directory: str) -> Command:
    return Command(argv=("tar", "czf", f"{directory}/archive.tar.gz", "-C", "{data}", "."))


def _tar_through(name: str, program: str, proof: str) -> Contender:
    return Contender(
        name=name,
        run=Command(argv=("tar", "-I", program, "-cf", "{out}/archive.tar", "-C", "{data}", ".")),
        output="archive.tar",
        needs=("tar", program.split()[0]),
        proof=proof,
    )


def _restic() -> Contender:
    return Contender(
        name=RESTIC,
        prepare=(_restic_command("{out}", "init"),),
        run=_restic_command("{out}", "backup", "{data}"),
        output="repository",
        needs=("restic",),
        proof="SHA-256 of each block; synced; encrypted",
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
        proof="SHA-256 of each block; synced",
    )


def _verify(data: DataSet) -> Case:
    check, test = "restic check --read-data", "gzip --test of our archive"
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
                    env=repository_at("{kept}"),
                ),
                says_success=True,
                proof="SHA-256 of each file and of the archive",
            ),
            Contender(
                name=check,
                setup=(_restic_command("{kept}", "init"), _restic_command("{kept}", "backup", "{data}")),
                run=_restic_command("{kept}", "check", "--read-data"),
                needs=("restic",),
                proof="SHA-256 of each block",
            ),
            Contender(
                name=test,
                setup=(_media_into("{kept}"),),
                run=Command(argv=("gzip", "--test", "{archive}")),
                needs=("gzip",),
                proof="CRC-32 of the archive",
            ),
        ),
        targets=(faster(check, 1.5),),
        guard=test,
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
                    env=repository_at("{kept}"),
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
        targets=(faster(whole, 50),),
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
                    env=repository_at("{kept}"),
                ),
                check=same,
                says_success=True,
                proof="SHA-256 of each file and of the archive; synced",
            ),
            Contender(
                name=tar,
                setup=(_tar_into("{kept}"),),
                prepare=(Command(argv=("mkdir", "{out}/files")),),
                run=Command(argv=("tar", "xzf", "{kept}/archive.tar.gz", "-C", "{out}/files")),
                check=same,
                needs=("tar", "gzip"),
                proof="CRC-32; not synced",
            ),
            Contender(
                name=restic,
                setup=(_restic_command("{kept}", "init"), _restic_command("{kept}", "backup", "{data}")),
                run=_restic_command("{kept}", "restore", "latest", "--target", "{out}/files"),
                needs=("restic",),
                proof="SHA-256 of each block; not synced",
            ),
        ),
        targets=(faster(tar, 2.7), faster(restic, 1.3)),
        guard=tar,
        keeps_outputs=True,
    )


def _unchanged(data: DataSet) -> Case:
    """All have backed the files up once before; ours twice, since the first incremental fills the cache."""
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
            Contender(name=OURS, setup=(ours, again), run=again, says_success=True, proof=SYNCED),
            Contender(
                name=RESTIC,
                setup=(_restic_command("{kept}", "init"), _restic_command("{kept}", "backup", "{data}")),
                run=_restic_command("{kept}", "backup", "{data}"),
                needs=("restic",),
                proof="SHA-256 of each block; synced; encrypted",
            ),
            Contender(
                name=BORG,
                setup=(
                    Command(argv=("borg", "init", "--encryption", "none", "{kept}/repository"), env=borg_env),
                    replace(borg, argv=(*borg.argv, name, "{data}")),
                ),
                run=replace(borg, argv=(*borg.argv, name, "{data}")),
                needs=("borg",),
                proof="SHA-256 of each block; synced",
            ),
        ),
        targets=(faster(RESTIC, 4), faster(BORG, 4)),
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
                setup=(
                    Command(
                        argv=(sys.executable, "-m", "benchmarks.chain", "{data}", "{kept}", str(length)),
                        env=repository_at("{kept}/archives"),
                    ),
                ),
                run=Command(
                    argv=("{tools}/restore.sh", "latest", "--media-only", "--force", "--media-dir", "{out}/files"),
                    env=repository_at("{kept}/archives"),
                ),
                check=(Command(argv=("diff", "--recursive", "--exclude=.kekkai-restore", "{data}", "{out}/files")),),
                says_success=True,
            )
            for name, length in ((chain, incrementals), (base, 0))
        ),
        targets=(Target(measure=Measure.TIME, subject=chain, reference=base, bound=Bound.AT_MOST, wanted=1.5),),
        keeps_outputs=True,
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
