"""The grader's side of the wall: start the process that runs students' code, call functions in it, and outlive it.

`Sandbox` holds one fork server (`child.py`); `Session` is one submission in it: a child process that is replaced when it
dies. Arguments go over pickled, with a `torch.Generator` as its state, which comes back after the call; results come back as
JSON and raw bytes (`wire.py`) and are never unpickled.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import natgrad_lab
from natgrad_lab.classroom import wire
from natgrad_lab.classroom.child import START, STOP
from natgrad_lab.classroom.session import generators
from natgrad_lab.course.diagnose import Mistake
from natgrad_lab.course.mistakes import mistakes
from natgrad_lab.environment import checkout

PACKAGE = Path(natgrad_lab.__file__).resolve().parent
MOST_PRINTED = 2000  # characters kept of what a submission prints
START_SECONDS = 120  # for the server to load torch


class Sandbox:
    """A warm process that forks for each submission.

    Args:
        hidden: folders that students' code must not read, beside the answers, the tests and the history of this package.
        timeout: seconds that an exercise of one submission may take, in all.
        memory: MB that a submission may take beyond torch itself.
        namespaces: None: where the kernel allows them; True: or fail; False: audit hook and limits only.
    Raises: OSError where there is no fork (Windows), or where namespaces are demanded and refused.
    """

    def __init__(self, hidden=(), *, timeout: float | int = 20.0, memory: int = 1024, namespaces: bool | None = None):
        """Nothing is started before the first submission."""
        if os.name != "posix":
            raise OSError("Grading needs Linux or macOS (fork and resource limits). On Windows use WSL or a container.")
        if not timeout > 0 or not memory > 0:
            raise ValueError(f"timeout and memory must be positive; got {timeout} seconds and {memory} MB.")
        root = checkout()
        own = [PACKAGE / "course" / "exercises", *([root / ".git", root / "tests"] if root else [])]
        for folder in map(Path, hidden):
            if any(place.is_relative_to(folder.resolve()) for place in (PACKAGE, Path(sys.prefix).resolve())):
                raise ValueError(f"{str(folder)!r} holds Python or this package. Put submissions into a folder of their own.")
        self.hidden = [str(Path(folder).resolve()) for folder in [*own, *hidden] if Path(folder).is_dir()]
        self.timeout, self.memory, self.namespaces = timeout, memory, namespaces
        self.isolation, self._process, self._control, self._work = "", None, None, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start(self) -> None:
        """Start the server, if it is not there; `isolation` says then what it is."""
        if self._process is None or self._process.poll() is not None:
            self._start()

    def open(self, files: dict[str, list[str]], names: list[str]) -> "Session":
        """A session with the code cells of a submission (path -> cells), in which these functions are looked for."""
        return Session(self, files, names)

    def close(self) -> None:
        """End the server and everything under it; the next submission starts a new one."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._work:
            shutil.rmtree(self._work, ignore_errors=True)
        self._process, self._control, self._work = None, None, ""

    def fork(self) -> tuple[socket.socket, int]:
        """A new child: (socket of messages, file descriptor of what it prints). The one before has to be ended."""
        self.start()
        ours, theirs = socket.socketpair()
        read_prints, write_prints = os.pipe()
        try:
            socket.send_fds(self._control, [START], [theirs.fileno(), write_prints])
            self._reply()
        finally:
            theirs.close()
            os.close(write_prints)
        return ours, read_prints

    def end(self) -> int | None:
        """Kill the child and all it started: its exit code (negative: a signal), None if it was alive."""
        if self._control is None:
            return None
        try:
            self._control.sendall(STOP)
            return self._reply()["ended"]
        except (OSError, RuntimeError):
            self.close()
            return None

    def _start(self) -> None:
        self.close()
        for namespaces in [True, False] if self.namespaces is None else [self.namespaces]:
            refused = self._try(namespaces)
            if not refused:
                own = "own network, process and file namespaces, read-only files"
                self.isolation = f"{own}, audit hook, limits" if namespaces else "audit hook and limits; no namespaces here"
                return
            self.close()
        raise OSError(f"the process for students' code did not start: {refused}")

    def _try(self, namespaces: bool) -> str:
        """Start the server; "" or why it refused."""
        self._control, theirs = socket.socketpair()
        self._work = tempfile.mkdtemp(prefix="natgrad-grade-")
        config = {
            "control": theirs.fileno(), "namespaces": namespaces, "hidden": self.hidden, "work": self._work,
            "memory": self.memory, "cpu": int(60 * self.timeout) + 60,
        }  # fmt: skip
        search = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "natgrad_lab.classroom.child", json.dumps(config)],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd=self._work, start_new_session=True,
            env={**kept, **one, "PYTHONPATH": search, "HOME": self._work, "TMPDIR": self._work, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        theirs.close()
        try:
            return self._reply(START_SECONDS).get("refused", "")
        except RuntimeError as error:
            return str(error)

    def _reply(self, seconds: float | int = 30) -> dict:
        self._control.settimeout(seconds)
        line = b""
        while not line.endswith(b"\n"):
            try:
                part = self._control.recv(4096)
            except TimeoutError:
                part = b""
            if not part:
                raise RuntimeError("the process for students' code does not answer")
            line += part
        return json.loads(line)


class Session:
    """One submission. After `load`, `found` says which functions there are; `answer(name)` calls one of them."""

    def __init__(self, sandbox: Sandbox, files: dict[str, list[str]], names: list[str]):
        """Keep the submission; `load` reads it."""
        self._sandbox, self._files, self._names = sandbox, files, names
        self._channel, self._prints, self._left = None, -1, sandbox.timeout
        self.found: dict[str, dict] = {}
        self.remarks: list[str] = []
        self.printed = ""
        self._failure: Mistake | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def load(self) -> bool:
        """Read the definitions in the child; on failure `found` is empty, a remark says why, and it returns False."""
        self.begin()
        try:
            self._revive()
        except Mistake as mistake:
            self._remark(f"reading the definitions failed: {mistakes()[mistake.key]} {mistake.evidence}".strip())
            return False
        return True

    def begin(self) -> None:
        """A new exercise: its time starts anew, and a child that died in the last one is replaced."""
        self._left, self._failure = self._sandbox.timeout, None

    def answer(self, name: str) -> Callable:
        """The student's function as one to be called here; what goes wrong over there is raised as `Mistake`."""

        def call(*args, **options):
            if self._failure is not None:
                raise self._failure
            if self._channel is None:
                self._revive()
            try:
                body = wire.pickled((args, options))
            except Exception as error:
                self._remark(f"the grader cannot send an argument of {name} to another process: {error}")
                raise Mistake("raised", f"the grader cannot send an argument: {error}") from None
            header, data = self._ask({"do": "call", "name": name}, body)
            return self._result(header, data, generators((args, options)))

        return call

    def close(self) -> None:
        """Kill the child and whatever it started."""
        if self._channel is None:
            return
        self._channel.close()
        self._sandbox.end()
        self._drain()
        self._close_prints()
        self._channel = None

    def _revive(self) -> None:
        self._channel, self._prints = self._sandbox.fork()
        os.set_blocking(self._prints, False)
        header, _ = self._ask({"do": "load", "files": self._files, "names": self._names})
        try:
            loaded = header["loaded"]
            self.found = {str(name): {str(k): str(v) for k, v in state.items()} for name, state in loaded["found"].items()}
            for remark in loaded["remarks"]:
                self._remark(str(remark))
        except (KeyError, TypeError, AttributeError):
            self._fail("ended", "It wrote into the grader's channel.")

    def _result(self, header: dict, data: bytes, used: list):
        try:
            if "mistake" in header:
                key, evidence = header["mistake"]
                raise Mistake(key if key in mistakes() else "raised", str(evidence)[:500])
            for generator, state in zip(used, header["generators"], strict=True):
                generator.set_state(wire.decode(state, data))
            return wire.decode(header["result"], data)
        except (wire.BadMessage, KeyError, TypeError, ValueError, RuntimeError) as error:
            self._fail("ended", f"It wrote into the grader's channel ({type(error).__name__}).")

    def _ask(self, header: dict, body: bytes = b"") -> tuple[dict, bytes]:
        """Send, and wait for the reply; while waiting, collect what is printed and what was refused."""
        started = time.monotonic()
        deadline = started + self._left
        try:
            self._send(wire.pack(header, body), deadline)
            while True:
                header_size, body_size = wire.sizes(self._read(wire.FRAME.size, deadline))
                reply = wire.unpack(self._read(header_size, deadline))
                data = self._read(body_size, deadline)
                if "refused" not in reply:
                    return reply, data
                self._remark(f"refused: it tried to {str(reply['refused'])[:200]}")
        except wire.BadMessage as error:
            return self._fail("ended", f"It wrote into the grader's channel ({error}).")
        except TimeoutError:
            return self._fail("slow", f"No answer within {self._sandbox.timeout:g} seconds.")
        except OSError:
            return self._fail("ended", "")
        finally:
            self._left -= time.monotonic() - started

    def _fail(self, key: str, evidence: str):
        """The child is lost: every further call of this exercise says so too."""
        channel, self._channel = self._channel, None
        channel.close()
        code = self._sandbox.end()
        self._drain()
        self._close_prints()
        if key == "ended" and not evidence:
            evidence = _how_it_ended(code)
        self._failure = Mistake(key, evidence)
        raise self._failure

    def _send(self, data: bytes, deadline: float) -> None:
        self._channel.setblocking(False)
        view = memoryview(data)
        while view:
            self._wait([], [self._channel], deadline)
            view = view[self._channel.send(view) :]

    def _read(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait([self._channel], [], deadline)
            part = self._channel.recv(min(count - len(data), 1 << 20))
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)

    def _wait(self, reads: list, writes: list, deadline: float) -> None:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            prints = [self._prints] if self._prints >= 0 else []
            ready, writable, _ = select.select([*reads, *prints], writes, [], min(left, 1.0))
            if self._prints in ready and not self._drain():
                self._close_prints()
            if writable or any(item in ready for item in reads):
                return

    def _close_prints(self) -> None:
        if self._prints >= 0:
            os.close(self._prints)
            self._prints = -1

    def _drain(self) -> bool:
        """Read what was printed, keep the beginning; whether more may come."""
        try:
            part = os.read(self._prints, 1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.printed = (self.printed + part.decode("utf-8", "replace"))[:MOST_PRINTED]
        return bool(part)

    def _remark(self, words: str) -> None:
        if words not in self.remarks and len(self.remarks) < 30:
            self.remarks.append(words[:400])


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "It closed the grader's channel."
    if code >= 0:
        return f"The process ended with code {code}."
    return f"The process was ended by {signal.Signals(-code).name}."
