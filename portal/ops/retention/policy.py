"""The retention policy: rules, in numbers, for each type of backup."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING, Final

from portal.ops.errors import ConfigurationError
from portal.ops.model import BackupType
from portal.ops.settings.parsers import MOST_KEPT, own_numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


_PERIODS: Final = ("hourly", "daily", "weekly", "monthly", "yearly")


@dataclass(frozen=True, kw_only=True)
class RetentionRule:
    """How long to keep archives of one type.

    Arguments:
        days: days to keep every archive.
        count: the number of newest complete archives to keep, whatever their age.
        hourly: of how many most recent hours that have archives to keep the last one; likewise for longer periods.

    Raises:
        ConfigurationError: a number is negative or absurd, or the rule keeps nothing.
    """

    days: int = 30
    count: int = 10
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("days", "count", *_PERIODS)}
        faults = [f"{name} is {number}" for name, number in numbers.items() if not 0 <= number <= MOST_KEPT]
        if faults:
            raise ConfigurationError(
                f"a rule of retention is invalid: {', '.join(faults)}", hint=f"Give numbers from 0 to {MOST_KEPT}."
            )
        if not any(numbers.values()):
            raise ConfigurationError(
                "a rule of retention keeps nothing: every number in it is 0",
                hint="Set BACKUP_RETENTION_DAYS or BACKUP_RETENTION_COUNT, or one of BACKUP_KEEP_*, to more than 0.",
            )

    def periods(self) -> Iterable[tuple[str, int]]:
        """The kinds of periods, with the number of each to keep."""
        return ((name, getattr(self, name)) for name in _PERIODS if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """The rules for all types.

    Arguments:
        rule: the rule for types without one of their own.
        rules: the rules of types.
        zone: the time zone of hours, days and weeks.
        pitr_days: how many days back recoveries to a moment reach; base backups are kept by this alone.
    """

    rule: RetentionRule = field(default_factory=RetentionRule)
    rules: Mapping[BackupType, RetentionRule] = field(default_factory=dict)
    zone: tzinfo = UTC
    pitr_days: int = 7

    def of(self, kind: BackupType) -> RetentionRule:
        """The rule for a type."""
        return self.rules.get(kind, self.rule)


def own_rules(given: Mapping[str, Mapping[str, int]], general: RetentionRule) -> dict[BackupType, RetentionRule]:
    """Make rules for types.

    Arguments:
        given: by type name, the numbers for `RetentionRule` by their names.

    Raises:
        ConfigurationError: a name is unknown, or a rule is invalid.
    """
    found = {}
    for kind, numbers in given.items():
        try:
            found[BackupType(kind)] = RetentionRule(**own_numbers(numbers, days=general.days, count=general.count))
        except ConfigurationError as error:
            raise ConfigurationError(
                f"of the rule for {kind}: {error.message}",
                hint=f"BACKUP_RETENTION_RULES has it: give it numbers to {MOST_KEPT}, one of them more than 0.",
            ) from error
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"there can be no rule of retention for {kind} with {', '.join(numbers)}",
                hint=f"The types are {', '.join(BackupType)}; the numbers are days, count, {', '.join(_PERIODS)}.",
            ) from error
    return found
