"""Names: looking up what a person typed, and what errors call a layer."""

import difflib
from collections.abc import Iterable


def known(name: object, names: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `names`, else raise a ValueError that suggests the nearest and lists them all."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no {what} {name!r}.{hint} There are: {', '.join(names)}.")


def called(name: str, module: object) -> str:
    """`layer '0.conv' (Conv2d)`; the model itself may own parameters too, and has no name."""
    return f"layer {name!r} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"
