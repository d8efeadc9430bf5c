import contextlib
import functools
import struct
import zlib
from typing import Any, Literal, cast

import msgspec
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloud_aggregator.model_building import BuiltBundle, build_bundle, write_parameters
from cloud_aggregator.model_weights import weights
from federated_core.errors import LocalMisuseError, RemoteProtocolError, UntrainableModelError
from federated_core.learning.bundle import Bundle, Fit, decode_bundle, digests_of, encode_bundle
from federated_core.learning.graph import Graph, Value, encode_graph
from federated_core.learning.onnx_graph import emit_onnx, import_onnx
from federated_core.learning.standardization import fit_personal
from federated_core.learning.step_interface import Optimizer
from tests.learning.central_differences import run_onnxruntime
from tests.learning.small_models import gesture_model, perceptron

FITS = (
    Fit("standardize.mean", "mean", "x", (0, 2)),
    Fit("standardize.scale", "inverse-standard-deviation", "x", (0, 2)),
)


@functools.cache
def built() -> BuiltBundle:
    return build_bundle(
        gesture_model(), name="gestures", loss="softmax-cross-entropy", fits=FITS, classes=("a", "b", "c", "d", "e")
    )


def bundle() -> Bundle:
    return decode_bundle(built().data)


def test_the_same_model_and_choices_give_the_same_bytes() -> None:
    again = build_bundle(
        gesture_model(), name="gestures", loss="softmax-cross-entropy", fits=FITS, classes=("a", "b", "c", "d", "e")
    )
    assert again.data == built().data
    assert encode_bundle(bundle()) == built().data


def test_roles_say_who_may_change_a_parameter() -> None:
    roles = {spec.name: spec.role for spec in bundle().description.layout.parameters}
    assert roles == {
        "standardize.mean": "personal",
        "standardize.scale": "personal",
        "conv1.weight": "trainable",
        "conv1.bias": "trainable",
        "conv2.weight": "trainable",
        "fc.weight": "trainable",
        "fc.bias": "trainable",
    }
    assert bundle().description.trained == ("conv1.weight", "conv1.bias", "conv2.weight", "fc.weight", "fc.bias")


def test_settings_in_front_of_the_first_weight_are_not_trained() -> None:
    assert weights(import_onnx(gesture_model())) == [
        "conv1.weight",
        "conv1.bias",
        "conv2.weight",
        "fc.weight",
        "fc.bias",
    ]


def test_biases_of_plain_products_are_weights() -> None:
    assert weights(import_onnx(perceptron())) == ["w1", "b1", "w2", "b2"]


def test_what_is_not_trained_stays_in_the_graph() -> None:
    head = decode_bundle(
        build_bundle(gesture_model(), name="head", loss="softmax-cross-entropy", trainable=["fc.*"]).data
    )
    assert [spec.name for spec in head.description.layout.parameters] == ["fc.weight", "fc.bias"]
    assert "conv1.weight" in head.graph("train").constants


def test_a_personal_head_is_trained_and_stays_at_home() -> None:
    own = decode_bundle(
        build_bundle(gesture_model(), name="own", loss="softmax-cross-entropy", personal=["fc.*"]).data
    ).description
    roles = {spec.name: spec.role for spec in own.layout.parameters}
    assert roles["fc.weight"] == "personal"
    assert "fc.weight" in own.trained
    assert own.layout.update_size < own.layout.size


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(LocalMisuseError, match="fd"):
        build_bundle(gesture_model(), name="head", loss="softmax-cross-entropy", trainable=["fd.*"])


def test_a_fit_of_nothing_is_an_error() -> None:
    with pytest.raises(UntrainableModelError, match="'mean'"):
        build_bundle(gesture_model(), name="g", loss="softmax-cross-entropy", fits=[Fit("mean", "mean", "x", (0,))])


@pytest.mark.parametrize("name", ["infer", "train", "evaluate"])
def test_the_master_form_and_the_emitted_file_give_the_same_run(name: str) -> None:
    which = cast("Literal['infer', 'train', 'evaluate']", name)
    graph = bundle().graph(which)
    assert emit_onnx(graph) == bundle().onnx(which)
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {
        **built().tensors,
        "x": rng.normal(size=(4, 3, 32)).astype(np.float32),
        "label": rng.integers(0, 5, 4),
        "learning_rate": np.array(0.1, np.float32),
    }
    session = onnxruntime.InferenceSession(bundle().onnx(which))
    read = [value.name for value in session.get_inputs()]
    emitted = session.run(None, {key: feeds[key] for key in read})
    for left, right in zip(run_onnxruntime(graph, feeds).values(), emitted, strict=True):
        assert np.array_equal(left, right)


def test_written_parameters_change_the_file_and_nothing_else() -> None:
    tensors = {name: array + 1 for name, array in built().tensors.items()}
    written = write_parameters(gesture_model(), tensors)
    assert weights(import_onnx(written)) == weights(import_onnx(gesture_model()))
    assert write_parameters(written, built().tensors) == write_parameters(gesture_model(), built().tensors)
    x = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    original = onnxruntime.InferenceSession(written).run(None, {"x": x})[0]
    assert np.array_equal(original, run_onnxruntime(bundle().graph("infer"), {"x": x, **tensors})["logits"])


def test_parameters_of_another_shape_are_not_written() -> None:
    with pytest.raises(LocalMisuseError, match=r"fc\.bias"):
        write_parameters(gesture_model(), {"fc.bias": np.zeros(6, np.float32)})


def test_a_device_standardizes_with_its_own_examples() -> None:
    x = np.random.default_rng(0).normal(loc=3.0, scale=2.0, size=(50, 3, 32)).astype(np.float32)
    fitted = fit_personal(bundle(), {"x": x})
    assert fitted["standardize.mean"].shape == (3, 1)
    standard = (x - fitted["standardize.mean"]) * fitted["standardize.scale"]
    assert np.allclose(standard.mean(axis=(0, 2)), 0, atol=1e-5)
    assert np.allclose(standard.std(axis=(0, 2)), 1, atol=1e-5)


def test_a_sensor_that_never_moves_is_left_alone() -> None:
    assert np.array_equal(
        fit_personal(bundle(), {"x": np.ones((2, 3, 32), np.float32)})["standardize.scale"], np.ones((3, 1))
    )


def test_fits_need_examples() -> None:
    with pytest.raises(LocalMisuseError, match="no examples"):
        fit_personal(bundle(), {})


def repacked(changed: Bundle) -> bytes:
    return pack(msgspec.msgpack.encode((1, changed)))


def pack(packed: bytes, claimed_bytes: int | None = None) -> bytes:
    return struct.pack("<4sQ", b"FWBD", len(packed) if claimed_bytes is None else claimed_bytes) + zlib.compress(packed)


def unpack(data: bytes) -> bytes:
    return zlib.decompress(data[12:])


def with_graph(name: str, graph: Graph) -> Bundle:
    files = {**bundle().files, name: encode_graph(graph)}
    description = msgspec.structs.replace(bundle().description, digests=digests_of(files))
    return Bundle(description, files)


def test_a_file_that_is_not_the_described_one_is_refused() -> None:
    changed = Bundle(bundle().description, {**bundle().files, "train.onnx": b"other"})
    with pytest.raises(RemoteProtocolError, match=r"train\.onnx.*digest"):
        decode_bundle(repacked(changed))


def test_a_missing_file_is_refused() -> None:
    files = {name: data for name, data in bundle().files.items() if name != "infer.onnx"}
    with pytest.raises(RemoteProtocolError, match=r"\$\.files"):
        decode_bundle(repacked(Bundle(bundle().description, files)))


def test_graphs_must_read_the_parameters_of_the_layout() -> None:
    graph = bundle().graph("train")
    more = (*graph.inputs, Value("another", "float32", (2,)))
    with pytest.raises(RemoteProtocolError, match=r"train\.graph.*inputs: expected 'another' as None"):
        decode_bundle(repacked(with_graph("train.graph", msgspec.structs.replace(graph, inputs=more))))


def test_a_step_must_update_what_the_description_says() -> None:
    graph = bundle().graph("train")
    fewer = msgspec.structs.replace(graph, outputs=graph.outputs[:-1])
    with pytest.raises(RemoteProtocolError, match=r"train\.graph.*outputs"):
        decode_bundle(repacked(with_graph("train.graph", fewer)))


def test_an_operator_that_no_device_runs_is_refused() -> None:
    graph = bundle().graph("infer")
    nodes = (msgspec.structs.replace(graph.nodes[0], op="Loop"), *graph.nodes[1:])
    with pytest.raises(RemoteProtocolError, match="Loop"):
        decode_bundle(repacked(with_graph("infer.graph", msgspec.structs.replace(graph, nodes=nodes))))


@pytest.mark.parametrize("claimed_bytes", [0, 1, 2**20 - 1, 2**20 + 1, 2**40, 2**64 - 1])
def test_a_bomb_is_refused_whatever_size_it_claims(claimed_bytes: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_bundle(pack(bytes(2**20), claimed_bytes))


def test_nothing_may_follow_a_bundle() -> None:
    with pytest.raises(RemoteProtocolError, match="a stream that is not one of"):
        decode_bundle(built().data + b"more")


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_bundle(data)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_bundle_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    packed = bytearray(unpack(built().data))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        decode_bundle(pack(bytes(packed)))


def test_an_optimizer_with_memory_keeps_it_out_of_the_layout() -> None:
    described = decode_bundle(
        build_bundle(perceptron(), name="p", loss="mean-squared-error", optimizer=Optimizer("adam", proximal=0.1)).data
    )
    assert [spec.name for spec in described.description.layout.parameters] == ["w1", "b1", "w2", "b2"]
    assert described.description.trained == ("w1", "b1", "w2", "b2")
