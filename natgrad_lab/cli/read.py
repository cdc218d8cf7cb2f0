"""Reading what `natgrad compare` was pointed at: a model, a data file, a likelihood; with messages that say what was found.

The model's file is the user's own code and is executed. Of the data file nothing is: it is read as plain arrays.
"""

from pathlib import Path

from rich.console import Console


def load_model(text: str, console: Console):
    """The torch module that FILE.py:NAME is, or makes when called without arguments. Executes the file."""
    from natgrad_lab.experiments.own import own_file, own_model

    path, _ = own_file(text)
    console.print(f"running {path}, which is your own code", markup=False, highlight=False, soft_wrap=True)
    return own_model(text)


def load_data(path: Path) -> tuple:
    """Inputs and targets of an .npz file, or of the data set of that name. Pickled objects are refused, never executed."""
    import numpy as np
    import torch

    from natgrad_lab.datasets import DATASETS, load

    if str(path) in DATASETS and not path.exists():
        dataset = load(str(path))
        return dataset.inputs, dataset.targets
    if not path.is_file():
        raise ValueError(f"--data: there is no file {str(path)!r}, nor a data set of that name (`natgrad data` lists them).")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(getattr(file, "files", []))
            arrays = [file[name] for name in ("inputs", "targets") if name in names]
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"--data: {path} is no .npz file of plain arrays ({error}). Write it with numpy.savez(path, inputs=..., "
            "targets=...)."
        ) from None
    except Exception as error:
        raise ValueError(f"--data: {path} cannot be read ({type(error).__name__}: {error}).") from None
    if len(arrays) < 2:
        held = ", ".join(names) or "no named arrays"
        raise ValueError(
            f"--data: {path} must hold the arrays 'inputs' and 'targets'; it has {held}. Write it with numpy.savez(path, "
            "inputs=..., targets=...)."
        )
    for name, array in zip(("inputs", "targets"), arrays, strict=True):
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise ValueError(f"--data: {name} must hold numbers, one row an example; got {array.dtype}, shape {array.shape}.")
    inputs, targets = (torch.from_numpy(array) for array in arrays)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"--data: inputs has {len(inputs)} examples, targets {len(targets)}; both need the same, at least 1.")
    return inputs, targets


def matching(network, likelihood, inputs, targets) -> tuple:
    """The data in the network's dtype and on its device; classes as integers. Integer inputs stay (Embedding)."""
    from natgrad_lab.likelihoods import Categorical
    from natgrad_lab.parameters import ParameterLayout

    layout = ParameterLayout(network)
    inputs = inputs.to(layout.dtype) if inputs.is_floating_point() else inputs
    classes = isinstance(likelihood, Categorical) and not targets.is_floating_point()
    targets = targets.long() if classes else targets if isinstance(likelihood, Categorical) else targets.to(layout.dtype)
    return inputs.to(layout.device), targets.to(layout.device)


def read_likelihood(text: str):
    """categorical, bernoulli, gaussian or gaussian:0.25."""
    from natgrad_lab.likelihoods import LIKELIHOODS
    from natgrad_lab.names import known

    name, _, variance = text.partition(":")
    kind = LIKELIHOODS[known(name, LIKELIHOODS, "likelihood")]
    if not variance:
        return kind()
    try:
        return kind(variance=float(variance))
    except (TypeError, ValueError):
        raise ValueError(
            f"--likelihood: only gaussian takes a number after the colon, its variance, as gaussian:0.25; got {text!r}."
        ) from None
