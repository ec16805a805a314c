"""The backend process from outside: handshake, noise, its ways to end. Real processes, no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from animate3d_addon import backend_process
from animate3d_addon.backend_process import BackendProcess, command, find_python
from backend.protocol import PROTOCOL_VERSION, UserError, encode_message

ROOT = Path(__file__).resolve().parent.parent


def script(code: str) -> list[str]:
    """A process that stands in for the backend."""
    return [sys.executable, "-c", code]


def hello(version: int = PROTOCOL_VERSION) -> str:
    return f"print({encode_message('hello', protocol=version)!r}, end='', flush=True)\n"


def wait_gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def started(tmp_path):
    """Starts processes and ends them after the test."""
    processes = []

    def start(arguments: list[str] | None = None) -> BackendProcess:
        processes.append(BackendProcess(arguments or command(sys.executable), tmp_path / "backend.log"))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def test_handshake_then_quit(started):
    process = started()
    answer = process.wait_hello(60)
    assert answer["protocol"] == PROTOCOL_VERSION
    assert answer["device"] in ("cpu", "cuda", "mps") and answer["free_memory_gb"] > 0
    assert answer["versions"]["torch"]
    process.send("quit")
    assert wait_gone(process.pid)
    with pytest.raises(UserError, match="stopped unexpectedly"):
        while True:
            process.wait(1.0)


def test_ends_when_stdin_ends_and_close_is_quick(started):
    process = started()
    process.wait_hello(60)
    began = time.monotonic()
    process.close()
    assert not process.alive and time.monotonic() - began < 3.0


def test_unknown_lines_are_answered_not_fatal(started):
    process = started()
    process.wait_hello(60)
    process._process.stdin.write(b'rubbish\n{"type": "fly"}\n[1]\n\n')
    process._process.stdin.flush()
    for _ in range(3):
        message = process.wait(30)
        assert message["type"] == "error" and message["kind"] == "bad_input" and "Traceback" not in message["message"]
    process.send("memory")
    assert process.wait(30)["peak_gb"] > 0.1


def test_noise_of_libraries_stays_out_of_the_messages(tmp_path):
    code = """
import os, sys
sys.path.insert(0, {root!r})
from backend.channel import Outbox
outbox = Outbox()
print("python noise")
os.write(1, b"raw noise without an end")
os.system("echo noise of a child")
outbox.send("hello", protocol=1)
print("more", flush=True)
outbox.send("done", text="\\u00e9\\n")
"""
    run = subprocess.run(script(code.format(root=str(ROOT))), capture_output=True, timeout=30)
    lines = run.stdout.decode().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["hello", "done"]
    assert b"raw noise" in run.stderr and b"noise of a child" in run.stderr and b"python noise" in run.stderr


def test_lines_that_are_no_messages_are_skipped(started):
    code = f"print('noise'); print('{{\"a\": 1}}'); print('[' * 100000)\n{hello()}import sys; sys.stdin.read()"
    assert started(script(code)).wait_hello(30)["protocol"] == PROTOCOL_VERSION


def test_other_protocol_is_refused_in_a_sentence(started):
    process = started(script(f"{hello(99)}import sys; sys.stdin.read()"))
    with pytest.raises(UserError, match=r"another version \(protocol 99") as error:
        process.wait_hello(30)
    assert error.value.hint and not process.alive


def test_death_before_the_handshake_names_the_log(started):
    process = started(script("import sys; print('it broke', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(UserError, match=r"stopped unexpectedly \(exit code 3\)") as error:
        process.wait_hello(30)
    assert error.value.kind == "internal" and str(process.log) in error.value.hint
    assert "it broke" in process.log.read_text()


def test_send_to_a_dead_process_says_so(started):
    process = started(script("pass"))
    assert wait_gone(process.pid)
    with pytest.raises(UserError, match="stopped unexpectedly"):
        for _ in range(3):
            process.send("memory")
            time.sleep(0.1)


def test_silence_is_reported(started):
    process = started(script("import sys; sys.stdin.read()"))
    with pytest.raises(UserError, match="does not answer"):
        process.wait_hello(0.3)
    assert not process.alive


@pytest.mark.parametrize("deaf", ["pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_cancel_grows_impatient(started, monkeypatch, deaf):
    monkeypatch.setattr(backend_process, "PATIENCE", 0.3)
    process = started(script(f"import signal, time; {deaf}\n{hello()}time.sleep(60)"))
    process.wait_hello(30)
    assert process.cancel() is False  # nothing runs
    process.send("run", job="x")
    assert process.cancel() is True
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        while time.monotonic() - began < 20:
            process.poll()
            time.sleep(0.02)
    assert error.value.kind == "cancelled" and time.monotonic() - began < 5
    assert not process.alive


def test_backend_ends_with_the_process_that_started_it(tmp_path):
    """The starter is killed, as Blender may be: no chance to say goodbye."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from animate3d_addon.backend_process import BackendProcess, command
process = BackendProcess(command(sys.executable), Path({str(tmp_path / "log")!r}))
process.wait_hello(60)
print(process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(script(code), stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    assert os.path.exists(f"/proc/{pid}")
    parent.kill()
    parent.wait()
    assert wait_gone(pid)


def test_which_python(monkeypatch, tmp_path):
    monkeypatch.delenv("ANIMATE3D_PYTHON", raising=False)
    assert find_python(in_blender=False) == sys.executable
    with pytest.raises(UserError, match="not set up"):
        find_python(in_blender=True)
    monkeypatch.setenv("ANIMATE3D_PYTHON", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no file"):
        find_python(in_blender=True)
    monkeypatch.setenv("ANIMATE3D_PYTHON", sys.executable)
    assert find_python(in_blender=True) == sys.executable


def test_python_that_can_not_start(tmp_path):
    with pytest.raises(UserError, match="can't be started"):
        BackendProcess([str(tmp_path / "python")], tmp_path / "log")


def test_environment_of_blender_does_not_leak(monkeypatch, tmp_path):
    """PYTHONHOME of an embedding Python would break the other one; a `backend` in the log's folder must not be run."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "__main__.py").write_text("raise SystemExit('hijacked')")
    process = BackendProcess(command(sys.executable), tmp_path / "backend.log")
    try:
        assert process.wait_hello(60)["protocol"] == PROTOCOL_VERSION
    finally:
        process.close()
