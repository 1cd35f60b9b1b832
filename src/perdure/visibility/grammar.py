"""The syntax of list filters, on sqlglot: its tokenizer and expression parser, behind caps and allow-lists.

Tokens are checked before anything recurses over them; of the parser's tree only the few kinds of nodes that a filter
may have are translated, and anything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NoReturn

from sqlglot import Token, TokenType, exp
from sqlglot import Tokenizer as BaseTokenizer
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser as BaseParser

from perdure.clock import HOUR, MINUTE, SECOND
from perdure.config.dynamic import ConfigError, parse_duration
from perdure.visibility import attributes
from perdure.visibility.attributes import BOOL, DATETIME, DOUBLE, INT, KEYWORD, KEYWORD_LIST, TEXT, TYPE_NAMES
from perdure.visibility.filter import (
    MAX_DEPTH,
    MAX_TOKENS,
    And,
    Between,
    Column,
    Comparison,
    Expr,
    Has,
    In,
    IsNull,
    Not,
    Or,
    Scalar,
    StartsWith,
    invalid_query,
    resolve,
)

_MALFORMED: Final = "malformed SQL query"
_UNSUPPORTED: Final = "operation is not supported"
_INVALID: Final = "invalid expression"

# sqlglot has no token of its own for this operator: we borrow one that filters do not need.
_STARTS_WITH: Final = TokenType.GLOB

_OPERATORS: Final[dict[type[exp.Expr], str]] = {
    exp.EQ: "=",
    exp.NEQ: "!=",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_GROUPABLE: Final = frozenset(("ExecutionStatus", attributes.NAMESPACE_DIVISION))


class _SyntaxError(Exception):
    def __init__(self, position: int, near: str) -> None:
        self.position = position
        self.near = near


class ListFilter(Dialect):
    """Strings in either quotes, with backslash escapes; names bare or in backticks; no keywords but ours."""

    class Tokenizer(BaseTokenizer):
        QUOTES: ClassVar[list[tuple[str, str] | str]] = ["'", '"']
        IDENTIFIERS: ClassVar[list[str | tuple[str, str]]] = ["`"]
        STRING_ESCAPES: ClassVar[list[str]] = ["'", '"', "\\"]
        COMMENTS: ClassVar[list[str | tuple[str, str]]] = ["--", ("/*", "*/")]
        NESTED_COMMENTS = False
        DROP_UNKNOWN_ESCAPES = True
        KEYWORDS: ClassVar[dict[str, TokenType]] = {
            "!=": TokenType.NEQ,
            "<>": TokenType.NEQ,
            "<=": TokenType.LTE,
            ">=": TokenType.GTE,
            "<=>": TokenType.NULLSAFE_EQ,
            "AND": TokenType.AND,
            "&&": TokenType.AND,
            "OR": TokenType.OR,
            "||": TokenType.OR,
            "NOT": TokenType.NOT,
            "IN": TokenType.IN,
            "IS": TokenType.IS,
            "NULL": TokenType.NULL,
            "TRUE": TokenType.TRUE,
            "FALSE": TokenType.FALSE,
            "BETWEEN": TokenType.BETWEEN,
            "STARTS_WITH": _STARTS_WITH,
            "LIKE": TokenType.LIKE,
            "REGEXP": TokenType.RLIKE,
            "GROUP BY": TokenType.GROUP_BY,
            "ORDER BY": TokenType.ORDER_BY,
            "LIMIT": TokenType.LIMIT,
        }

    class Parser(BaseParser):
        RANGE_PARSERS: ClassVar[dict[TokenType, Any]] = {
            TokenType.IN: BaseParser.RANGE_PARSERS[TokenType.IN],
            TokenType.IS: BaseParser.RANGE_PARSERS[TokenType.IS],
            TokenType.BETWEEN: lambda self, this: self.parse_between(this),
            TokenType.LIKE: lambda self, this: self.parse_binary(exp.Like, this),
            TokenType.RLIKE: lambda self, this: self.parse_binary(exp.RegexpLike, this),
            _STARTS_WITH: lambda self, this: self.parse_binary(exp.StartsWith, this),
        }

        def parse_binary(self, kind: type[exp.Expr], this: exp.Expr | None) -> exp.Expr:
            return self.expression(kind(this=this, expression=self._parse_bitwise()))

        def parse_between(self, this: exp.Expr | None) -> exp.Expr:
            low = self._parse_bitwise()
            if not self._match(TokenType.AND):
                self.raise_error("BETWEEN without AND")
            return self.expression(exp.Between(this=this, low=low, high=self._parse_bitwise()))

        def raise_error(self, message: str, token: Token | None = None) -> NoReturn:
            at = token or self._curr
            if at:
                raise _SyntaxError(at.start, self.sql[at.start : at.end + 1])
            raise _SyntaxError(len(self.sql), "")


_TOKENS: Final = frozenset(
    (
        TokenType.L_PAREN,
        TokenType.R_PAREN,
        TokenType.COMMA,
        TokenType.DOT,
        TokenType.DASH,
        TokenType.EQ,
        TokenType.LT,
        TokenType.GT,
        TokenType.STRING,
        TokenType.NUMBER,
        TokenType.IDENTIFIER,
        TokenType.VAR,
        *ListFilter.Tokenizer.KEYWORDS.values(),
    )
)


class Grammar:
    """One parse. names_division: whether the filter says anything about namespace divisions."""

    def __init__(self, query: str, custom: Mapping[str, int]) -> None:
        self.names_division = False
        self._query = query
        self._custom = custom

    def parse(self) -> tuple[Expr | None, Column | None]:
        """The condition and what to group by. Raises ServiceError INVALID_ARGUMENT."""
        try:
            tokens = ListFilter().tokenize(self._query)
        except SqlglotError:
            raise invalid_query(f"{_MALFORMED}: a quote is not closed") from None
        try:
            _check(tokens, self._query)
            where, group_by = self._split(tokens)
            if not where:
                return None, group_by
            parser = ListFilter().parser()
            parsed = parser.parse_into(exp.Condition, where, self._query)
        except _SyntaxError as e:
            near = f"near '{e.near}'" if e.near else "at the end"
            raise invalid_query(f"{_MALFORMED}: syntax error at position {e.position + 1} {near}") from None
        except SqlglotError as e:
            raise invalid_query(f"{_MALFORMED}: {e}") from None
        if len(parsed) != 1 or parsed[0] is None:
            raise invalid_query(f"{_MALFORMED}: no condition")
        return self._condition(parsed[0]), group_by

    def _split(self, tokens: list[Token]) -> tuple[list[Token], Column | None]:
        """Cuts off what follows the condition. ORDER BY and LIMIT are for the caller to say, not for the filter."""
        for i, token in enumerate(tokens):
            if token.token_type == TokenType.LIMIT:
                raise invalid_query(f"{_UNSUPPORTED}: 'LIMIT' clause")
            if token.token_type == TokenType.ORDER_BY:
                raise invalid_query(f"{_UNSUPPORTED}: 'ORDER BY' clause")
            if token.token_type == TokenType.GROUP_BY:
                return tokens[:i], self._group_by(tokens[i + 1 :], token)
        return tokens, None

    def _group_by(self, tokens: list[Token], keyword: Token) -> Column:
        if not tokens:
            raise _SyntaxError(keyword.start, "GROUP BY")
        for token in tokens:
            if token.token_type == TokenType.ORDER_BY:
                raise invalid_query(f"{_UNSUPPORTED}: 'ORDER BY' clause")
            if token.token_type == TokenType.LIMIT:
                raise invalid_query(f"{_UNSUPPORTED}: 'LIMIT' clause")
            if token.token_type == TokenType.COMMA:
                raise invalid_query(f"{_UNSUPPORTED}: 'GROUP BY' clause supports only a single field")
        if tokens[0].token_type != TokenType.IDENTIFIER or len(tokens) > 1:
            wrong = tokens[min(len(tokens) - 1, tokens[0].token_type == TokenType.IDENTIFIER)]
            raise _SyntaxError(wrong.start, wrong.text)
        column = self._resolve(tokens[0].text)
        if column.field not in _GROUPABLE:
            raise invalid_query(
                f"{_UNSUPPORTED}: 'GROUP BY' clause is not supported for search attribute {column.name}"
            )
        return column

    def _resolve(self, name: str) -> Column:
        column = resolve(name, self._custom)
        if column is None:
            raise invalid_query(f"{_INVALID}: column name '{name}' is not a valid search attribute")
        if column.field == attributes.NAMESPACE_DIVISION:
            self.names_division = True
        return column

    def _condition(self, node: exp.Expr) -> Expr:
        if isinstance(node, exp.Paren):
            return self._condition(node.this)
        if isinstance(node, exp.Not):
            return Not(self._condition(node.this))
        if isinstance(node, exp.And):
            return And(tuple(self._condition(part) for part in _chain(node, exp.And)))
        if isinstance(node, exp.Or):
            return Or(tuple(self._condition(part) for part in _chain(node, exp.Or)))
        operator = _OPERATORS.get(type(node))
        if operator is not None:
            return self._comparison(node, operator)
        if isinstance(node, exp.In):
            return self._in(node)
        if isinstance(node, exp.Between):
            return self._between(node)
        if isinstance(node, exp.Is):
            return self._is(node)
        if isinstance(node, exp.StartsWith):
            return self._starts_with(node)
        if isinstance(node, exp.Like | exp.RegexpLike | exp.NullSafeEQ):
            name = {exp.Like: "LIKE", exp.RegexpLike: "REGEXP", exp.NullSafeEQ: "<=>"}[type(node)]
            raise _operator_error(self._column(node.this), name)
        if isinstance(node, exp.Column):
            raise invalid_query(f"{_INVALID}: incomplete expression: {_name(node)}")
        raise invalid_query(f"{_INVALID}: not a condition: {_shown(node)}")

    def _column(self, node: exp.Expr | None) -> Column:
        if not isinstance(node, exp.Column):
            raise invalid_query(f"{_INVALID}: must be a column name but was {_shown(node)}")
        return self._resolve(_name(node))

    def _comparison(self, node: exp.Expr, operator: str) -> Expr:
        column = self._column(node.this)
        value = node.args["expression"]
        if column.type == TEXT:
            if operator not in ("=", "!="):
                raise _operator_error(column, operator)
            words = attributes.tokenize(str(self._value(column, value)))
            if not words:
                raise invalid_query(
                    f"{_INVALID}: unexpected value for Text type search attribute {column.name} (no tokens found)"
                )
            found = Has(column, tuple(words))
            return found if operator == "=" else Not(found)
        if column.type == KEYWORD_LIST:
            if operator not in ("=", "!="):
                raise _operator_error(column, operator)
            found = Has(column, (str(self._value(column, value)),))
            return found if operator == "=" else Not(found)
        return Comparison(column, operator, self._value(column, value))

    def _in(self, node: exp.In) -> Expr:
        column = self._column(node.this)
        if column.type == TEXT:
            raise _operator_error(column, "IN")
        items: list[exp.Expr] = node.expressions
        if not items:
            raise invalid_query(f"{_MALFORMED}: IN takes a list of values in parentheses, for '{column.name}'")
        values = tuple(dict.fromkeys(self._value(column, item) for item in items))
        if column.type == KEYWORD_LIST:
            return Has(column, tuple(str(value) for value in values))
        return In(column, values)

    def _between(self, node: exp.Between) -> Expr:
        column = self._column(node.this)
        if column.type not in (DATETIME, DOUBLE, INT, KEYWORD):
            raise invalid_query(
                f"{_INVALID}: cannot do range condition on search attribute '{column.name}' of type "
                f"{TYPE_NAMES[column.type]}"
            )
        return Between(column, self._value(column, node.args["low"]), self._value(column, node.args["high"]))

    def _is(self, node: exp.Is) -> Expr:
        column = self._column(node.this)
        if not isinstance(node.expression, exp.Null):
            raise invalid_query(f"{_INVALID}: 'IS' operator can only be used as 'IS NULL' or 'IS NOT NULL'")
        test = IsNull(column)
        return Not(test) if node.args.get("negate") else test

    def _starts_with(self, node: exp.StartsWith) -> Expr:
        column = self._column(node.this)
        if column.type != KEYWORD or column.field == "ExecutionStatus":
            raise _operator_error(column, "STARTS_WITH")
        return StartsWith(column, str(self._value(column, node.expression)))

    def _value(self, column: Column, node: exp.Expr | None) -> Scalar:
        """The literal as the column's type. Raises ServiceError that names both."""
        value = _literal(node)
        if value is None:
            if isinstance(node, exp.Column):
                raise invalid_query(
                    f"{_UNSUPPORTED}: column name on the right side of comparison expression "
                    f'(did you forget to quote "{_name(node)}"?)'
                )
            raise invalid_query(f"{_INVALID}: unexpected value for search attribute {column.name}: {_shown(node)}")
        if column.field == "ExecutionStatus":
            return _status(value)
        if column.field == "ExecutionDuration":
            return _duration(value)
        kind = column.type
        if kind in (KEYWORD, KEYWORD_LIST, TEXT):
            if isinstance(value, str):
                return value
        elif kind == BOOL:
            if isinstance(value, bool):
                return value
        elif kind in (INT, DOUBLE):
            if not isinstance(value, str | bool):
                return value
        elif kind == DATETIME:
            if isinstance(value, str):
                try:
                    return attributes.parse_datetime(value)
                except ValueError:
                    raise invalid_query(f"{_INVALID}: unable to parse datetime '{value}'") from None
            if type(value) is int:
                return value
        shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
        raise invalid_query(
            f"{_INVALID}: invalid value type for search attribute {column.name} of type {TYPE_NAMES[kind]}: "
            f"{shown} (type: {_type_name(value)})"
        )


def _check(tokens: list[Token], query: str) -> None:
    """Refuses what must not reach the parser, which recurses: deep nesting, calls, tokens that no filter has. Words
    that are not ours become names, so that the parser finds no keyword in them."""
    if len(tokens) > MAX_TOKENS:
        raise invalid_query(f"the filter has {len(tokens)} words and signs, more than {MAX_TOKENS}")
    level = 0
    negations = 0
    opened: list[int] = []
    previous: Token | None = None
    for token in tokens:
        kind = token.token_type
        if kind not in _TOKENS:
            raise _SyntaxError(token.start, query[token.start : token.end + 1])
        if kind == TokenType.VAR:
            token.token_type = kind = TokenType.IDENTIFIER
        if previous is not None and previous.token_type == TokenType.DASH and kind != TokenType.NUMBER:
            raise _SyntaxError(previous.start, "-")
        if kind == TokenType.L_PAREN:
            if previous is not None and previous.token_type == TokenType.IDENTIFIER:
                raise invalid_query(
                    f"{_UNSUPPORTED}: function expression '{previous.text}' at position {previous.start + 1}"
                )
            opened.append(negations)
            level += 1 + negations
            negations = 0
        elif kind == TokenType.R_PAREN:
            if not opened:
                raise _SyntaxError(token.start, ")")
            level -= 1 + opened.pop()
            negations = 0
        elif kind == TokenType.NOT:
            negations += 1
        else:
            negations = 0
        if level + negations > MAX_DEPTH:
            raise invalid_query(f"nested more than {MAX_DEPTH} levels deep at position {token.start + 1}")
        previous = token
    if previous is not None and previous.token_type == TokenType.DASH:
        raise _SyntaxError(previous.start, "-")


def _chain(node: exp.Expr, kind: type[exp.Expr]) -> list[exp.Expr]:
    """The operands of a AND b AND c …, which the parser nests to the left, without recursion."""
    parts: list[exp.Expr] = []
    while isinstance(node, kind):
        parts.append(node.args["expression"])
        node = node.this
    parts.append(node)
    parts.reverse()
    return parts


def _literal(node: exp.Expr | None) -> Scalar | None:
    """None for anything that is not a value of its own."""
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    negative = isinstance(node, exp.Neg)
    inner = node.this if negative else node
    if not isinstance(inner, exp.Literal):
        return None
    text = str(inner.this)
    if inner.is_string:
        return None if negative else text
    number: int | float
    try:
        number = int(text) if text.isdecimal() and len(text) < 20 else float(text)
    except ValueError:
        return None
    if negative:
        number = -number
    if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
        number = float(number)
    return number if isinstance(number, int) or math.isfinite(number) else None


def _status(value: Scalar) -> int:
    if isinstance(value, str):
        number = attributes.STATUS_NUMBERS.get(value)
        if number is None:
            raise invalid_query(f"{_INVALID}: invalid ExecutionStatus value '{value}'")
        return number
    if type(value) is int:
        if value not in attributes.STATUS_NAMES:
            raise invalid_query(f"{_INVALID}: invalid ExecutionStatus value {value}")
        return value
    raise invalid_query(f"{_INVALID}: unexpected value type {_type_name(value)} for search attribute ExecutionStatus")


def _duration(value: Scalar) -> int:
    """Nanoseconds of a number of them, "1h30m", "2d" or "01:30:00"."""
    if type(value) is int:
        return value
    if not isinstance(value, str):
        raise invalid_query(
            f"{_INVALID}: unexpected value type {_type_name(value)} for search attribute ExecutionDuration"
        )
    sign = -1 if value.startswith("-") else 1
    text = value.removeprefix("-").removeprefix("+")
    nanoseconds: int | None = None
    if text.isdecimal() and text.isascii() and len(text) < 20:
        nanoseconds = int(text)
    elif text.count(":") == 2:
        parts = text.split(":")
        if all(part.isdecimal() and len(part) < 8 for part in parts):
            hours, minutes, seconds = map(int, parts)
            if minutes < 60 and seconds < 60 and sign > 0:
                nanoseconds = hours * HOUR + minutes * MINUTE + seconds * SECOND
    else:
        try:
            nanoseconds = parse_duration(text)
        except (ConfigError, OverflowError):
            pass
    if nanoseconds is None or nanoseconds >= 1 << 63:
        raise invalid_query(f"{_INVALID}: invalid duration value for search attribute ExecutionDuration: {value}")
    return sign * nanoseconds


def _operator_error(column: Column, operator: str) -> Exception:
    return invalid_query(
        f"{_UNSUPPORTED}: operator '{operator}' not supported for {TYPE_NAMES[column.type]} type search attribute "
        f"'{column.name}'"
    )


def _name(node: exp.Column) -> str:
    return ".".join(part.name for part in node.parts)


def _shown(node: exp.Expr | None) -> str:
    """A piece of a filter, for a message; short, whatever the user wrote."""
    value = _literal(node)
    if value is not None:
        text = f"'{value}'" if isinstance(value, str) else str(value)
    elif isinstance(node, exp.Column):
        text = f"'{_name(node)}'"
    else:
        text = type(node).__name__.lower() if node is not None else "nothing"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _type_name(value: Scalar) -> str:
    if isinstance(value, bool):
        return "bool"
    return {str: "string", int: "int64", float: "float64"}[type(value)]
