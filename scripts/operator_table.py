"""Write the table of operators into docs/training-compiler.md, or print it: what trains, what passes, which engine."""

from pathlib import Path
from typing import Final

from federated_core.engines.numpy_operators import NUMPY_OPERATORS
from federated_core.learning.gradients import GRADIENTS, NO_GRADIENT
from federated_core.learning.graph import OPERATORS

PAGE: Final = Path(__file__).parent.parent / "docs" / "training-compiler.md"
OPENING: Final = "<!-- operators -->\n"
CLOSING: Final = "<!-- /operators -->"


def operator_table() -> str:
    """Return the table in Markdown: one row per operator that a device runs."""
    rows = ["| Operator | Gradient | numpy engine |", "|---|---|---|"]
    for name in sorted(OPERATORS):
        if name in GRADIENTS:
            gradient = f"`{GRADIENTS[name].__module__.rsplit('.', 1)[-1]}.{GRADIENTS[name].__name__}`"
        else:
            gradient = "stops here" if name in NO_GRADIENT else "refused"
        runs = "yes" if name in NUMPY_OPERATORS or name == "Scan" else "no"
        rows.append(f"| {name} | {gradient} | {runs} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """Return the page with its table as the code has it now."""
    before, _, rest = page.partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    return before + OPENING + operator_table() + CLOSING + after


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
