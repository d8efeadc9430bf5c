"""The engine of this device, opened: for the child processes and applications, never for the daemon."""

from edge_agent.adapters.engine_name import engine_name
from federated_core.engines.engine import Engine


def open_engine(thread_count: int = 1) -> Engine:
    """Open the engine that `engine_name` names; only that one is imported."""
    if engine_name() == "onnxruntime":
        from federated_core.engines.onnxruntime_engine import OnnxruntimeEngine

        return OnnxruntimeEngine(thread_count=thread_count)
    from federated_core.engines.numpy_engine import NumpyEngine

    return NumpyEngine()
