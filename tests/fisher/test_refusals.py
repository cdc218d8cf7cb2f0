"""What is not supported is refused: by name, with what was given and what to do. Nothing here may compute a number."""

import json
import subprocess
import sys

import pytest
import torch
from cases import Dead, Residual, random_case
from torch import nn
from torch.nn import functional

from natgrad_lab.errors import NonFiniteError, NotPositiveDefiniteError, UnsupportedLayerError
from natgrad_lab.fisher import ESTIMATORS, dense_fisher, kfac_fisher, natural_gradient, row_block
from natgrad_lab.fisher.layers import linear_rows
from natgrad_lab.likelihoods import Bernoulli, Categorical, Gaussian
from natgrad_lab.optimizers import METHODS
from natgrad_lab.parameters import ParameterLayout

estimators = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def refuses(error, *words):
    """pytest.raises with every one of `words` in the message, in order."""
    return pytest.raises(error, match="(?s)" + ".*".join(words))


def three(forward, **layers):
    """A model of three inputs and outputs: a Linear `fc`, more layers, and a forward given as a function of (self, x)."""
    model = type("Model", (nn.Module,), {"forward": forward})()
    for name, layer in {"fc": nn.Linear(3, 3), **layers}.items():
        setattr(model, name, layer)
    return model


# ---- inputs


INPUTS = {
    "features": (lambda: torch.ones(5, 4), ValueError, [r"does not take inputs of shape \(5, 4\)", "first layer expects"]),
    "no examples": (lambda: torch.ones(0, 3), ValueError, [r"no examples \(shape \(0, 3\)\)", "at least one"]),
    "no features": (lambda: torch.ones(5, 0), ValueError, ["no examples", "at least one"]),
    "a number": (lambda: torch.tensor(1.0), ValueError, ["no examples"]),
    "one example without its dimension": (lambda: torch.ones(3), ValueError, [r"\(N, C\)", r"got \(3,\)"]),
    "NaN": (lambda: torch.tensor([[1.0, 2, 3], [1, float("nan"), 3]]), ValueError, ["NaN or infinity", "example 1", "Remove"]),
    "infinity": (lambda: torch.full((2, 3), float("inf")), ValueError, ["NaN or infinity", "example 0"]),
    "both infinities": (lambda: torch.tensor([[1e999, -1e999, 1.0]]), ValueError, ["NaN or infinity", "example 0"]),
    "another precision": (lambda: torch.ones(5, 3, dtype=torch.float32), ValueError, ["torch.float32", r"inputs.to\("]),
    "integers": (lambda: torch.ones(5, 3, dtype=torch.long), ValueError, ["torch.int64", "dtype"]),
    "complex": (lambda: torch.ones(5, 3, dtype=torch.complex128), ValueError, ["torch.complex128", "dtype"]),
    "sparse": (lambda: torch.eye(3).to_sparse(), ValueError, ["sparse_coo", r"to_dense\(\)"]),
    "another device": (lambda: torch.ones(5, 3, device="meta"), ValueError, ["inputs are on meta, the model on cpu", "to"]),
}  # fmt: skip


class Last(nn.Module):
    """Flattens sequences, leaves everything else."""

    def forward(self, x):
        return x.flatten(1) if x.ndim == 3 else x


@pytest.mark.parametrize("make, error, words", INPUTS.values(), ids=INPUTS.keys())
@estimators
def test_inputs(estimate, make, error, words):
    with refuses(error, *words):
        estimate(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Last()), Categorical(), make())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make, words", [(make, words) for make, error, words in INPUTS.values() if error is ValueError])
def test_inputs_of_a_step(method, make, words):
    with refuses(ValueError, *words):
        METHODS[method](nn.Linear(3, 3), Categorical()).step(make(), torch.zeros(5, dtype=torch.long))


# ---- targets


TARGETS = {
    "too large": (Categorical(), lambda: torch.tensor([0, 1, 3]), [r"classes 0 \.\. 2", "values from 0 to 3", "last layer"]),
    "negative": (Categorical(), lambda: torch.tensor([0, -1, 2]), ["values from -1 to 2"]),
    "floats": (Categorical(), lambda: torch.tensor([0.0, 1, 2]), ["integer classes", "float64", r"targets.long\(\)"]),
    "booleans": (Categorical(), lambda: torch.tensor([True, False, True]), ["integer classes", "bool"]),
    "one-hot": (Categorical(), lambda: torch.eye(3).long(), [r"shape \(3,\)", r"got \(3, 3\)", r"argmax\(dim=1\)"]),
    "a column": (Categorical(), lambda: torch.zeros(3, 1, dtype=torch.long), [r"shape \(3,\)", r"got \(3, 1\)"]),
    "too few": (Categorical(), lambda: torch.tensor([0, 1]), [r"shape \(3,\)", r"got \(2,\)"]),
    "classes for coins": (Bernoulli(), lambda: torch.tensor([0, 1, 2]), [r"shape \(3, 3\)", r"got \(3,\)"]),
    "coins outside": (Bernoulli(), lambda: torch.full((3, 3), 1.5), [r"\[0, 1\]", "from 1.5 to 1.5", r"Gaussian\(\)"]),
    "coins as integers": (
        Bernoulli(),
        lambda: torch.ones(3, 3, dtype=torch.long),
        ["floating-point", "int64", r"to\(torch.float64\)"],
    ),
    "flat values": (Gaussian(), lambda: torch.ones(3), [r"shape \(3, 3\)", r"got \(3,\)"]),
    "broadcastable values": (Gaussian(), lambda: torch.ones(3, 1), [r"shape \(3, 3\)", r"got \(3, 1\)"]),
    "NaN": (Gaussian(), lambda: torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 2, float("nan")]]), ["NaN", "example 2"]),
    "another device": (Gaussian(), lambda: torch.ones(3, 3, device="meta"), ["targets are on meta", "outputs on cpu"]),
}


@pytest.mark.parametrize("likelihood, targets, words", TARGETS.values(), ids=TARGETS.keys())
def test_targets(likelihood, targets, words):
    model, inputs, targets = nn.Linear(3, 3), torch.randn(3, 3), targets()
    with refuses(ValueError, *words):
        natural_gradient(model, likelihood, inputs, targets, 1e-2)
    with refuses(ValueError, *words):
        dense_fisher(model, likelihood, inputs, "empirical", targets=targets)
    for method in METHODS:
        with refuses(ValueError, *words):
            METHODS[method](model, likelihood).step(inputs, targets)


# ---- numbers and names


@pytest.mark.parametrize("damping", [-1e-3, float("nan"), float("inf"), -0.5])
def test_damping(damping):
    case = random_case((3, 4, 3))
    for route in (None, "dense", "gram", "cg"):
        with refuses(ValueError, "damping must be a finite number >= 0", f"got {damping}"):
            natural_gradient(*case.data, case.targets, damping, route=route)
    for method in ("exact_ngd", "kfac"):
        with refuses(ValueError, "damping must be a finite number >= 0", f"got {damping}"):
            METHODS[method](case.model, case.likelihood, damping=damping)


@pytest.mark.parametrize("num_examples", [2, 50])
@pytest.mark.parametrize("route", [None, "dense", "gram"])
def test_damping_zero_on_a_singular_fisher(num_examples, route):
    case = random_case((3, 4, 3), num_examples=num_examples)  # a shift of all logits changes nothing: singular for any N
    with refuses(NotPositiveDefiniteError, "singular", "damping > 0"):
        natural_gradient(*case.data, case.targets, 0.0, route=route)


@pytest.mark.parametrize("form", ["factored", "exact"])
def test_damping_zero_on_singular_factors(form):
    case = random_case((3, 4, 3), num_examples=50)
    with refuses(NotPositiveDefiniteError, "singular", "damping > 0"):
        METHODS["kfac"](case.model, case.likelihood, damping=0.0, damping_form=form, fisher_type="exact").step(
            case.inputs, case.targets
        )


def test_misspelt_names_suggest_the_nearest():
    case = random_case((3, 4, 3))
    with refuses(ValueError, "no fisher_type 'emprical'", "Did you mean 'empirical'", "monte_carlo"):
        dense_fisher(*case.data, "emprical")
    with refuses(ValueError, "no method 'kfca'", "Did you mean 'kfac'", "exact_ngd"):
        METHODS["kfca"]
    with refuses(ValueError, "no route 'grm'", "Did you mean 'gram'"):
        natural_gradient(*case.data, case.targets, 1e-2, route="grm")
    with refuses(ValueError, "no damping_form 'factord'", "Did you mean 'factored'"):
        METHODS["kfac"](case.model, case.likelihood, damping_form="factord")
    with refuses(ValueError, "no method 'zzzzzz'. There are"):
        METHODS["zzzzzz"]


@estimators
def test_empirical_needs_targets(estimate):
    with refuses(ValueError, "fisher_type='empirical' needs targets"):
        estimate(*random_case((3, 4, 3)).data, "empirical")


@pytest.mark.parametrize("num_samples", [0, -1])
def test_num_samples(num_samples):
    with refuses(ValueError, "num_samples must be a positive integer", f"got {num_samples}"):
        dense_fisher(*random_case((3, 4, 3)).data, "monte_carlo", num_samples=num_samples)


@pytest.mark.gpu
def test_a_generator_on_another_device():
    model, inputs = nn.Linear(3, 3, device="cuda"), torch.ones(5, 3, device="cuda")
    with refuses(ValueError, "the generator is on cpu, the outputs on cuda", "torch.Generator"):
        dense_fisher(model, Categorical(), inputs, "monte_carlo", generator=torch.Generator())


# ---- weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    case = random_case((3, 4, 3))
    with torch.no_grad():
        case.model[2].bias[1] = value
    for call in (dense_fisher, kfac_fisher, lambda *data: natural_gradient(*data, case.targets, 1e-2)):
        with refuses(NonFiniteError, "parameter '2.bias' holds NaN or infinity in 1 of 3", "Load or initialize"):
            call(*case.data)
    for method in METHODS:
        with refuses(NonFiniteError, "parameter '2.bias' holds NaN"):
            METHODS[method](case.model, case.likelihood).step(case.inputs, case.targets)
    bare = nn.Linear(3, 3)
    nn.init.constant_(bare.weight, value)
    with refuses(NonFiniteError, "parameter 'weight'"):
        dense_fisher(bare, case.likelihood, case.inputs)


def test_outputs_that_overflow_are_told_from_weights_that_are_not_finite():
    case = random_case((3, 4, 4, 3), "relu", scale=1e200)
    with refuses(NonFiniteError, "outputs hold NaN or infinity although inputs and weights are finite", "Scale"):
        dense_fisher(*case.data)


def test_precisions_and_devices_of_weights():
    inputs = torch.ones(5, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.complex128):
        with refuses(UnsupportedLayerError, f"parameters are {dtype}", "float32 or float64", r"model.float\(\)"):
            dense_fisher(nn.Linear(3, 3, dtype=dtype), Categorical(), inputs.to(dtype))
    with refuses(UnsupportedLayerError, "torch.float32 on cpu and torch.float64 on cpu", "one dtype"):
        dense_fisher(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.float32)), Categorical(), inputs)
    with refuses(UnsupportedLayerError, "meta device", "to_empty"):
        dense_fisher(nn.Linear(3, 3, device="meta"), Categorical(), inputs)


# ---- layers


def tied():
    shared = nn.Linear(3, 3)
    return nn.Sequential(shared, nn.Tanh(), shared)


def tied_weight():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def hooked():
    model = nn.Linear(3, 3)
    model.register_forward_hook(lambda module, args, output: output + module.weight.sum())
    return model


def pruned():
    from torch.nn.utils import prune

    return prune.random_unstructured(nn.Linear(3, 3), "weight", 0.5)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.scale * self.fc(x)


MODELS = {
    "the same module twice": (tied, ["'2.weight' and '0.weight' are the same parameter", "tied weights"]),
    "the same weight twice": (tied_weight, ["'2.weight' and '0.weight' are the same parameter", "its own"]),
    "another layer's weight": (
        lambda: three(lambda s, x: functional.linear(s.fc(x), s.fc.weight)), [r"'fc'", "in another way too", "tied weights"],
    ),
    "a weight as a penalty": (lambda: three(lambda s, x: s.fc(x) + s.fc.weight.mean()), ["'fc'", "another way"]),
    "a weight in a hook": (hooked, ["in another way too", "hook"]),
    "BatchNorm in train mode": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)),
        [r"'1' \(BatchNorm1d\)", "train mode", r"model.eval\(\)"],
    ),
    "BatchNorm without statistics": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False)).eval(),
        [r"'1' \(BatchNorm1d\)", "statistics of the batch"],
    ),
    "batch norm as a function": (
        lambda: three(lambda s, x: functional.batch_norm(s.fc(x), None, None, training=True)), ["rest of the batch", "eval"],
    ),
    "detached batch statistics": (
        lambda: three(lambda s, x: (z := s.fc(x)) - z.detach().mean(0)), ["rest of the batch"],
    ),
    "centred inputs": (lambda: three(lambda s, x: s.fc(x - x.mean(0))), ["rest of the batch"]),
    "a sum over the batch before it": (lambda: three(lambda s, x: s.fc(x).cumsum(0)), ["rest of the batch"]),
    "a sum over the batch after it": (lambda: three(lambda s, x: s.fc(x).flip(0).cumsum(0).flip(0)), ["rest of the batch"]),
    "pairs": (
        lambda: three(lambda s, x: (s.fc(x).unflatten(0, (-1, 2)).cumsum(1).flatten(0, 1)) if len(x) % 2 == 0 else s.fc(x)),
        ["rest of the batch"],
    ),
    "examples in another order": (
        lambda: three(lambda s, x: s.out(torch.tanh(s.fc(x.flip(0)).flip(0))), out=nn.Linear(3, 3)), ["rest of the batch"],
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), [r"'1' \(Dropout\)", r"model.eval\(\)"]),
    "dropout as a function": (lambda: three(lambda s, x: functional.dropout(s.fc(x), 0.5)), ["at random"]),
    "alpha dropout": (lambda: nn.Sequential(nn.Linear(3, 3), nn.AlphaDropout(0.5)), [r"'1' \(AlphaDropout\)"]),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), ["parametrized", "remove_param"]),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), ["parametrized"]),
    "pruned": (pruned, ["the model itself \\(Linear\\)", "weight_orig"]),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), [r"'0' \(LazyLinear\)", "no weights yet", "Run the model once"]),
    "frozen weight, trained bias": (
        lambda: (model := nn.Linear(3, 3), model.weight.requires_grad_(False))[0], ["trains bias", "requires_grad_"],
    ),
    "all frozen": (lambda: nn.Linear(3, 3).requires_grad_(False), ["no trainable parameters", r"requires_grad_\(True\)"]),
    "no parameters": (nn.Tanh, ["no trainable parameters"]),
    "detached outputs": (lambda: three(lambda s, x: s.fc(x).detach()), ["do not depend on its trainable parameters"]),
    "gradients switched off": (lambda: three(torch.no_grad()(lambda s, x: s.fc(x))), ["'fc'", "gradients are switched off"]),
    "an input overwritten afterwards": (
        lambda: three(lambda s, x: (h := torch.tanh(s.fc(x)), s.out(h), h.mul_(2))[1], out=nn.Linear(3, 3)),
        ["overwrites", "in-place"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, words", MODELS.values(), ids=MODELS.keys())
def test_models(make, words):
    inputs = torch.randn(6, 3)
    calls = [lambda model, f=f: f(model, Categorical(), inputs) for name, f in ESTIMATORS.items() if name != "implicit"]
    targets = torch.zeros(6, dtype=torch.long)
    calls.append(lambda model: natural_gradient(model, Categorical(), inputs, targets, 1e-2))
    calls += [lambda model, m=m: METHODS[m](model, Categorical()).step(inputs, targets) for m in ("exact_ngd", "kfac")]
    for call in calls:
        with refuses(UnsupportedLayerError, *words):
            call(make())


# what is refused where rows are captured, and needs no refusal where the model is differentiated as a function
EXACT_AS_PRODUCTS = (
    "another layer's weight", "a weight as a penalty", "a weight in a hook", "examples in another order"
)  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_of_an_implicit_fisher(name):
    """Refused with the same words (but for the layer that nothing can be traced to), or right."""
    make, words = MODELS[name]
    inputs = torch.randn(6, 3)
    if name not in EXACT_AS_PRODUCTS:
        words = [r"torch.no_grad\(\)"] if name == "gradients switched off" else words
        with refuses(UnsupportedLayerError, *words):
            ESTIMATORS["implicit"](make(), Categorical(), inputs)
        return
    model, expected = make(), 0
    layout, parameters = ParameterLayout(model), list(model.parameters())
    for x in inputs:
        output = model(x[None])[0]
        each = [torch.autograd.grad(value, parameters, retain_graph=True) for value in output]
        J = layout.from_torch(torch.stack([torch.cat([g.flatten() for g in grads]) for grads in each]).T).T
        expected = expected + J.T @ Categorical().output_fisher(output[None].detach())[0] @ J / len(inputs)
    found = ESTIMATORS["implicit"](model, Categorical(), inputs).to_dense()
    assert (found - expected).abs().max() < 1e-13 * expected.abs().max()


OUTPUTS = {
    "flat": (lambda s, x: s.fc(x)[:, 0], [r"outputs of shape \(N, C\), or \(N, positions, C\), with N = 6", r"got \(6,\)"]),
    "averaged": (lambda s, x: s.fc(x).mean(0, keepdim=True), [r"got \(1, 3\)"]),
    "a tuple": (lambda s, x: (s.fc(x), x), ["got tuple"]),
    "a dictionary": (lambda s, x: {"logits": s.fc(x)}, ["got dict"]),
    "None": (lambda s, x: s.fc(x) and None if 0 else None, ["got NoneType"]),
    "another precision": (lambda s, x: s.fc(x).float(), ["returns torch.float32", "parameters are torch.float64"]),
    "classes": (lambda s, x: functional.one_hot(s.fc(x).argmax(1), 3), ["returns torch.int64"]),
}  # fmt: skip


@pytest.mark.parametrize("forward, words", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_outputs(forward, words):
    with refuses(ValueError, *words):
        dense_fisher(three(forward), Categorical(), torch.randn(6, 3))


def test_autocast_is_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16), refuses(ValueError, "returns torch.bfloat16", "autocast"):
        dense_fisher(nn.Linear(3, 3, dtype=torch.float32), Categorical(), torch.ones(6, 3, dtype=torch.float32))


def test_an_error_inside_the_model_is_its_own():
    def forward(self, x):
        raise RuntimeError("the sky is falling")

    with refuses(RuntimeError, "the sky is falling"):
        dense_fisher(three(forward), Categorical(), torch.randn(6, 3))


def test_a_refusal_leaves_no_hooks():
    model = three(lambda s, x: s.fc(x) + s.fc.weight.mean())
    with pytest.raises(UnsupportedLayerError):
        dense_fisher(model, Categorical(), torch.randn(6, 3))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_rule_makes_an_own_forward_possible():
    """The rows of 2 (W x + b) are twice those of the plain layer. (A class of its own: registries do not forget.)"""
    kind = type("Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})
    row_block.register(kind)(lambda module, layer, inputs, scores: linear_rows(module, layer, inputs, 2 * scores))
    model, inputs = kind(3, 3), torch.randn(5, 3)
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False).requires_grad_(False))
    plain[0].load_state_dict(model.state_dict())
    with torch.no_grad():
        plain[1].weight.copy_(2 * torch.eye(3))
    for name in ("dense", "gram", "implicit", "block_diagonal", "diagonal", "kfac"):
        found, expected = (ESTIMATORS[name](m, Categorical(), inputs).to_dense() for m in (model, plain))
        assert torch.allclose(found, expected, rtol=1e-13, atol=1e-15)
    heir = type("Heir", (kind,), {})
    assert dense_fisher(heir(3, 3), Categorical(), inputs).dim == 12
    assert dense_fisher(heir(3, 3), Categorical(), inputs).note == ""
    rebel = type("Rebel", (kind,), {"forward": lambda self, x: 3 * nn.Linear.forward(self, x)})(3, 3)
    with torch.no_grad():
        rebel.load_state_dict(model.state_dict())
        plain[1].weight.copy_(3 * torch.eye(3))
    found = dense_fisher(rebel, Categorical(), inputs)
    assert "no rule covers the model itself (Rebel): generic route" in found.note
    assert torch.allclose(found.to_dense(), dense_fisher(plain, Categorical(), inputs).to_dense(), rtol=1e-13, atol=1e-15)


def test_a_wrong_rule_is_found():
    """A rule that forgets the factor 2 is not PyTorch's gradient."""
    kind = type("Twice", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})
    row_block.register(kind)(linear_rows)
    model = nn.Sequential(kind(3, 3), nn.Tanh(), nn.Linear(3, 3))
    with refuses(UnsupportedLayerError, "layer '0'", "in another way too"):
        dense_fisher(model, Categorical(), torch.randn(6, 3))


def test_freezing_is_the_way_out_that_messages_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    model.get_parameter("1.weight").requires_grad_(False)
    model.get_parameter("1.bias").requires_grad_(False)
    assert dense_fisher(model, Categorical(), torch.randn(6, 3)).dim == 24
    scaled = Scaled()
    scaled.get_parameter("scale").requires_grad_(False)
    assert dense_fisher(scaled, Categorical(), torch.randn(6, 3)).dim == 12


@pytest.mark.parametrize("make", [Residual, Dead])
def test_what_is_unusual_and_right_is_not_refused(make):
    assert dense_fisher(make(), Categorical(), torch.randn(6, 3)).dim == ParameterLayout(make()).dim


BUFFERS = {
    "shape": lambda: torch.empty(11, 12),
    "precision": lambda: torch.empty(12, 12, dtype=torch.float32),
    "transposed": lambda: torch.empty(12, 12).T,
    "rows on top of each other": lambda: torch.empty(12).expand(12, 12),
    "overlapping rows": lambda: torch.empty(200).as_strided((12, 12), (5, 1)),
    "device": lambda: torch.empty(12, 12, device="meta"),
    "requires grad": lambda: torch.empty(12, 12, requires_grad=True),
}


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS.keys())
def test_buffers(make):
    with refuses(ValueError, r"out must be a \(12, 12\) buffer", "Make it with torch.empty"):
        dense_fisher(nn.Linear(3, 3), Categorical(), torch.randn(6, 3), out=make())


# ---- wrong kinds of objects, as users meet them: without the shape checker that runs in tests


WRONG_KINDS = {
    "a list of inputs": ("dense_fisher(model, likelihood, [[1.0, 2.0, 3.0]])", "TypeError", "inputs must be a torch.Tensor"),
    "numpy inputs": ("dense_fisher(model, likelihood, numpy.ones((5, 3)))", "TypeError", "got ndarray"),
    "no inputs": ("dense_fisher(model, likelihood, None)", "TypeError", "got NoneType"),
    "numpy targets": ("natural_gradient(model, likelihood, x, numpy.zeros(5, int), 1e-2)", "TypeError", "targets must be"),
    "a list of targets": ("METHODS['kfac'](model, likelihood).step(x, [0] * 5)", "TypeError", "targets must be a torch.Tensor"),
    "no targets": ("natural_gradient(model, likelihood, x, None, 1e-2)", "ValueError", "needs the observed targets"),
    "no targets in a step": ("METHODS['exact_ngd'](model, likelihood).step(x, None)", "ValueError", "observed targets"),
    "no targets in an SGD step": ("METHODS['sgd'](model, likelihood).step(x, None)", "TypeError", "targets must be"),
    "likelihood class": ("dense_fisher(model, type(likelihood), x)", "TypeError", "likelihood must be one of"),
    "likelihood name": ("dense_fisher(model, 'categorical', x)", "TypeError", "got 'categorical'"),
    "torch's loss": ("natural_gradient(model, torch.nn.CrossEntropyLoss(), x, y, 1e-2)", "TypeError", "Categorical()"),
    "a function for a model": ("dense_fisher(lambda x: x, likelihood, x)", "TypeError", "model must be a torch.nn.Module"),
    "a class for a model": ("dense_fisher(torch.nn.Linear, likelihood, x)", "TypeError", "model must be a torch.nn.Module"),
    "a function to train": ("METHODS['adam'](lambda x: x, likelihood)", "TypeError", "model must be a torch.nn.Module"),
    "a step with a likelihood class": ("METHODS['sgd'](model, type(likelihood)).step(x, y)", "TypeError", "likelihood must be"),
    "None for a fisher_type": ("dense_fisher(model, likelihood, x, None)", "ValueError", "no fisher_type None"),
    "samples as a float": (
        "dense_fisher(model, likelihood, x, 'monte_carlo', num_samples=2.0)",
        "ValueError",
        "positive integer",
    ),
    "variance as text": ("ng.likelihoods.Gaussian('1')", "ValueError", "variance that is a positive number"),
    "variance zero": ("ng.likelihoods.Gaussian(0.0)", "ValueError", "got 0.0"),
}

SCRIPT = """
import json, sys, numpy, torch, natgrad_lab as ng
from natgrad_lab.fisher import dense_fisher, natural_gradient
from natgrad_lab.optimizers import METHODS
model, likelihood = torch.nn.Linear(3, 3), ng.likelihoods.Categorical()
x, y = torch.ones(5, 3), torch.zeros(5, dtype=torch.long)
found = {}
for name, (code, *_) in json.load(sys.stdin).items():
    try:
        found[name] = ["no error", repr(eval(code))]
    except Exception as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers():
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=json.dumps(WRONG_KINDS), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_wrong_kinds_of_objects(answers, name):
    kind, text = answers[name]
    assert kind == WRONG_KINDS[name][1] and WRONG_KINDS[name][2] in text, (kind, text)
