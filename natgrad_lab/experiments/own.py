"""A network from a file of the user's own: `FILE.py:NAME`. The file is executed."""

import hashlib
import importlib.util
import sys
from pathlib import Path

from torch import nn


def is_own_model(text: str) -> bool:
    """Whether `text` is meant as FILE.py:NAME rather than as a name of MODELS."""
    return ":" in text or text.endswith(".py")


def own_model(text: str) -> nn.Module:
    """The torch module that FILE.py:NAME is, or makes when called without arguments. Executes the file.

    Raises: ValueError saying what is wrong with the text, the file, or what NAME is in it.
    """
    file, name = own_file(text)
    spec = importlib.util.spec_from_file_location(f"natgrad_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"model: {str(file)!r} is no Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    folder = str(file.parent.resolve())
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            public = ", ".join(each for each in vars(module) if not each.startswith("_")) or "nothing"
            raise ValueError(f"model: {file} has no {name!r}; it has {public}.")
        made = getattr(module, name)
        made = made() if callable(made) and not isinstance(made, nn.Module) else made
    finally:
        sys.path.remove(folder)
    if not isinstance(made, nn.Module):
        raise ValueError(f"model: {name} in {file} must be, or return, a torch.nn.Module; got {type(made).__name__}.")
    return made


def own_file(text: str) -> tuple[Path, str]:
    """FILE and NAME of FILE.py:NAME, the file being there."""
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise ValueError(f"model must be FILE.py:NAME, as my.py:make; got {text!r}.")
    if not Path(path).is_file():
        raise ValueError(f"model: there is no file {path!r}.")
    return Path(path), name


def file_sha256(text: str) -> str:
    """SHA-256 of the file in FILE.py:NAME; what that file imports is not in it."""
    return hashlib.sha256(own_file(text)[0].read_bytes()).hexdigest()
