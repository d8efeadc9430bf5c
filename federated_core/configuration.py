"""Settings from a table of a file: typed, bounded, and an unknown key is answered with the nearest known one."""

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from federated_core.errors import LocalMisuseError

S = TypeVar("S", bound=msgspec.Struct)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the tables of ``text``; the error names the file ``where`` and the line."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LocalMisuseError(f"{where}: {error}") from error


def read_settings(table: Mapping[str, Any], kind: type[S], where: str) -> S:
    """Return ``table`` as a ``kind``; unknown keys, wrong types and values out of bounds raise LocalMisuseError."""
    _refuse_unknown_keys(table, kind, where)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise LocalMisuseError(f"{where}: {error}") from error


def _refuse_unknown_keys(table: Mapping[str, Any], kind: type[msgspec.Struct], where: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(fields))}"
            raise LocalMisuseError(f"{where}: unknown setting {key!r}; {hint}")
        nested = fields[key].type
        if isinstance(value, Mapping) and isinstance(nested, type) and issubclass(nested, msgspec.Struct):
            _refuse_unknown_keys(value, nested, f"{where}: {key}")
