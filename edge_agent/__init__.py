"""The edge agent: learns on a device while the device rests.

Applications on the device use what it learned through `LocalModel`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.local_model import LocalModel

__all__ = ["LocalModel"]


def __getattr__(name: str) -> Any:
    """Import `LocalModel` when it is asked for: the agent itself must not load mathematics."""
    if name == "LocalModel":
        from edge_agent.local_model import LocalModel

        return LocalModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
