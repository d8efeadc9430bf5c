"""One side of ``scripts/bench train`` in a process of its own: opens a model, then times steps when asked.

It is told its work on the command line, answers ``ready`` with JSON, and each line on its standard input is a number of
steps to take. Torch is imported by the sides that need it only, since memory is measured too.
"""

import io
import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
RATE = 0.01
ADDRESS_SPACE_BYTES = 16 * 2**30


def main(role: str, name: str, folder: Path) -> None:
    """Play ``role`` for the net ``name``."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    started_s = time.perf_counter()
    step = {"export": export, "fallow": fallow, "torch": pytorch}[role](name, folder)
    answer({"open_s": time.perf_counter() - started_s})
    if step is None:
        return
    step()
    for line in sys.stdin:
        durations_s = []
        for _ in range(int(line)):
            before_s = time.perf_counter()
            step()
            durations_s.append(time.perf_counter() - before_s)
        answer({"step_s": statistics.median(durations_s), "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """Return the most memory that this program held; rusage would count what its parent held before the exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def answer(values: dict[str, float]) -> None:
    """Tell the other end."""
    print(json.dumps(values), flush=True)


def export(name: str, folder: Path) -> None:
    """Write the net as a bundle with its parameters and a batch, for the side that has no torch."""
    import torch

    from cloud_aggregator.model_building import build_bundle
    from tests.conformance.torch_models import NETS

    torch.manual_seed(5)
    net, target = NETS[name].make().eval(), io.BytesIO()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, *NETS[name].shape)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.from_numpy(x),), target, input_names=["x"], output_names=["y"], opset_version=17, dynamo=False,
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )  # fmt: skip
    built = build_bundle(target.getvalue(), name="net", loss="softmax-cross-entropy")
    (folder / "bundle").write_bytes(built.data)
    tensors: dict[str, Any] = built.tensors  # What numpy's own signature mistakes for an option.
    np.savez(folder / "tensors.npz", **tensors)
    np.savez(folder / "batch.npz", x=x, label=rng.integers(0, NETS[name].class_count, BATCH))


def fallow(name: str, folder: Path) -> Callable[[], Any]:  # noqa: ARG001 - one signature for all.
    """Open the bundle on stock onnxruntime."""
    from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine
    from federated_core.learning.bundle import decode_bundle

    bundle = decode_bundle((folder / "bundle").read_bytes())
    batch = np.load(folder / "batch.npz")
    x, label = batch["x"], batch["label"]
    started_s = time.perf_counter()
    session = OnnxruntimeEngine().open_training(bundle)
    answer({"session_s": time.perf_counter() - started_s})
    session.load(dict(np.load(folder / "tensors.npz")))
    return lambda: session.step({"x": x}, label, RATE)


def pytorch(name: str, folder: Path) -> Callable[[], Any]:
    """Open the same net in PyTorch, eager, with its own SGD."""
    import torch

    from tests.conformance.torch_models import NETS

    torch.set_num_threads(1)
    torch.manual_seed(5)
    net = NETS[name].make().eval()
    batch = np.load(folder / "batch.npz")
    x, label = torch.from_numpy(batch["x"]), torch.from_numpy(batch["label"])
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    answer({"session_s": 0.0})

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), label).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
