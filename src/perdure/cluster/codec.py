"""How the calls of a client protocol travel, derived from the signatures of its methods.

Arguments become one msgpack array: protobuf messages as their bytes, structs and plain values as they are. A deadline
travels as the time that is left, since members need not agree on what time it is. A result is the bytes of a message,
or bytes as they are, or msgpack. In front of it is one byte that tells what came of the call.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import msgspec
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from perdure.clock import Clock
from perdure.errors import NotOwned, ServiceError, internal
from perdure.matching.api import NoPoller

_DONE, _FAILED, _NO_POLLER, _NOT_OWNED = b"\0", b"\1", b"\2", b"\3"

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class _Parameter:
    name: str
    default: Any
    keyword: bool
    message: type[Message] | None
    wire: Any  # the type to decode it as


class Method:
    """deadline: index of the argument that is a deadline, None when there is none."""

    __slots__ = ("_decode", "_decode_result", "_encode_result", "_keywords", "_parameters", "deadline", "name")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        hints = typing.get_type_hints(function)
        self._parameters = [
            _parameter(p, hints[p.name]) for p in inspect.signature(function).parameters.values() if p.name != "self"
        ]
        self._keywords = sum(p.keyword for p in self._parameters)
        names = [p.name for p in self._parameters]
        self.deadline = names.index("deadline") if "deadline" in names else None
        self._decode = msgspec.msgpack.Decoder(tuple[tuple(p.wire for p in self._parameters)]).decode  # type: ignore[misc]
        result = hints["return"]
        self._encode_result: Callable[[Any], bytes] = _encode
        self._decode_result: Callable[[bytes], Any]
        if isinstance(result, type) and issubclass(result, Message):
            self._encode_result = _serialize
            self._decode_result = result.FromString
        elif result is bytes:
            self._encode_result = self._decode_result = bytes
        else:
            self._decode_result = msgspec.msgpack.Decoder(result).decode

    def request(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], clock: Clock) -> bytes:
        values: list[Any] = list(args)
        for parameter in self._parameters[len(args) :]:
            values.append(kwargs.get(parameter.name, parameter.default))
        for i, parameter in enumerate(self._parameters):
            if parameter.message is not None and values[i] is not None:
                values[i] = values[i].SerializeToString()
        if self.deadline is not None and values[self.deadline]:
            values[self.deadline] = max(1, values[self.deadline] - clock.now())
        return _encode(values)

    def arguments(self, data: bytes, clock: Clock) -> tuple[list[Any], dict[str, Any]]:
        values: list[Any] = list(self._decode(data))
        for i, parameter in enumerate(self._parameters):
            if parameter.message is not None and values[i] is not None:
                values[i] = parameter.message.FromString(values[i])
        if self.deadline is not None and values[self.deadline]:
            values[self.deadline] += clock.now()
        if not self._keywords:
            return values, {}
        named = self._parameters[-self._keywords :]
        return values[: -self._keywords], {p.name: v for p, v in zip(named, values[-self._keywords :], strict=True)}

    def response(self, result: Any) -> bytes:
        return _DONE + self._encode_result(result)

    def result(self, data: bytes) -> Any:
        """Raises what the call raised."""
        kind = data[:1]
        if kind == _DONE:
            return self._decode_result(data[1:])
        raise _error(kind, data[1:])


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _parameter(parameter: inspect.Parameter, hint: Any) -> _Parameter:
    message: type[Message] | None = None
    wire = hint
    of_union = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in of_union:
        if isinstance(kind, type) and issubclass(kind, Message):
            message = kind
            wire = bytes | None if len(of_union) > 1 else bytes
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    return _Parameter(parameter.name, default, parameter.kind is inspect.Parameter.KEYWORD_ONLY, message, wire)


def methods(*protocols: type) -> dict[str, Method]:
    """By name, of all public coroutine functions of these protocols."""
    found: dict[str, Method] = {}
    for protocol in protocols:
        for name, function in inspect.getmembers(protocol, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                found[name] = Method(name, function)
    return found


def failure(error: Exception) -> bytes:
    """The response of a call that raised. ServiceErrors arrive as they are, others as INTERNAL."""
    if isinstance(error, NotOwned):
        return _NOT_OWNED + error.what.encode()
    if isinstance(error, NoPoller):
        return _NO_POLLER
    if not isinstance(error, ServiceError):
        error = internal("internal error")
    status = Status(code=error.code.value[0], message=error.message)
    if error.detail is not None:
        status.details.add().Pack(error.detail)
    return _FAILED + status.SerializeToString()


def _error(kind: bytes, data: bytes) -> Exception:
    if kind == _NO_POLLER:
        return NoPoller()
    if kind == _NOT_OWNED:
        return NotOwned(data.decode())
    status = Status.FromString(data)
    detail: Message | None = None
    if status.details:
        packed = status.details[0]
        name = packed.type_url.rpartition("/")[2]
        try:
            detail = message_factory.GetMessageClass(
                descriptor_pool.Default().FindMessageTypeByName(name)  # type: ignore[no-untyped-call]
            ).FromString(packed.value)
        except KeyError:
            pass  # a newer member's: the code says enough
    return ServiceError(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, detail)
