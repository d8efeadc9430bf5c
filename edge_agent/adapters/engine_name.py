"""Which engine this device has; found out without importing it."""

from importlib.util import find_spec
from typing import Literal

EngineName = Literal["onnxruntime", "numpy"]


def engine_name() -> EngineName:
    """Say which: stock onnxruntime where it is installed, numpy everywhere else."""
    return "onnxruntime" if find_spec("onnxruntime") is not None else "numpy"
