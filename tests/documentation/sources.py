"""The files of the project as a reader sees them: no environments, caches or build products."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = {"__pycache__", "build", "dist", "node_modules"}


def project_files(*suffixes: str) -> list[Path]:
    """Every file of the project with one of ``suffixes`` (all files without any), sorted."""
    return sorted(path for path in _walk(ROOT) if not suffixes or path.suffix in suffixes)


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in PRODUCTS and (not path.name.startswith(".") or path.name == ".ci"):
                yield from _walk(path)
        else:
            yield path


def relative(path: Path) -> str:
    """Return ``path`` as a reader names it, from the root of the project."""
    return path.relative_to(ROOT).as_posix()
