"""Cron schedules: when the next run of a workflow is due.

Standard five fields (minute, hour, day of month, month, day of week; names of months and days; lists, ranges, steps),
@hourly and its like, "@every 90s"; before it, optionally, a time zone as in "CRON_TZ=Europe/Oslo ". As everywhere in
cron, when both day fields are restricted a day matches that matches either.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from perdure.clock import SECOND
from perdure.config.dynamic import ConfigError, parse_duration

_MONTHS = {name.lower(): i for i, name in enumerate(calendar.month_abbr) if name}
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_YEARS_AHEAD = 5
_MAX_LENGTH = 1000


class InvalidCron(ValueError):
    """Not a cron schedule, or one that never comes."""


@dataclass(frozen=True, slots=True)
class _Calendar:
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool
    zone: tzinfo

    def matches_day(self, date: datetime) -> bool:
        day = date.day in self.days
        weekday = date.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return day and weekday
        return day or weekday

    def next(self, after: int) -> int | None:
        local = datetime.fromtimestamp(after // SECOND, UTC).astimezone(self.zone)
        moment = local.replace(second=0, microsecond=0, tzinfo=None) + timedelta(minutes=1)
        last_year = moment.year + _YEARS_AHEAD
        while moment.year <= last_year:
            if moment.month not in self.months:
                moment = (moment.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0)
            elif not self.matches_day(moment):
                moment = moment.replace(hour=0, minute=0) + timedelta(days=1)
            elif moment.hour not in self.hours:
                moment = moment.replace(minute=0) + timedelta(hours=1)
            elif moment.minute not in self.minutes:
                moment += timedelta(minutes=1)
            else:
                time = self._instant(moment)
                if time is not None and time > after:
                    return time
                moment += timedelta(minutes=1)
        return None

    def _instant(self, moment: datetime) -> int | None:
        """None for a wall-clock time that a change to summer time skips."""
        aware = moment.replace(tzinfo=self.zone)
        utc = aware.astimezone(UTC)
        if utc.astimezone(self.zone).replace(tzinfo=None) != moment:
            return None
        return int(utc.timestamp()) * SECOND


@dataclass(frozen=True, slots=True)
class _Every:
    interval: int

    def next(self, after: int) -> int | None:
        # Cron counts whole seconds.
        return (after // SECOND) * SECOND + self.interval


@lru_cache(maxsize=1000)
def _parse(spec: str) -> _Calendar | _Every:
    if len(spec) > _MAX_LENGTH:
        raise InvalidCron("too long")
    zone: tzinfo = UTC
    if spec.startswith(("TZ=", "CRON_TZ=")):
        name, _, spec = spec.partition(" ")
        spec = spec.strip()
        try:
            zone = ZoneInfo(name.partition("=")[2])
        except (ValueError, OSError, LookupError):
            raise InvalidCron(f"unknown time zone in {name!r}") from None
    if spec.startswith("@every "):
        try:
            interval = parse_duration(spec.removeprefix("@every ").strip().removeprefix("+"))
        except ConfigError as e:
            raise InvalidCron(str(e)) from None
        return _Every(max(SECOND, interval // SECOND * SECOND))
    if spec.startswith("@"):
        try:
            spec = _DESCRIPTORS[spec]
        except KeyError:
            raise InvalidCron(f"unknown descriptor {spec!r}") from None
    fields = spec.split()
    if len(fields) != 5:
        raise InvalidCron(f"expected 5 fields, found {len(fields)}")
    minutes, hours, days, months, weekdays = fields
    return _Calendar(
        _field(minutes, 0, 59, {}),
        _field(hours, 0, 23, {}),
        _field(days, 1, 31, {}),
        _field(months, 1, 12, _MONTHS),
        _field(weekdays, 0, 6, _DAYS),
        days.startswith(("*", "?")),
        weekdays.startswith(("*", "?")),
        zone,
    )


def _field(text: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    values: set[int] = set()
    for item in filter(None, text.split(",")):
        span, slash, step_text = item.partition("/")
        step = _number(step_text, {}) if slash else 1
        if step < 1:
            raise InvalidCron(f"step of {item!r} is not positive")
        if span in ("*", "?"):
            first, last = low, high
        else:
            begin, dash, end = span.partition("-")
            first = _number(begin, names)
            last = _number(end, names) if dash else (high if slash else first)
        if not low <= first <= last <= high:
            raise InvalidCron(f"{item!r} is out of the range {low}-{high}")
        values.update(range(first, last + 1, step))
    if not values:
        raise InvalidCron(f"empty field {text!r}")
    return frozenset(values)


def _number(text: str, names: dict[str, int]) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 4:
        return int(text)
    try:
        return names[text.lower()]
    except KeyError:
        raise InvalidCron(f"not a number: {text!r}") from None


def validate(spec: str, now: int) -> None:
    """Raises InvalidCron."""
    if _parse(spec).next(now) is None:
        raise InvalidCron("no time can be found to satisfy the schedule")


def next_wait(spec: str, scheduled: int, now: int) -> int | None:
    """Nanoseconds from `now` to the next time of the schedule after `scheduled` (when the last run was due) that is not
    past, whole seconds rounded up; None when it never comes."""
    schedule = _parse(spec)
    if now < scheduled:
        due: int | None = scheduled
    elif isinstance(schedule, _Every):
        base = scheduled // SECOND * SECOND
        steps = max(1, -(-(now - base) // schedule.interval))
        due = base + steps * schedule.interval
    else:
        # Every time of a calendar schedule before now was missed: the next one is the first from now on.
        due = schedule.next(max(scheduled, now - 1))
    if due is None:
        return None
    return -(-(due - now) // SECOND) * SECOND
