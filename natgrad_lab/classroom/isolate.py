"""Walls around code that nobody has read: kernel namespaces where the kernel gives them, and an audit hook everywhere.

With namespaces (Linux that lets a user make them) the student's process sees a read-only file system, an empty folder of
its own, empty folders where answers and other submissions lie, no network device, and no process but its own. Without them
Python's audit hook refuses the same by name: it stops what is written in Python, not a determined attack by machine code.
Standard library only; the namespaces are entered before torch is loaded, while there is one thread.
"""

import ctypes
import os
import platform
import resource
import signal
import sys

NEW_USER, NEW_MOUNTS, NEW_PROCESSES, NEW_NETWORK, NEW_IPC = 0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000
READ_ONLY, NO_SETUID, NO_DEVICES, PRIVATE, RECURSIVE = 1, 2, 4, 1 << 18, 1 << 14
MOUNT_SETATTR, HERE, AT_RECURSIVE = 442, -100, 0x8000
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38
SCRATCH_MB = 64


def enter_namespaces(hidden: list[str], work: str) -> None:
    """Leave for namespaces of our own, where all files are read-only and the folders `hidden` are empty.

    The caller has to fork: its child is process 1 there, and when that ends all other processes there do.
    Raises: OSError that names the step which the kernel refused.
    """
    user, group = os.getuid(), os.getgid()
    _call("unshare", NEW_USER | NEW_MOUNTS | NEW_PROCESSES | NEW_NETWORK | NEW_IPC)
    _map_ids(user, group)
    _call("mount", None, b"/", None, RECURSIVE | PRIVATE, None)
    for folder in hidden:
        if os.path.isdir(folder):
            _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", READ_ONLY | NO_SETUID | NO_DEVICES, b"size=4k,mode=0555")
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SETUID, 0, 0, 0)
    _call("syscall", MOUNT_SETATTR, HERE, b"/", AT_RECURSIVE, ctypes.byref(attributes), ctypes.c_size_t(32))
    new_scratch(work)


def new_scratch(work: str, *, again: bool = False) -> None:
    """An empty folder in memory at `work`, the only place that can be written."""
    if again:
        _call("umount2", os.fsencode(work), 2)
    options = f"size={SCRATCH_MB}m,mode=0777".encode()
    _call("mount", b"tmpfs", os.fsencode(work), b"tmpfs", NO_SETUID | NO_DEVICES, options)


def own_processes_only() -> None:
    """/proc shows this namespace only. Raises: OSError where the kernel refuses (inside some containers)."""
    _call("mount", b"proc", b"/proc", b"proc", NO_SETUID | NO_DEVICES, None)


def drop_powers() -> None:
    """Step into one more user namespace, from which the walls cannot be moved, and gain nothing by exec."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", NEW_USER)
    _map_ids(user, group)
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the parent ends, where Linux can do that."""
    if platform.system() == "Linux":
        _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def limit(memory_mb: int, cpu_seconds: int) -> None:
    """Hold this process to that much more memory than it has now, to that CPU time, small files, and no core dumps."""
    with_now = _address_space() + (memory_mb << 20)
    for what, most in (
        (resource.RLIMIT_AS, with_now),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, SCRATCH_MB << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):
            if what != resource.RLIMIT_AS:  # macOS has no limit of memory; everything else must hold
                raise


_PROCESSES = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty",
    "pty.spawn",
)  # fmt: skip
_FORBIDDEN = {
    **dict.fromkeys(_PROCESSES, "start a process"),
    **dict.fromkeys(("os.kill", "os.killpg", "signal.pthread_kill"), "send a signal"),
    **dict.fromkeys(("ctypes.dlopen", "ctypes.dlsym", "ctypes.dlsym/handle"), "call machine code"),
    **dict.fromkeys(("os.chown", "os.chflags", "os.setxattr", "os.removexattr"), "change a file's owner or attributes"),
}
_WRITING = (  # events whose first arguments are paths that change
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink", "os.utime",
    "shutil.rmtree", "shutil.move",
)  # fmt: skip
_SECRET, _STARTER = "natgrad_lab.course.exercises", "_posixsubprocess"


def refuse(hidden: list[str], work: str, tell) -> None:
    """From now on, for good: network, processes, signals, machine code, hidden folders and writing outside `work` fail.

    `tell` is called with a sentence before PermissionError is raised, so that whoever swallows the error is reported too.
    """
    hidden = [os.path.realpath(folder) for folder in hidden]
    work, said = os.path.realpath(work), set()
    path_of, join, words, PermissionDenied = os.path.realpath, os.path.join, str, PermissionError
    writing_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def stop(sentence: str):
        if sentence not in said and len(said) < 20:
            said.add(sentence)
            tell(sentence)
        raise PermissionDenied(f"the grader does not allow it to {sentence}")

    def within(path: str, folder: str) -> bool:
        return path == folder or path.startswith(join(folder, ""))

    def look(path, writes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        real = path_of(os.fsdecode(path))
        if any(within(real, folder) for folder in hidden):
            stop("open the exercises' answers or other submissions")
        if writes and not within(real, work) and real != "/dev/null":
            stop("write outside its own folder")
        if (
            not writes
            and real.startswith("/proc/")
            and not real.startswith(("/proc/self", f"/proc/{os.getpid()}/", "/proc/cpuinfo"))
        ):
            stop("look at other processes")

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            look(args[0], bool(isinstance(args[2], int) and args[2] & writing_flags))
        elif event == "import":
            if words(args[0]).startswith(_SECRET):
                stop("import the exercises' answers")
            if args[0] == _STARTER:
                stop("start a process")
        elif event in _FORBIDDEN:
            stop(_FORBIDDEN[event])
        elif event.startswith("socket."):
            stop("use the network")
        elif event in _WRITING:
            for path in args[:2]:
                look(path, True)
        elif event in ("os.listdir", "os.scandir", "os.chdir"):
            look(args[0], False)

    for module, name in ((_STARTER, "fork_exec"), ("subprocess", "_fork_exec")):  # the one door without an audit event
        if module in sys.modules:
            setattr(sys.modules[module], name, lambda *_: stop("start a process"))
    sys.addaudithook(hook)


def _map_ids(user: int, group: int) -> None:
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 16 << 30


def _call(name: str, *args) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
