"""The tables of visibility in PostgreSQL."""

from __future__ import annotations

from typing import Final

SCRIPTS: Final[tuple[str, ...]] = ()
