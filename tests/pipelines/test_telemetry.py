"""Nothing of ours opens a connection, or leaves a device id, that its user did not ask for."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Number of the system call `socket` by machine.
SOCKET_CALLS = {"x86_64": 41, "aarch64": 198}
# Ends the process, threads of libraries included, at the first Internet socket: a look-up needs one as well. The filter
# is a program for the kernel: pass all calls but `socket`, and that too unless its family is AF_INET or AF_INET6.
FORBID_SOCKETS = """
import ctypes, struct
rules = [(0x20, 0, 0, 0), (0x15, 0, 4, {call}), (0x20, 0, 0, 16), (0x15, 1, 0, 2), (0x15, 0, 1, 10),
         (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(program)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header) == 0
"""
PREDICT = """
import sys, time
from predictor.serving import LengthPredictor
LengthPredictor(sys.argv[1], num_threads=1).predict(["Hello"])
time.sleep(0.5)
"""


def has_filters() -> bool:
    """Whether this machine's kernel takes the filter."""
    return platform.machine() in SOCKET_CALLS and ctypes.CDLL(None).prctl(22, 2, None) == -1 and sys.platform == "linux"


def run(code: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a script with a home folder of its own, without the settings of this process, and without sockets."""
    told = ("ORT_", "HF_", "VLLM_", "DO_NOT_TRACK", "XDG_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    script = FORBID_SOCKETS.format(call=SOCKET_CALLS[platform.machine()]) + code
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**environment, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not has_filters(), reason="the kernel cannot forbid sockets")
def test_a_predictor_leaves_no_file_and_opens_no_socket(exports: dict[str, Path], tmp_path: Path) -> None:
    """A device id stood under ~/.cache/Microsoft: onnxruntime reports home unless told not to before its import."""
    done = run(PREDICT, str(exports["fp32"]), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.skipif(not has_filters(), reason="the kernel cannot forbid sockets")
def test_a_socket_is_seen(tmp_path: Path) -> None:
    """The check above can fail."""
    assert run("import socket\nsocket.socket()", home=tmp_path).returncode != 0
    assert run("import socket\nsocket.socketpair()", home=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "module", ["predictor", "pipelines", "pipelines.served_model.loading", "predictor.sidecar.app"]
)
def test_libraries_are_told_before_they_are_imported(module: str, tmp_path: Path) -> None:
    """huggingface_hub reads its environment once."""
    code = f"import {module}, os\nassert os.environ['ORT_DISABLE_TELEMETRY'] == os.environ['DO_NOT_TRACK'] == '1'\n"
    code += "from huggingface_hub import constants\nassert constants.HF_HUB_DISABLE_TELEMETRY"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
