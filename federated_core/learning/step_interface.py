"""The names by which engines and bundles know a step graph, and the settings of its optimizer.

Apart from the compiler, which a device never needs: it would cost it memory to import.
"""

from typing import Annotated, Final, Literal

import msgspec

LABEL: Final = "label"
LEARNING_RATE: Final = "learning_rate"
LOSS: Final = "loss"
LOSS_SUM: Final = "loss_sum"
CORRECT_COUNT: Final = "correct_count"
UPDATED: Final = "updated/"
SLOT: Final = "slot/"
ANCHOR: Final = "anchor/"
OptimizerName = Literal["sgd", "momentum", "adam"]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]


class Optimizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The local optimizer of a bundle; the learning rate is an input of the graph."""

    name: OptimizerName = "sgd"
    momentum: Fraction = 0.9
    """Share of the velocity that stays from step to step (momentum); Adam's first moment."""
    second_momentum: Fraction = 0.999
    """Share of the second moment that stays (Adam)."""
    epsilon: float = 1e-8
    """Added to the root of the second moment (Adam)."""
    weight_decay: float = 0.0
    """Share of a parameter added to its gradient."""
    proximal: float = 0.0
    """Pull towards the parameters that the session was opened with (FedProx's mu)."""
    clip_norm: float = 0.0
    """Largest norm of the whole gradient; 0 means no bound."""
