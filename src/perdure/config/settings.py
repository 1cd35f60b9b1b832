"""What a server is started with: from a YAML file, then the environment, then flags; each wins over those before it.

The file's keys are the fields below in camelCase, and each has an environment variable: `database.url` is
PERDURE_DATABASE_URL, `dynamicConfig.file` is PERDURE_DYNAMIC_CONFIG_FILE. Lists are written there with commas, maps as
YAML ({a: b}).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, cast, get_type_hints

import msgspec
from msgspec import Meta

from perdure.config.dynamic import ConfigError

Port = Annotated[int, Meta(ge=0, le=65535)]
Shards = Annotated[int, Meta(ge=1, le=16_384)]
Service = Literal["frontend", "history", "matching", "worker"]
ALL_SERVICES: Final[tuple[Service, ...]] = ("frontend", "history", "matching", "worker")

LOG_LEVELS: Final = ("debug", "info", "warn", "warning", "error", "fatal", "never")
LOG_FORMATS: Final = ("text", "json", "pretty")


class _Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Database(_Section):
    """url: see `persistence.open`; "": a SQLite file in the user's data directory. shards: of a new database; checked
    against what an old one was made with."""

    url: str = ""
    shards: Shards | None = None
    sqlite_pragmas: dict[str, str | int | bool] = {}


class Frontend(_Section):
    """Where the public API listens. port: 0 takes a free one."""

    ip: str = "127.0.0.1"
    port: Port = 7233


class Cluster(_Section):
    """name: of this member, the same at its next start; "": from the machine's name and the port. ip, port: where the
    internal API listens. advertise: host or host:port under which the other members reach it, "": `ip`."""

    name: Annotated[str, Meta(max_length=200)] = ""
    ip: str = "127.0.0.1"
    port: Port = 0
    advertise: str = ""


class Metrics(_Section):
    """port: on the address of the API; 0 takes a free one."""

    port: Port | None = None


class Log(_Section):
    level: Literal["debug", "info", "warn", "warning", "error", "fatal", "never"] = "warn"
    format: Literal["text", "json", "pretty"] = "text"


class Namespaces(_Section):
    """Created when they are missing, besides `default`, with this retention of closed workflows and these search
    attributes (name to Text, Keyword, Int, Double, Bool, Datetime or KeywordList)."""

    names: list[Annotated[str, Meta(min_length=1, max_length=1000)]] = []
    retention: str = ""
    search_attributes: dict[str, str] = {}


class DynamicConfig(_Section):
    """file: followed while the server runs. values: under Temporal's keys; they win over the file."""

    file: str = ""
    values: dict[str, Any] = {}


class Settings(_Section):
    services: Annotated[list[Service], Meta(min_length=1)] = msgspec.field(default_factory=lambda: list(ALL_SERVICES))
    processes: Annotated[int, Meta(ge=1, le=256)] = 1
    database: Database = msgspec.field(default_factory=Database)
    frontend: Frontend = msgspec.field(default_factory=Frontend)
    cluster: Cluster = msgspec.field(default_factory=Cluster)
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    log: Log = msgspec.field(default_factory=Log)
    namespaces: Namespaces = msgspec.field(default_factory=Namespaces)
    dynamic_config: DynamicConfig = msgspec.field(default_factory=DynamicConfig)


def load_settings(path: str | None, environment: Mapping[str, str]) -> Settings:
    """Raises ConfigError: one line that names the file and the key, or the variable."""
    settings = Settings() if path is None else _from_file(path)
    _override(settings, (), environment)
    return settings


def _from_file(path: str) -> Settings:
    from perdure.config.files import read_yaml  # only when there is a file

    content = read_yaml(path)
    try:
        return msgspec.convert(_without_empty(content), Settings)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{path}: {_explained(str(e))}") from None


def _without_empty(content: Any) -> Any:
    """Sections of which everything is commented out are as those that are not there."""
    if content is None:
        return {}
    if isinstance(content, dict):
        return {key: value for key, value in cast("dict[Any, Any]", content).items() if value is not None}
    return content


def _override(section: msgspec.Struct, path: tuple[str, ...], environment: Mapping[str, str]) -> None:
    hints = get_type_hints(type(section), include_extras=True)
    for field in msgspec.structs.fields(section):
        place = (*path, field.name)
        value = getattr(section, field.name)
        if isinstance(value, msgspec.Struct):
            _override(value, place, environment)
            continue
        variable = f"PERDURE_{'_'.join(place).upper()}"
        text = environment.get(variable, "")
        # Kubernetes sets PERDURE_METRICS_PORT=tcp://… for a service of the name perdure-metrics, and the like.
        if text and not text.startswith(("tcp://", "udp://")):
            try:
                setattr(section, field.name, _parsed(text, hints[field.name], value))
            except msgspec.ValidationError as e:
                raise ConfigError(f"{variable}: {_explained(str(e), '.'.join(place))}") from None
            except ConfigError as e:
                raise ConfigError(f"{variable}: {e}") from None


def _parsed(text: str, hint: Any, default: Any) -> Any:
    value: Any = text
    if isinstance(default, list):
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif isinstance(default, dict):
        import yaml

        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError("not a map, as in {a: b, c: d}") from None
    return msgspec.convert(value, hint, strict=False)


_PLACE: Final = re.compile(r"(?s)^(.*?)(?: - at (?:`(key)` in )?`\$(.*)`)?$")
_CHOICES: Final = {"services": ALL_SERVICES, "log.level": LOG_LEVELS, "log.format": LOG_FORMATS}


def _explained(message: str, key: str = "") -> str:
    """msgspec's message with the key first: `frontend.port: expected int, got str`. key: what was read, if it was not
    a whole file."""
    match = _PLACE.match(message)
    assert match is not None
    problem, of_key, place = match[1], match[2], (match[3] or "").lstrip(".")
    place = place.replace("[...]", ".*")
    unknown = re.match(r"Object contains unknown field `(.*)`", problem)
    if unknown is not None:
        return f"{place + '.' if place else ''}{unknown[1]}: there is no such setting"
    enum = re.match(r"Invalid enum value (.*)", problem)
    if enum is not None:
        choices = _CHOICES.get(key or place.partition("[")[0], ())
        problem = f"{enum[1]} is none of {', '.join(choices)}"
    else:
        problem = problem[:1].lower() + problem[1:].replace("`", "")
        problem = problem.replace("object", "a map").replace("expected array", "expected a list")
    if of_key:
        problem = f"a key: {problem}"
    return f"{place}: {problem}" if place and not key else problem
