"""Settings files on disk: read as `configuration` says, absent ones mean defaults where they may be absent."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from federated_core.configuration import parse_toml, read_settings
from federated_core.errors import LocalMisuseError

S = TypeVar("S", bound=msgspec.Struct)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a file; LocalMisuseError names it and says what is wrong."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LocalMisuseError(f"{path}: cannot be read ({error})") from error
    return parse_toml(text, str(path))


def read_settings_file(path: Path, kind: type[S]) -> S:
    """Return the settings in ``path``, all defaults if there is no such file."""
    if not path.exists():
        return kind()
    return read_settings(read_toml(path), kind, str(path))
