"""``cloud-aggregator model``: what a person sees who makes a file trainable."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cloud_aggregator.cli import app
from cloud_aggregator.model_inspection import SIZE_UNLESS_SAID, inspect_bundle, inspect_model
from federated_core.errors import LocalMisuseError
from federated_core.learning.bundle import decode_bundle
from tests.learning.small_models import gesture_model, perceptron
from tests.learning.test_model_weights import merged_normalizations, two_rates


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gestures.onnx"
    path.write_bytes(gesture_model())
    return path


def run(*arguments: object) -> Result:
    """Run a command; whatever it raises is raised here."""
    return CliRunner().invoke(app, ["model", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"})


def test_a_bundle_is_built_from_patterns(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "gestures.bundle"
    loss = ["--loss", "softmax-cross-entropy", "--optimizer", "momentum"]
    result = run("build", file, *loss, "--trainable", "fc.*", "--personal", "conv2.*", "-o", output)
    assert "3 parameters of 287 numbers" in result.output
    description = decode_bundle(output.read_bytes()).description
    assert description.name == "gestures"
    assert description.optimizer.name == "momentum"
    assert {spec.name: spec.role for spec in description.layout.parameters} == {
        "conv2.weight": "personal",
        "fc.weight": "trainable",
        "fc.bias": "trainable",
    }


def test_the_same_command_writes_the_same_bytes(file: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        run("build", file, "--loss", "mean-squared-error", "-o", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_pattern_that_matches_nothing_lists_what_there_is(file: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalMisuseError, match=r"pattern 'head\.\*': expected conv1\.weight, .*fc\.bias"):
        run("build", file, "--loss", "mean-squared-error", "--trainable", "head.*", "-o", tmp_path / "out")


def test_a_size_must_be_a_number(file: Path) -> None:
    with pytest.raises(LocalMisuseError, match="NAME=SIZE"):
        run("inspect", file, "--fix", "batch")


def test_a_model_is_shown_with_its_parameters_operators_and_cost(file: Path) -> None:
    shown = run("inspect", file, "--size", "batch=8").output
    for part in ("conv1.weight", "8 x 3 x 5", "Conv 'conv1'", "MaxPool", "batch = 8", "training step"):
        assert part in shown


def test_a_model_as_json_says_the_same_as_its_bundle(file: Path, tmp_path: Path) -> None:
    run("build", file, "--loss", "mean-squared-error", "-o", tmp_path / "bundle")
    model, bundle = (json.loads(run("inspect", path, "--json").output) for path in (file, tmp_path / "bundle"))
    for key in ("name", "inputs", "outputs", "sizes", "operators", "inference", "step"):
        assert model[key] == bundle[key]


def test_the_cost_is_what_the_shapes_say() -> None:
    report = inspect_model(perceptron())
    assert report.inference is not None
    assert report.step is not None
    forward = SIZE_UNLESS_SAID * (4 * 6 + 6 * 3)
    backward = SIZE_UNLESS_SAID * (6 * 3 + 6 * 3 + 4 * 6)  # Of both weights and of what is between them.
    assert report.inference.multiply_add_count == forward
    assert report.step.multiply_add_count == forward + backward
    assert report.inference.parameter_bytes == 4 * (4 * 6 + 6 + 6 * 3 + 3)
    # Alive at most: the first product and the hidden layer before it is added to, and so on: two of 32 x 6 numbers.
    assert report.inference.activation_peak_bytes == 4 * SIZE_UNLESS_SAID * (6 + 6)


def test_a_frozen_body_costs_no_backward_pass() -> None:
    head, whole = (inspect_model(gesture_model(), trainable=patterns).step for patterns in (["fc.*"], None))
    assert head is not None
    assert whole is not None
    assert head.multiply_add_count < whole.multiply_add_count / 2


def test_a_merged_weight_is_shown_as_what_it_is() -> None:
    remarks = {one.name: one.remark for one in inspect_model(merged_normalizations()).parameters}
    assert remarks["norm1.bias@y"] == "untied from 'norm1.bias', with which an exporter merged it"
    assert remarks["w"] == ""


def test_a_model_that_cannot_be_trained_like_this_says_why() -> None:
    report = inspect_model(gesture_model(), loss="binary-cross-entropy", output="other")
    assert report.step is None
    assert report.problem == "the model has no output 'other'; expected one of logits"


def test_an_answered_input_is_gone() -> None:
    report = inspect_model(two_rates("rate"), fixed={"rate": 16000})
    assert [value.name for value in report.inputs] == ["x"]
    assert report.problem is None


def test_a_bundle_knows_where_its_parameters_are_read(file: Path, tmp_path: Path) -> None:
    run("build", file, "--loss", "mean-squared-error", "-o", tmp_path / "bundle")
    places = {one.name: one.place for one in inspect_bundle((tmp_path / "bundle").read_bytes()).parameters}
    assert places["fc.weight"] == "Gemm 'fc'"
