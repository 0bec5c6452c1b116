"""Which program restores which part of a dump."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from portal.ops.postgres.dump_contents import (
    MOST_SHARES,
    divide,
    needs_administrator,
    partitions_first,
    roles_of,
    share_out,
    split_after,
    statements_without,
)
from portal.ops.postgres.toc import Entry, Section

if TYPE_CHECKING:
    from collections.abc import Iterable


def entry(number: int, kind: str, name: str, *needs: int, **facts: Any) -> Entry:
    """An entry of a table of contents."""
    facts.setdefault("schema", "public")
    facts.setdefault("section", Section.DATA if kind in ("TABLE DATA", "SEQUENCE SET") else Section.PRE_DATA)
    return Entry(number=number, kind=kind, name=name, needs=frozenset(needs), **facts)


CONTENTS = [
    entry(217, "TABLE", "finding"),
    entry(218, "TABLE", "note"),
    entry(3400, "ACL", "TABLE finding", 217),
    entry(3412, "TABLE DATA", "finding", 217),
    entry(3413, "TABLE DATA", "note", 218),
    entry(3414, "TABLE DATA", "test"),
    entry(3415, "TABLE DATA", "engagement"),
    entry(3416, "TABLE DATA", "product"),
    entry(3420, "SEQUENCE SET", "finding_id_seq"),
    entry(3430, "DEFAULT ACL", "DEFAULT PRIVILEGES FOR TABLES", section=Section.POST_DATA),
]
ENTRIES = CONTENTS
TABLES = ("finding", "note", "test", "engagement", "product")
EVEN = {f"public.{table}": 1000 for table in TABLES}


def numbers(share: Iterable[Entry]) -> list[int]:
    """The numbers of a share's entries."""
    return [one.number for one in share]


def loads(shares: list[list[Entry]], weights: dict[str, int]) -> list[int]:
    """How much each share has of the tables."""
    return [sum(weights[f"public.{one.name}"] for one in share if one.kind == "TABLE DATA") for share in shares]


@pytest.mark.parametrize("jobs", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("weights", [EVEN, EVEN | {"public.finding": 2500}, EVEN | {"public.note": 10}, {}])
def test_each_entry_is_in_one_share(weights: dict[str, int], jobs: int) -> None:
    """Nothing is lost and nothing comes twice, in the order of the dump."""
    shares = [numbers(share) for share in share_out(CONTENTS, weights, jobs)]
    assert sorted(number for share in shares for number in share) == numbers(ENTRIES)
    assert all(share == sorted(share) for share in shares)
    assert 1 <= len(shares) <= min(jobs, MOST_SHARES)


def test_tables_of_the_same_size_are_shared_out() -> None:
    """Two programs have three and two of five tables, and whatever is no table is the first one's."""
    shares = share_out(CONTENTS, EVEN, 2)
    assert sorted(loads(shares, EVEN)) == [2000, 3000]
    assert {217, 218, 3400, 3420, 3430} <= set(numbers(shares[0]))


def test_one_table_that_is_most_of_it_is_not_waited_for_by_others() -> None:
    """Where one table takes longer than all others together, one program does it all."""
    weights = EVEN | {"public.finding": 90_000}
    assert len(share_out(CONTENTS, weights, 8)) == 1


def test_without_sizes_one_program_does_it_all() -> None:
    """An archive whose manifest has no numbers is restored all the same."""
    assert len(share_out(CONTENTS, {}, 8)) == 1


def test_small_tables_stay_with_the_first() -> None:
    """A table that is not a twentieth of it is not worth a thought."""
    weights = EVEN | {"public.note": 10}
    _, *others = share_out(CONTENTS, weights, 4)
    assert others
    assert not any(3413 in numbers(share) for share in others)


def test_what_depends_on_each_other_stays_together() -> None:
    """A table whose rows need those of another is loaded after it, by the same program."""
    contents = [*CONTENTS[:4], entry(3413, "TABLE DATA", "note", 218, 3412), *CONTENTS[5:]]
    shares = share_out(contents, EVEN, 4)
    assert len(shares) > 1
    assert {3412, 3413} <= set(numbers(shares[0]))


def test_a_name_that_sql_quotes() -> None:
    """Names are raw in the contents; a manifest of any release names the same tables, quoted or not."""
    contents = [entry(1, "TABLE DATA", "My Table", schema="Odd"), entry(2, "TABLE DATA", "order")]
    for order in ("public.order", 'public."order"'):
        shares = share_out(contents, {'"Odd"."My Table"': 500, order: 500}, 2)
        assert sorted(map(numbers, shares)) == [[1], [2]]


def test_a_dump_is_divided() -> None:
    """Each entry is in one part: before the rows, rows, after them, grants, views, and what acts by itself."""
    contents = [
        *CONTENTS,
        entry(1, "EXTENSION", "pageinspect"),
        entry(2, "COMMENT", "EXTENSION pageinspect", 1),
        entry(3500, "INDEX", "finding_id", section=Section.POST_DATA),
        entry(3501, "MATERIALIZED VIEW DATA", "totals", section=Section.POST_DATA),
        entry(3502, "EVENT TRIGGER", "login", section=Section.POST_DATA),
        entry(3503, "COMMENT", "EVENT TRIGGER login", 3502, section=Section.POST_DATA),
        entry(3504, "PUBLICATION", "some", section=Section.POST_DATA),
        entry(3505, "SUBSCRIPTION", "from_there", section=Section.POST_DATA),
        entry(3506, "DATABASE", "portal"),
    ]
    division = divide(contents, without=("SUBSCRIPTION",))
    before, last = (
        [(numbers(run.entries), run.as_administrator) for run in part] for part in (division.before, division.last)
    )
    assert before == [([217, 218], False), ([1, 2], True)]
    assert numbers(division.rows) == [3412, 3413, 3414, 3415, 3416, 3420]
    assert numbers(division.after) == [3500]
    assert numbers(division.privileges) == [3400, 3430]
    assert numbers(division.views) == [3501]
    assert last == [([3502, 3503], True), ([3504], False)]


def test_extensions_of_an_administrator() -> None:
    """What whoever owns the database may create is created as its owner."""
    assert needs_administrator(entry(1, "EXTENSION", "pageinspect"), trusted=["pg_trgm"])
    assert not needs_administrator(entry(1, "EXTENSION", "pg_trgm"), trusted=["pg_trgm"])


GRANTS = """REVOKE ALL ON TABLE public.finding FROM "Owner of; it";
GRANT SELECT ON TABLE public.finding TO PUBLIC;
GRANT SELECT,INSERT ON TABLE public.finding TO reader WITH GRANT OPTION;
SET SESSION AUTHORIZATION reader;
GRANT SELECT ON TABLE public.finding TO guest;
RESET SESSION AUTHORIZATION;
"""


def test_roles_of_a_privilege() -> None:
    """Who grants and who is granted to, by their raw names; everybody is no role."""
    assert roles_of(entry(1, "ACL", "TABLE finding", definition=GRANTS)) == ["Owner of; it", "reader", "guest"]


def test_roles_of_a_policy() -> None:
    """Each role that a policy is for."""
    policy = 'CREATE POLICY p ON public.t FOR SELECT TO reader, "Other Role" USING ((a > 1));\n'
    assert roles_of(entry(1, "POLICY", "t p", definition=policy)) == ["reader", "Other Role"]


def test_what_a_missing_role_takes_along() -> None:
    """What it is granted and what it has granted cannot be; the rest can."""
    possible, impossible = statements_without(entry(1, "ACL", "TABLE finding", definition=GRANTS), ["reader"])
    assert [statement.split(" ")[0] for statement in possible] == ["REVOKE", "GRANT"]
    assert len(impossible) == 3


def test_statistics_are_apart() -> None:
    """Older servers refuse them, so no program restores them with rows or indexes."""
    columns = entry(3440, "STATISTICS DATA", "finding", 217, section=Section.DATA)
    expression = entry(3441, "STATISTICS DATA", "finding_title", section=Section.POST_DATA)
    division = divide([*CONTENTS, columns, expression])
    assert division.statistics == (columns, expression)
    assert not {3440, 3441} & {*numbers(division.rows), *numbers(division.after)}


def test_what_acts_on_rows_of_other_tables_waits_for_all_rows() -> None:
    """Unvalidated constraints, triggers, rules and statistics come last, each with its comments."""
    after = [
        entry(1, "INDEX", "by_name", definition="CREATE INDEX by_name ON finding (name);\n"),
        entry(2, "CHECK CONSTRAINT", "amount positive"),
        entry(3, "COMMENT", "CONSTRAINT positive ON amount", 2),
        entry(4, "CONSTRAINT", "p nn", definition="ALTER TABLE p\n    ADD CONSTRAINT nn NOT NULL a NOT VALID;\n\n\n"),
        entry(5, "FK CONSTRAINT", "p fk", definition="ALTER TABLE p\n    ADD FOREIGN KEY (a) REFERENCES q(a);\n"),
        entry(6, "FK CONSTRAINT", "p late", definition="ALTER TABLE p\n    ADD FOREIGN KEY (a) NOT VALID;\n"),
        entry(7, "TRIGGER", "p noted"),
        entry(8, "RULE", "p kept"),
        entry(9, "COMMENT", "RULE kept ON p", 8),
        entry(10, "STATISTICS", "both"),
    ]
    at_once, waiting = split_after(after)
    assert numbers(at_once) == [1, 5]
    assert numbers(waiting) == [2, 3, 4, 6, 7, 8, 9, 10]


def test_constraints_of_partitions_come_before_those_of_their_tables() -> None:
    """Only these change places with each other: a dump drops in reverse, and a partition's cannot be dropped first."""
    entries = [
        entry(1, "CONSTRAINT", "m m_pkey"),
        entry(2, "INDEX", "by_name"),
        entry(3, "CONSTRAINT", "z z_pkey"),
        entry(4, "CONSTRAINT", "free free_pkey"),
        entry(5, "CONSTRAINT", "a a_pkey"),
        entry(6, "INDEX ATTACH", "z_pkey", 3, 1),
        entry(7, "INDEX ATTACH", "a_pkey", 5, 3),
        entry(8, "INDEX ATTACH", "i_1", 2),
    ]
    assert numbers(partitions_first(entries)) == [5, 2, 3, 4, 1, 6, 7, 8]


def test_constraints_with_the_same_name_in_two_schemas() -> None:
    """A partition in another schema than its table may have a constraint of the same name."""
    entries = [
        entry(1, "CONSTRAINT", "m key", schema="public"),
        entry(2, "CONSTRAINT", "m key", schema="archive"),
        entry(3, "INDEX ATTACH", "key", 2, 1, schema="archive"),
    ]
    assert numbers(partitions_first(entries)) == [2, 1, 3]
