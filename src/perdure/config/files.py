"""YAML files of settings, and the dynamic configuration that follows one."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Final, cast

import yaml

from perdure.clock import SECOND, Clock
from perdure.config.dynamic import REGISTRY, ConfigError, Constraints, DynamicConfig

log = logging.getLogger("perdure.config")

Values = dict[str, list[tuple[Constraints, Any]]]

_INTERVAL: Final = SECOND
_MOST_BYTES: Final = 4 << 20

# Temporal's names of constraints, by which of ours they are. A value with one that we do not know how to apply holds
# nowhere, rather than everywhere.
_CONSTRAINTS: Final = {
    "namespace": "namespace",
    "taskqueuename": "task_queue",
    "shardid": "shard_id",
    "namespaceid": None,
    "taskqueuetype": None,
    "tasktype": None,
    "historytasktype": None,
    "destination": None,
}


class _Loader(yaml.SafeLoader):
    """Without YAML's silence about a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key != "<<" and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str) -> Any:
    """What the file holds. Raises ConfigError, one line that names the file and where in it."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8") from e
    if len(text) > _MOST_BYTES:
        raise ConfigError(f"{path} is larger than {_MOST_BYTES >> 20} MiB")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: {e.problem or e.context}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: {' '.join(str(e).split())}") from e


def parse_dynamic(content: Any) -> tuple[Values, list[str]]:
    """The values in Temporal's format, and what is to be said about those that do nothing here. content: as of
    `read_yaml`. Raises ConfigError."""
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        raise ConfigError("not a map of keys")
    values: Values = {}
    remarks: list[str] = []
    for name, entries in cast("dict[Any, Any]", content).items():
        if not isinstance(name, str):
            raise ConfigError(f"{name!r} is not a key")
        if name.lower() not in REGISTRY:
            remarks.append(f"{name} is not a key that does anything here")
        if not isinstance(entries, list):
            raise ConfigError(f"{name}: not a list of values, each with `value:` and perhaps `constraints:`")
        for entry in cast("list[Any]", entries):
            if not isinstance(entry, dict) or "value" not in entry:
                raise ConfigError(f"{name}: an entry without `value:`")
            fields = cast("dict[Any, Any]", entry)
            if unknown := [str(field) for field in fields if field not in ("value", "constraints")]:
                raise ConfigError(f"{name}: {unknown[0]} is neither value nor constraints")
            constraints = _constraints(name, fields.get("constraints") or {})
            if constraints is None:
                remarks.append(f"{name}: a value with constraints that are not known here holds nowhere")
            else:
                values.setdefault(name, []).append((constraints, fields["value"]))
    return values, remarks


def _constraints(name: str, given: Any) -> Constraints | None:
    """None when there is one of Temporal's that does nothing here."""
    if not isinstance(given, dict):
        raise ConfigError(f"{name}: constraints are not a map")
    known: dict[str, Any] = {}
    for key, value in cast("dict[Any, Any]", given).items():
        lowered = str(key).lower()
        if lowered not in _CONSTRAINTS:
            raise ConfigError(f"{name}: {key} is not a constraint (namespace, taskQueueName, shardID)")
        field = _CONSTRAINTS[lowered]
        if field is None:
            return None
        if not isinstance(value, int if field == "shard_id" else str) or isinstance(value, bool):
            raise ConfigError(f"{name}: {value!r} is not a {key}")
        known[field] = value
    return Constraints(**known)


class DynamicFile:
    """Keeps `config` as the file says, from `start` to `stop`. A file that is bad, or gone, changes nothing."""

    def __init__(self, path: str, config: DynamicConfig, clock: Clock) -> None:
        self.path = path
        self._config = config
        self._clock = clock
        self._seen: object = None
        self._told: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Raises ConfigError when the file is bad already."""
        self._seen = self._look()
        self._load()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _look(self) -> object:
        """Differs when the file does, also when another one is put in its place."""
        try:
            found = os.stat(self.path)
        except OSError as e:
            return e.errno
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> None:
        content = read_yaml(self.path)
        try:
            values, remarks = parse_dynamic(content)
            self._config.replace(values)
        except ConfigError as e:
            raise ConfigError(f"{self.path}: {e}") from None
        for remark in remarks:
            if remark not in self._told:
                self._told.add(remark)
                log.warning("%s: %s", self.path, remark)

    async def _follow(self) -> None:
        last = self._seen
        while True:
            await self._clock.sleep(_INTERVAL)
            now = self._look()
            if now != last:
                last = now  # it may be being written: not before it stays the same
                continue
            if now == self._seen:
                continue
            self._seen = now
            try:
                self._load()
                log.info("%s is in force", self.path)
            except ConfigError as e:
                log.error("dynamic configuration stays as it was: %s", e)
            except Exception:
                log.exception("dynamic configuration stays as it was")
