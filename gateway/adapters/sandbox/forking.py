"""The nursery's own side: a process that has the libraries loaded, and forks one child a version.

It looks at no version itself, opens no session and has one thread, so that forking it is safe.
Importing the libraries takes it most of a second, a fork twenty milliseconds.
"""

import os
import select
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import numpy.ma
import numpy.random
import onnx

from gateway.adapters.onnx.runtime import ort
from gateway.adapters.sandbox.confining import confine, follow
from gateway.adapters.sandbox.examining import examine
from gateway.adapters.sandbox.measuring import Memory
from gateway.adapters.sandbox.wire import HEAD, READY, Confined, Ended, Errand, Told

VERSIONS: Final = {"onnx": onnx.__version__, "onnxruntime": ort.__version__}
LOADED: Final = (numpy.ma, numpy.random)
"""What children would otherwise import, each for itself, from files it may no longer open."""
LOOK_S: Final = 0.005
"""How often it is looked whether the child still lives."""


def attend(control: socket.socket) -> None:
    """Carry out one errand after another until the other side has hung up.

    Args:
        control: frames with an `Errand` come in, each with the descriptor that the child tells on;
            a frame with an `Ended` goes out when the child is gone and waited for.
    """
    _send(control, READY)
    while (received := _receive(control)) is not None:
        frame, tell = received
        errand = msgspec.json.decode(frame, type=Errand)
        folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
        try:
            ended = _watch(_fork(control, errand, tell, folder), control, errand.time_s)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _send(control, msgspec.json.encode(ended))


def _fork(control: socket.socket, errand: Errand, tell: int, folder: Path) -> int:
    """The child's process id. The descriptor is the child's alone afterwards."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_child(control, errand, tell, folder, parent)
    os.close(tell)
    return pid


def _become_child(
    control: socket.socket, errand: Errand, tell: int, folder: Path, parent: int
) -> NoReturn:
    """Examine the version and be gone: nothing is cleaned up, as nothing is kept."""
    code = 1
    try:
        follow(parent)
        control.close()
        os.chdir(folder)
        memory = Memory()

        def say(told: Told) -> None:
            line = memoryview(msgspec.json.encode(told) + b"\n")
            while line:
                line = line[os.write(tell, line) :]

        say(Confined(VERSIONS | confine(errand)))
        examine(errand, say, memory)
        code = 0
    finally:
        os._exit(code)


def _watch(pid: int, control: socket.socket, time_s: float) -> Ended:
    """Wait for the child's end, and bring it about when time is up or the other side hangs up."""
    deadline = time.monotonic() + time_s
    late = False
    killed = False
    # Not reaped before its group is ended: until then nobody else can have its number.
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        late = late or time.monotonic() > deadline
        if (late or select.select([control], (), (), LOOK_S)[0]) and not killed:
            killed = True
            os.kill(pid, signal.SIGKILL)
        if killed:
            time.sleep(LOOK_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code=max(code, 0), signal=max(-code, 0), late=late)


def _send(control: socket.socket, frame: bytes) -> None:
    control.sendall(HEAD.pack(len(frame)) + frame)


def _receive(control: socket.socket) -> tuple[bytes, int] | None:
    """The next frame and the descriptor that came with it; None when there will be none."""
    head, descriptors, _, _ = socket.recv_fds(control, HEAD.size, 1, socket.MSG_WAITALL)
    if len(head) < HEAD.size or not descriptors:
        return None
    left = HEAD.unpack(head)[0]
    parts = []
    while left:
        part = control.recv(min(left, 1 << 20))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts), descriptors[0]
