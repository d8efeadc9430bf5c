"""Operators of the numpy engine, one function each, by ONNX name."""

from typing import Final

from federated_core.engines.numpy_operators import elementwise, linear, reductions, shaping
from federated_core.engines.numpy_operators.operator import Operators

NUMPY_OPERATORS: Final[Operators] = {
    **elementwise.OPERATORS,
    **linear.OPERATORS,
    **reductions.OPERATORS,
    **shaping.OPERATORS,
}
"""Every operator that the numpy engine runs, apart from Scan, which is the engine's own."""
