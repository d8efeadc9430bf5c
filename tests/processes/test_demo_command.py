"""The README's first command, as it is written there."""

import json
import os
import signal
import subprocess
from pathlib import Path

import onnxruntime
import psutil
import pytest

pytestmark = pytest.mark.process

TOP = Path(__file__).resolve().parents[2]
KEYS = {
    "rounds",
    "unseen",
    "later",
    "devices_worse_than_alone_ratio",
    "bits_per_parameter_up",
    "bits_per_parameter_down",
    "bytes_keyframe",
    "agent_idle_mib",
    "agent_peak_mib",
    "model_path",
}
ARMS = {"federated", "personalized", "local", "pooled"}
ROUND_KEYS = {"round", "reports", "accuracy_unseen", "bytes_up", "bytes_down", "seconds"}


@pytest.mark.timeout(240)
def test_the_demo_ends_with_a_better_model_and_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = subprocess.run(
        ["scripts/demo", "--json", out, "--folder", tmp_path / "run"],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(out.read_text())
    assert set(figures) >= KEYS
    assert set(figures["unseen"]) == set(figures["later"]) == ARMS
    assert all(set(one) >= ROUND_KEYS for one in figures["rounds"])
    assert figures["unseen"]["federated"] > figures["unseen"]["local"] + 0.1
    assert figures["bits_per_parameter_up"] <= 0.90
    assert figures["bits_per_parameter_down"] <= 0.40
    assert figures["agent_idle_mib"] <= 45
    assert figures["agent_peak_mib"] <= 130
    assert figures["release"]["devices_running"] == figures["release"]["devices"] == 8
    session = onnxruntime.InferenceSession(figures["model_path"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "x"


@pytest.mark.timeout(90)
def test_ctrl_c_stops_every_process_that_the_demo_started(tmp_path: Path) -> None:
    command = ["scripts/demo", "--folder", str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.lstrip().startswith("1 "):  # The first round is over: everything runs.
                break
        mark = f"--state\0{tmp_path}"
        started = [process for process in psutil.process_iter() if is_ours(process, mark)]
        assert len(started) >= 9
        os.kill(demo.pid, signal.SIGINT)
        demo.communicate(timeout=30)
        assert demo.returncode == 130
    assert not [process for process in psutil.process_iter() if is_ours(process, mark)]


def is_ours(process: psutil.Process, mark: str) -> bool:
    try:
        return mark in "\0".join(process.cmdline())
    except psutil.Error:
        return False
