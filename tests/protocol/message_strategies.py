"""Hypothesis strategies for every message, read from the structs: a new message is tried without a new line here."""

import math
from typing import Any, get_args

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
SIZE_MAX = 48  # Where the schema sets no bound, or one that would only cost time.


def strategy_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of one type within its bounds."""
    match kind:
        case inspect.Metadata(inner):
            return strategy_of(inner)
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern.replace(r"\Z", ""), fullmatch=True, alphabet=st.characters(codec="ascii"))
        case inspect.StrType():
            return st.text(min_size=kind.min_length or 0, max_size=min(kind.max_length or SIZE_MAX, SIZE_MAX))
        case inspect.BytesType():
            shortest = kind.min_length or 0
            return st.binary(min_size=shortest, max_size=max(shortest, min(kind.max_length or SIZE_MAX, SIZE_MAX)))
        case inspect.IntType(ge=ge, le=le, lt=lt):
            return st.integers(
                INTEGER_MIN if ge is None else ge, INTEGER_MAX if le is None and lt is None else _top(le, lt)
            )
        case inspect.FloatType(gt=gt, ge=ge, le=le):
            low = ge if gt is None else math.nextafter(gt, math.inf)
            return st.floats(low, le, allow_nan=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType(values):
            return st.sampled_from(values)
        case inspect.UnionType(types):
            return st.one_of(*(strategy_of(one) for one in types))
        case inspect.VarTupleType(item):
            shortest = kind.min_length or 0
            return st.lists(strategy_of(item), min_size=shortest, max_size=max(shortest, 3)).map(tuple)
        case inspect.StructType(cls, fields):
            return st.builds(cls, **{field.name: strategy_of(field.type) for field in fields})
        case _:
            raise AssertionError(f"no strategy for {kind}")


def messages_of(union: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the messages of a union."""
    return st.sampled_from(classes_of(union)).flatmap(lambda one: strategy_of(inspect.type_info(one)))


def classes_of(union: Any) -> tuple[type[msgspec.Struct], ...]:
    """Return the message classes of a union, or of a single one."""
    return get_args(union) or (union,)


def _top(le: float | None, lt: float | None) -> int:
    return int(le) if le is not None else int(lt or 0) - 1
