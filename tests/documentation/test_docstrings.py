"""The learning core explains itself: examples that hold, and every parameter, result, error and example told.

A one-line docstring is enough for a function of at most two parameters that raises nothing itself. The modules inside a
subpackage (one gradient rule per operator) are told by the table that they fill.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType

import pytest
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate

import federated_core.learning

MODULES = [
    module.name for module in pkgutil.walk_packages(federated_core.learning.__path__, "federated_core.learning.")
]
INTERFACES = [name for name in MODULES if name.count(".") == 2]
ONE_LINE_PARAMETERS_MAX = 2
WANTED = {
    "GL08": "a docstring",
    "PR01": "every parameter documented",
    "PR02": "no parameter that does not exist",
    "PR03": "parameters in order",
    "RT01": "a Returns section",
    "YD01": "a Yields section",
    "EX01": "an Examples section",
}


def public_functions() -> Iterator[FunctionType]:
    """Every public function that others take from the learning core (methods are told by their class)."""
    for name in INTERFACES:
        for value in vars(importlib.import_module(name)).values():
            if inspect.isfunction(value) and value.__module__ == name and not value.__name__.startswith("_"):
                yield value


def raised_names(function: FunctionType) -> set[str]:
    """Names of the exceptions that the body of ``function`` itself raises."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name) and call.func.id.endswith("Error")}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_hold(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert outcome.failed == 0


@pytest.mark.parametrize(
    "function", list(public_functions()), ids=lambda function: f"{function.__module__}.{function.__name__}"
)
def test_a_public_function_of_the_learning_core_is_documented_in_full(function: FunctionType) -> None:
    text, raised = inspect.getdoc(function) or "", raised_names(function)
    small = len(inspect.signature(function).parameters) <= ONE_LINE_PARAMETERS_MAX and not raised
    if small and text and "\n" not in text:
        return
    found = {code for code, _ in validate(f"{function.__module__}.{function.__name__}")["errors"]}
    assert [meaning for code, meaning in WANTED.items() if code in found] == [], "the docstring lacks these"
    assert raised <= {entry.type for entry in NumpyDocString(text)["Raises"]}, "the Raises section lacks these"
