"""The process that runs students' code: it loads torch once and forks for each submission. It never holds an answer.

    python -m natgrad_lab.classroom.child '{"control": 5, ...}'

Commands come on a socket: "start" with two file descriptors (messages, prints) forks; "stop" kills and says how it ended.
"""

import array
import json
import os
import shutil
import signal
import socket
import sys
import time

from natgrad_lab.classroom import isolate

START, STOP = b"start", b"stop!"


def main(text: str) -> None:
    """Enter the namespaces if asked to, load torch, and serve until the grader hangs up."""
    config = json.loads(text)
    control = socket.socket(fileno=config["control"])
    try:
        if config["namespaces"]:
            isolate.enter_namespaces(config["hidden"], config["work"])
            inside = os.fork()
            if inside:
                control.close()
                os._exit(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]) & 255)
        isolate.die_with_parent()
        if config["namespaces"]:
            isolate.own_processes_only()
    except OSError as error:
        control.sendall(json.dumps({"refused": str(error)}).encode() + b"\n")
        raise SystemExit(1) from None
    warm_up()
    control.sendall(json.dumps({"ready": os.getpid()}).encode() + b"\n")
    serve(control, config)


def warm_up() -> None:
    """Load what answers use, so that a fork has it: torch, numpy, the library, the lessons' cards, never the exercises."""
    sys.dont_write_bytecode = True
    import torch

    import natgrad_lab.classroom.session
    import natgrad_lab.experiments  # noqa: F401
    from natgrad_lab.course.lessons import lesson_modules

    try:
        lesson_modules("cards")  # lessons use their functions: 4 seconds, behind the wall a multiple
    except ImportError:  # plotly is not everywhere
        pass
    torch.set_num_threads(1)
    torch.linalg.solve(torch.eye(2), torch.ones(2))  # LAPACK is loaded at its first use
    torch.func.vmap(torch.sin)(torch.ones(2))


def serve(control: socket.socket, config: dict) -> None:
    """Fork and kill as told."""
    child, used = 0, False
    while True:
        command, ancillary, _, _ = control.recvmsg(len(START), socket.CMSG_SPACE(2 * 4))
        if not command:
            end(child, config)
            return
        if command == START:
            files = array.array("i")
            for _, _, data in ancillary:
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
            if used:
                isolate.new_scratch(config["work"], again=True) if config["namespaces"] else empty(config["work"])
            used, child = True, os.fork()
            if child == 0:
                control.close()
                run_child(*files, config)
            for file in files:
                os.close(file)
            control.sendall(json.dumps({"started": child}).encode() + b"\n")
        else:
            status, child = end(child, config), 0
            control.sendall(json.dumps({"ended": status}).encode() + b"\n")


def empty(folder: str) -> None:
    """Remove what a submission wrote."""
    for entry in os.scandir(folder):
        shutil.rmtree(entry.path, ignore_errors=True) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def end(child: int, config: dict) -> int | None:
    """Kill the child and whatever it started; its exit code, negative for a signal, None if it was still alive."""
    if not child:
        return None
    for _ in range(50):  # it may be about to end by itself
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.002)
    for kill in (lambda: os.killpg(child, signal.SIGKILL), lambda: os.kill(child, signal.SIGKILL) if not done else None):
        try:
            kill()
        except (ProcessLookupError, PermissionError):
            pass
    if not done:
        os.waitpid(child, 0)
    if config["namespaces"] and os.getpid() == 1:
        try:
            os.kill(-1, signal.SIGKILL)  # everything else in this namespace
        except ProcessLookupError:
            pass
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
    return os.waitstatus_to_exitcode(status) if done else None


def run_child(messages: int, prints: int, config: dict) -> None:
    """In the fork: limits, then the student's code, until the grader hangs up. Never returns."""
    code = 70
    try:
        os.setsid()
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, prints), (2, prints), (3, messages)):
            os.dup2(file, number)
        os.closerange(4, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
        os.chdir(config["work"])
        if config["namespaces"]:
            isolate.drop_powers()
        else:
            isolate.die_with_parent()
        from natgrad_lab.classroom.session import serve_answers

        isolate.limit(config["memory"], config["cpu"])
        serve_answers(3, lambda tell: isolate.refuse(config["hidden"], config["work"], tell))
        code = 0
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode()[:2000])
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
