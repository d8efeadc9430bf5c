from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from cloud_aggregator.model_building import build_bundle
from cloud_aggregator.recipe import load_recipe
from edge_agent.config import StoreSettings
from federated_core.configuration import read_settings
from federated_core.learning.bundle import Bundle, decode_bundle
from models.digits_mlp import build as digits_mlp
from models.spar_cnn import build as spar_cnn

MODELS = Path(__file__).resolve().parents[2] / "models"
RECIPES = {"digits_mlp": (digits_mlp.build, (64,), 10), "spar_cnn": (spar_cnn.build, (6, 192), 7)}


def bundle_of(name: str) -> Bundle:
    settings = load_recipe(MODELS / name / "plan.toml", goal=8).model
    build = RECIPES[name][0]
    built = build_bundle(build(0), name=settings.name, loss=settings.loss, fits=settings.fits, classes=settings.classes)
    return decode_bundle(built.data)


@pytest.fixture(params=sorted(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_same_seed_writes_the_same_file_and_another_does_not(name: str) -> None:
    build: Callable[[int], bytes] = RECIPES[name][0]
    assert build(3) == build(3)
    assert build(3) != build(4)


def test_a_recipe_writes_a_model_that_plain_onnxruntime_runs(name: str) -> None:
    build, shape, class_count = RECIPES[name]
    data = build(0)
    model = onnx.load_from_string(data)
    assert (model.ir_version, model.opset_import[0].version) == (9, 18)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch_size in (1, 5):
        scores = session.run(["scores"], {"x": np.ones((batch_size, *shape), np.float32)})[0]
        assert scores.shape == (batch_size, class_count)


def test_a_plan_fits_its_model(name: str) -> None:
    recipe = load_recipe(MODELS / name / "plan.toml", goal=8)
    assert len(recipe.model.classes) == RECIPES[name][2]
    assert recipe.model.name == name
    read_settings(recipe.store, StoreSettings, name)
    trainable = {spec.name for spec in bundle_of(name).description.layout.parameters if spec.role == "trainable"}
    layers = {parameter.split(".")[0] for parameter in trainable}
    assert trainable == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_the_demo_model_has_at_least_90_000_parameters_that_learn() -> None:
    layout = bundle_of("spar_cnn").description.layout
    assert 90_000 <= layout.update_size <= 110_000
    personal = {spec.name for spec in layout.parameters if spec.role == "personal"}
    assert personal == {"standardize.mean", "standardize.scale"}


def test_the_benchmark_model_is_as_large_as_flowers_task() -> None:
    assert bundle_of("digits_mlp").description.layout.update_size == 64 * 128 + 128 + 128 * 10 + 10


def test_a_recipe_has_a_card(name: str) -> None:
    card = (MODELS / name / "CARD.md").read_text()
    for heading in ("## Data", "## Use", "## Figures", "## Limits"):
        assert heading in card
