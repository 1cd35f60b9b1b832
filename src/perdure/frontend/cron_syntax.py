"""Whether text is a cron schedule: five fields (minute, hour, day of month, month, day of week), or one of @hourly,
@daily, … or "@every 1h30m"; before it, optionally, a time zone as in "CRON_TZ=Europe/Oslo "."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo

_MONTHS = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_NO_NAMES: dict[str, int] = {}
_FIELDS = ((0, 59, _NO_NAMES), (0, 23, _NO_NAMES), (1, 31, _NO_NAMES), (1, 12, _MONTHS), (0, 6, _DAYS))
_DESCRIPTORS = {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
_EVERY = re.compile(r"@every \+?((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_MAX_LENGTH = 1000


def is_valid(spec: str) -> bool:
    if len(spec) > _MAX_LENGTH:
        return False
    if spec.startswith(("TZ=", "CRON_TZ=")):
        zone, _, spec = spec.partition(" ")
        spec = spec.strip()
        try:
            ZoneInfo(zone.partition("=")[2])
        except (ValueError, OSError, LookupError):
            return False
    if spec.startswith("@"):
        return spec in _DESCRIPTORS or _EVERY.fullmatch(spec) is not None
    fields = spec.split()
    return (
        len(fields) == 5
        and all(
            _is_item(item, *bounds)
            for field, bounds in zip(fields, _FIELDS, strict=True)
            for item in filter(None, field.split(","))
        )
        and not any(set(field) <= {","} for field in fields)
    )


def _is_item(item: str, low: int, high: int, names: dict[str, int]) -> bool:
    """One of `*`, `5`, `2-4`, `MON-FRI`, each with an optional step as in `*/15`."""
    values, slash, step = item.partition("/")
    if slash and not (_is_number(step) and 0 < int(step) <= high - low + 1):
        return False
    if values in ("*", "?"):
        return True
    first, dash, last = values.partition("-")
    start = _number(first, names)
    end = _number(last, names) if dash else start
    return start is not None and end is not None and low <= start <= end <= high


def _number(text: str, names: dict[str, int]) -> int | None:
    return int(text) if _is_number(text) else names.get(text.lower())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
