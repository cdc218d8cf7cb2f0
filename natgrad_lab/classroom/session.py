"""The child's side of grading: read definitions, call them, send back what they return. It judges nothing."""

import io
import linecache
import os
import pickle
import sys

from natgrad_lab.classroom import wire
from natgrad_lab.classroom.extract import Definitions, binds, definitions, is_stub, missing, needed
from natgrad_lab.course.check import guarded
from natgrad_lab.course.diagnose import Mistake

FILE = "<answer>"


def serve_answers(channel: int, wall) -> None:
    """Answer the messages on the file descriptor `channel` until it closes; `wall(tell)` is built before anything is run."""
    import torch

    send = _sender(channel)
    wall(lambda sentence: send({"refused": sentence}))
    answers: dict = {}
    while (message := receive(channel)) is not None:
        header, body = message
        if header["do"] == "load":
            send({"loaded": define_all(header["files"], header["names"], answers)})
            continue
        args, options = pickle.loads(body)  # from the grader, never from a student
        found = generators((args, options))
        torch.manual_seed(0)
        reply, data = _answer(answers[header["name"]], args, options)
        reply["generators"] = [wire.encode(generator.get_state(), data) for generator in found]
        _flush()
        try:
            send(reply, bytes(data))
        except wire.BadMessage as error:
            send({"mistake": ["raised", f"its result cannot be sent: {error}"]})


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a student's own stream, closed or broken
            continue


def generators(value) -> list:
    """The torch.Generators in nested lists, tuples and dicts, in order."""
    import torch

    if isinstance(value, torch.Generator):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [generator for item in inner for generator in generators(item)]


def receive(channel: int) -> tuple[dict, bytes] | None:
    """One message; None when the other side is gone."""
    start = _read(channel, wire.FRAME.size)
    if start is None:
        return None
    header, body = wire.sizes(start)
    words, data = _read(channel, header), _read(channel, body)
    return None if words is None or data is None else (wire.unpack(words), data)


def _read(channel: int, count: int) -> bytes | None:
    parts = io.BytesIO()
    while parts.tell() < count:
        part = os.read(channel, min(count - parts.tell(), 1 << 20))
        if not part:
            return None
        parts.write(part)
    return parts.getvalue()


def _sender(channel: int):
    write, pack, view = os.write, wire.pack, memoryview

    def send(header: dict, body: bytes = b"") -> None:
        data = view(pack(header, body))
        while data:
            data = data[write(channel, data) :]

    return send


def _answer(answer, args, options) -> tuple[dict, bytearray]:
    """The reply to a call: a result, or the mistake that the guard of `check` found."""
    data = bytearray()
    try:
        result = guarded(answer)(*args, **options)
        return {"result": wire.encode(result, data)}, data
    except Mistake as mistake:
        return {"mistake": [mistake.key, mistake.evidence[:500]]}, bytearray()
    except BaseException as error:
        return {"mistake": ["raised", f"{type(error).__name__}: {error}"[:500]]}, bytearray()


def define_all(files: dict[str, list[str]], names: list[str], answers: dict) -> dict:
    """Define each named function that some file has, in a namespace of its own: {name: what was found}."""
    read = {path: definitions(cells) for path, cells in files.items()}
    found = {name: state for name in names if (state := _load_one(name, read, answers)) is not None}
    remarks = [f"{path}: {remark}" if len(read) > 1 else remark for path, has in read.items() for remark in has.remarks]
    return {"found": found, "remarks": remarks[:20]}


def _load_one(name: str, read: dict[str, Definitions], answers: dict) -> dict | None:
    places = [(path, statements) for path, has in read.items() if (statements := needed(has, name))]
    if not places:
        return None
    written = [place for place in places if not is_stub([s for s in place[1] if name in binds(s)][-1])]
    path, statements = (written or places)[-1]
    lost = missing(read[path], statements)
    words = "".join(
        f"; {other} (line {line}) is made by a statement at top level, which is not run: move it into the function"
        for other, line in lost.items()
    )
    try:
        answers[name] = _define(name, read[path].text, statements, f"{path}{FILE}")
    except BaseException as error:
        return {"is": "broken", "evidence": f"{type(error).__name__}: {error}{words}"[:500]}
    return {"is": "written" if written else "stub", "remark": words.removeprefix("; ")[:500], "file": path}


def _define(name: str, text: str, statements: list, file: str):
    import ast

    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names = {"__name__": "answer"}
    exec(compile(ast.Module(body=statements, type_ignores=[]), file, "exec"), names)  # noqa: S102
    if not callable(names[name]):
        raise TypeError(f"{name} is no function")
    return names[name]
