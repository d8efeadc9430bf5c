"""What the example store holds, as the inputs that a model declares."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import Bundle


def as_inputs(bundle: Bundle, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return stored examples under the name of the model's one input."""
    names = [value.name for value in bundle.description.inputs]
    if len(names) != 1:
        raise LocalMisuseError(f"the example store holds one input, this model has {', '.join(names)}")
    return {names[0]: x}


def zero_inputs(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Return a batch of one in the shapes that the model declares, for a device without examples."""
    return {
        value.name: np.zeros([dim if isinstance(dim, int) else 1 for dim in value.shape], value.dtype)
        for value in bundle.description.inputs
    }
