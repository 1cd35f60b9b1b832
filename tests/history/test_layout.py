"""What is stored, or held by clients while the server is replaced by another version: fields by their place, types, and
defaults. `python -m tests.history.test_layout` writes `layout.txt` anew."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import NODEFAULT, fields

from perdure import namespaces, tokens
from perdure.history import replies, shard
from perdure.history.core import state, tasks
from perdure.matching import api as matching

KINDS = "kinds of rows"
PINNED = Path(__file__).with_name("layout.txt")

STORED: list[type[msgspec.Struct]] = [
    state.RunState,
    state.WorkflowTask,
    state.RunInfo,
    state.Activity,
    state.Timer,
    state.Child,
    state.ExternalCancel,
    state.ExternalSignal,
    state.Update,
    state.RequestIdRecord,
    shard.CurrentSummary,
    *tasks.Task.__subclasses__(),
    matching.TaskRef,
    tokens.WorkflowTaskToken,
    tokens.ActivityTaskToken,
    tokens.QueryTaskToken,
    replies.HistoryToken,
    namespaces.Namespace,
    namespaces.BadBinary,
]


def layout() -> dict[str, list[str]]:
    """By heading: what is in it, in order."""
    found: dict[str, list[str]] = {KINDS: [f"{kind.value} {kind.name}" for kind in state.Kind]}
    for struct in STORED:
        config = struct.__struct_config__
        heading = (
            struct.__name__ + (f" {config.tag!r}" if config.tag else "") + ("" if config.array_like else " (a map)")
        )
        found[heading] = [_line(field) for field in fields(struct)]
    return found


def _line(field: Any) -> str:
    kind = field.type.__name__ if isinstance(field.type, type) and not hasattr(field.type, "__args__") else field.type
    default = field.default
    if field.default_factory is not NODEFAULT:
        default = field.default_factory()
    line = f"{field.name}: {re.sub(r'[a-z_]+[.](?=[A-Za-z_])', '', str(kind))}"
    if isinstance(default, IntEnum):
        default = int(default)
    return line if default is NODEFAULT else f"{line} = {default!r}"


def written(found: dict[str, list[str]]) -> str:
    return "\n".join(f"{heading}\n" + "".join(f"    {line}\n" for line in lines) for heading, lines in found.items())


def pinned() -> dict[str, list[str]]:
    blocks = [block.splitlines() for block in PINNED.read_text().split("\n\n")]
    return {heading: [line.strip() for line in lines] for heading, *lines in blocks}


def test_stored_data_can_still_be_read() -> None:
    found = layout()
    for heading, lines in pinned().items():
        assert heading in found, f"{heading} is stored, and can no longer be read"
        assert found[heading][: len(lines)] == lines, f"{heading}: fields are only ever added at the end"
        added = found[heading][len(lines) :]
        assert heading == KINDS or all(" = " in line for line in added), f"{heading}: new fields have a default"


def test_what_is_stored_is_pinned() -> None:
    assert layout() == pinned(), "run: python -m tests.history.test_layout"


def test_every_struct_of_the_state_and_every_task_is_pinned() -> None:
    of_state = {v for v in vars(state).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)}
    assert {s for s in of_state if s.__module__ == state.__name__} <= set(STORED)


if __name__ == "__main__":
    PINNED.write_text(written(layout()))
