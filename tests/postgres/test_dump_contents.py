"""Which program restores which part of a dump."""

from __future__ import annotations

import pytest

from portal.ops.postgres.dump_contents import MOST_SHARES, privileges, share_out

CONTENTS = [
    ";",
    "; Archive created at 2026-01-02 03:04:05 UTC",
    "217; 1259 16385 TABLE public finding portal",
    "218; 1259 16386 TABLE public note portal",
    "3400; 0 0 ACL public TABLE finding portal",
    ";\tdepends on: 217",
    "3412; 0 16385 TABLE DATA public finding portal",
    ";\tdepends on: 217",
    "3413; 0 16386 TABLE DATA public note portal",
    ";\tdepends on: 218",
    "3414; 0 16387 TABLE DATA public test portal",
    "3415; 0 16388 TABLE DATA public engagement portal",
    "3416; 0 16389 TABLE DATA public product portal",
    "3420; 0 0 SEQUENCE SET public finding_id_seq portal",
    "3430; 826 16500 DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES portal",
]
ENTRIES = [line for line in CONTENTS if not line.startswith(";")]
TABLES = ("finding", "note", "test", "engagement", "product")
EVEN = {f"public.{table}": 1000 for table in TABLES}


def numbers(share: list[str]) -> list[int]:
    """The numbers of a share's entries."""
    return [int(line.partition(";")[0]) for line in share]


def loads(shares: list[list[str]], weights: dict[str, int]) -> list[int]:
    """How much each share has of the tables."""
    return [
        sum(weights[f"public.{table}"] for table in TABLES if any(f"DATA public {table} " in line for line in share))
        for share in shares
    ]


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
    contents = [*CONTENTS[:9], ";\tdepends on: 218 3412", *CONTENTS[10:]]
    shares = share_out(contents, EVEN, 4)
    assert len(shares) > 1
    assert {3412, 3413} <= set(numbers(shares[0]))


def test_a_name_that_sql_quotes() -> None:
    """Capital letters and blanks are in the contents as they are, and quoted in the manifest."""
    contents = ["1; 0 5 TABLE DATA Odd My Table portal", "2; 0 6 TABLE DATA public note portal"]
    shares = share_out(contents, {'"Odd"."My Table"': 500, "public.note": 500}, 2)
    assert [numbers(share) for share in shares] == [[1], [2]]


def test_privileges() -> None:
    """Grants come by themselves, those of objects and those of objects to come."""
    assert numbers(privileges(CONTENTS)) == [3400, 3430]
