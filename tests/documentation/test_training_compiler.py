import inspect
import re

from federated_core.learning.gradients import GRADIENTS, elementwise
from federated_core.learning.graph import OPERATORS
from scripts.operator_table import PAGE, operator_table, with_table


def test_the_table_of_operators_is_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run python scripts/operator_table.py"
    assert operator_table().count("\n") == len(OPERATORS) + 2


def test_the_example_rule_is_the_one_that_runs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert inspect.getsource(elementwise.softsign) in page
    assert GRADIENTS["Softsign"] is elementwise.softsign


def test_every_module_that_the_page_names_exists() -> None:
    root = PAGE.parent.parent
    named = set(
        re.findall(r"`((?:federated_core|cloud_aggregator|scripts|tests)/[a-z_/]+(?:\.py)?/?)", PAGE.read_text("utf-8"))
    )
    assert len(named) > 6
    assert [name for name in sorted(named) if not (root / name).exists()] == []
