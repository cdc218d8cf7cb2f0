"""Slow, obvious answers to hold the package to: loops, enumeration, second derivatives, textbook formulas in NumPy.

Nothing here imports the package. Flat order: module by module, each Linear as the rows of [W | b]. A density is
(name, variance): ("categorical", 1.0), ("bernoulli", 1.0), ("gaussian", 0.3).
"""

import itertools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# ---- flat order


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight.requires_grad]


def trains_bias(layer):
    return layer.bias is not None and layer.bias.requires_grad


def trainables(model):
    return [p for layer in linears(model) for p in ([layer.weight, layer.bias] if trains_bias(layer) else [layer.weight])]


def flatten(model, tensors):
    """Tensors in the order of `trainables` -> one vector in the flat order."""
    rows, rest = [], list(tensors)
    for layer in linears(model):
        weight = rest.pop(0)
        rows.append((torch.cat([weight, rest.pop(0)[:, None]], dim=1) if trains_bias(layer) else weight).flatten())
    return torch.cat(rows)


def unflatten(model, vector):
    """One vector in the flat order -> {parameter name: tensor}; differentiable."""
    names = {id(p): name for name, p in model.named_parameters()}
    parameters, start = {}, 0
    for layer in linears(model):
        out, width = layer.weight.shape[0], layer.weight.shape[1] + trains_bias(layer)
        rows = vector[start : start + out * width].reshape(out, width)
        parameters[names[id(layer.weight)]] = rows[:, : layer.weight.shape[1]]
        if trains_bias(layer):
            parameters[names[id(layer.bias)]] = rows[:, -1]
        start += out * width
    return parameters


def parameters_of(model):
    return flatten(model, [p.detach() for p in trainables(model)])


def blocks_of(model):
    """The slice of each layer in the flat order."""
    sizes = [layer.weight.shape[0] * (layer.weight.shape[1] + trains_bias(layer)) for layer in linears(model)]
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


# ---- densities


def log_density(density, output, target):
    """log p(target | output) of one example, up to the Gaussian's constant."""
    name, variance = density
    if name == "categorical":
        return functional.log_softmax(output, -1)[target]
    if name == "bernoulli":
        return (target * functional.logsigmoid(output) + (1 - target) * functional.logsigmoid(-output)).sum()
    return -(target - output).square().sum() / (2 * variance)


def kl(density, outputs, others):
    """Mean over examples of KL(p(y | outputs) || p(y | others)), from log-probabilities."""
    name, variance = density
    if name == "categorical":
        p, q = functional.log_softmax(outputs, -1), functional.log_softmax(others, -1)
        return (p.exp() * (p - q)).sum(-1).mean()
    if name == "bernoulli":
        coins = [(functional.logsigmoid(s * outputs), functional.logsigmoid(s * others)) for s in (1, -1)]
        return sum((p.exp() * (p - q)).sum(-1) for p, q in coins).mean()
    return (outputs - others).square().sum(-1).mean() / (2 * variance)


def output_fisher(density, output):
    """Λ of one example by its closed form."""
    name, variance = density
    if name == "categorical":
        p = output.softmax(-1)
        return torch.diag(p) - torch.outer(p, p)
    if name == "bernoulli":
        return torch.diag(output.sigmoid() * (-output).sigmoid())
    return torch.eye(len(output), dtype=output.dtype) / variance


def enumerated_targets(density, output):
    """All targets of one example with their probabilities.

    A Gaussian has too many; the 2C points f ± √C σ e_c, equally weighted, have its mean and its covariance, and a score is
    linear in the target, so that they give the same second moments.
    """
    name, variance = density
    num_outputs = len(output)
    if name == "categorical":
        return [(torch.tensor(c), output.softmax(-1)[c]) for c in range(num_outputs)]
    if name == "bernoulli":
        coins = [torch.tensor(y, dtype=output.dtype) for y in itertools.product((0.0, 1.0), repeat=num_outputs)]
        return [(y, (y * output.sigmoid() + (1 - y) * (-output).sigmoid()).prod()) for y in coins]
    steps = math.sqrt(num_outputs * variance) * torch.eye(num_outputs, dtype=output.dtype)
    weight = torch.tensor(1 / (2 * num_outputs), dtype=output.dtype)
    return [(output + sign * step, weight) for step in steps for sign in (1, -1)]


# ---- the Fisher, three times over


def jacobian(model, inputs):
    """∂f/∂θ, (N, C, P), by one call of autograd per example and output."""
    rows = []
    for example in inputs:
        output = model(example[None])[0]
        grads = [torch.autograd.grad(value, trainables(model), retain_graph=True, materialize_grads=True) for value in output]
        rows.append(torch.stack([flatten(model, grad) for grad in grads]))
    return torch.stack(rows)


def example_gradients(model, density, inputs, targets):
    """∂ log p(y_n | x_n) / ∂θ, (N, P), by one call of autograd per example."""
    rows = []
    for example, target in zip(inputs, targets, strict=True):
        value = log_density(density, model(example[None])[0], target)
        rows.append(flatten(model, torch.autograd.grad(value, trainables(model), materialize_grads=True)))
    return torch.stack(rows)


def gradient(model, density, inputs, targets):
    """Of the mean negative log-likelihood."""
    return -example_gradients(model, density, inputs, targets).mean(0)


def fisher_from_jacobians(model, density, inputs):
    total = 0
    for example, J in zip(inputs, jacobian(model, inputs), strict=True):
        total = total + J.T @ output_fisher(density, model(example[None])[0].detach()) @ J
    return total / len(inputs)


def fisher_by_enumeration(model, density, inputs):
    """(1/N) Σ_n Σ_y p(y | x_n) score scoreᵀ with scores with respect to the parameters."""
    total = 0
    for example in inputs:
        output = model(example[None])[0]
        for target, probability in enumerated_targets(density, output.detach()):
            value = log_density(density, output, target)
            grads = torch.autograd.grad(value, trainables(model), retain_graph=True, materialize_grads=True)
            score = flatten(model, grads)
            total = total + probability * torch.outer(score, score)
    return total / len(inputs)


def fisher_from_kl(model, density, inputs):
    """Second derivative of the mean KL(p_θ || p_θ') in θ' at θ' = θ."""
    outputs = model(inputs).detach()

    def moved(vector):
        return kl(density, outputs, torch.func.functional_call(model, unflatten(model, vector), (inputs,)))

    return torch.func.jacrev(torch.func.jacrev(moved))(parameters_of(model))


def empirical_fisher(model, density, inputs, targets):
    scores = example_gradients(model, density, inputs, targets)
    return scores.T @ scores / len(inputs)


def kfac_blocks(model, density, inputs):
    """[(G, A)] by loops over examples and outputs: G = E[Σ s sᵀ], A = E[[a; 1][a; 1]ᵀ]."""
    layers = linears(model)
    factors = [[0.0, 0.0] for _ in layers]
    for example in inputs:
        seen = {}

        def remember(layer, args, output, seen=seen):
            seen[layer] = args[0][0].detach().clone()

        hooks = [layer.register_forward_hook(remember) for layer in layers]
        output = model(example[None])[0]
        for hook in hooks:
            hook.remove()
        spectrum = torch.linalg.eigh(output_fisher(density, output.detach()))
        for factor, layer in zip(factors, layers, strict=True):
            a = torch.cat([seen[layer], torch.ones(1)]) if trains_bias(layer) else seen[layer]
            factor[1] = factor[1] + torch.outer(a, a) / len(inputs)
            for value, vector in zip(spectrum.eigenvalues, spectrum.eigenvectors.T, strict=True):
                # one example's gradient of W is s aᵀ, so that s = (s aᵀ) a / aᵀa
                slope = torch.autograd.grad(output @ vector, layer.weight, retain_graph=True, materialize_grads=True)[0]
                s = slope @ seen[layer] / (seen[layer] @ seen[layer])
                factor[0] = factor[0] + value * torch.outer(s, s) / len(inputs)
    return factors


# ---- one step of every method in NumPy, for a tanh network of Linear layers with biases


def numpy_weights(model):
    """[[W | b], ...] as NumPy arrays."""
    return [np.hstack([m.weight.detach().numpy(), m.bias.detach().numpy()[:, None]]) for m in linears(model)]


def numpy_pass(weights, x):
    """Outputs (N, C), layer inputs [(N, D + 1)], and per layer ∂f/∂(layer output), (N, C, out)."""
    inputs, a = [], x
    for i, w in enumerate(weights):
        inputs.append(np.hstack([a, np.ones((len(a), 1))]))
        z = inputs[-1] @ w.T
        a = z if i == len(weights) - 1 else np.tanh(z)
    back = [np.repeat(np.eye(z.shape[1])[None], len(x), axis=0)]
    for w, a in zip(weights[:0:-1], inputs[:0:-1], strict=True):
        back.insert(0, (back[0] @ w[:, :-1]) * (1 - a[:, None, :-1] ** 2))
    return z, inputs, back


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def numpy_gradients(weights, x, y):
    """Categorical: loss and gradient of the mean nll by layer."""
    z, inputs, back = numpy_pass(weights, x)
    p = softmax(z)
    residual = p - np.eye(p.shape[1])[y]
    grads = [np.einsum("nc,nco,nd->od", residual, b, a) / len(x) for b, a in zip(back, inputs, strict=True)]
    return -np.log(p[np.arange(len(y)), y]).mean(), grads


def numpy_fisher(weights, x):
    """Categorical: the exact Fisher, (P, P)."""
    z, inputs, back = numpy_pass(weights, x)
    J = np.concatenate(
        [np.einsum("nco,nd->ncod", b, a).reshape(len(x), z.shape[1], -1) for b, a in zip(back, inputs, strict=True)], axis=2
    )
    p = softmax(z)
    output = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - p[:, :, None] * p[:, None, :]
    return np.einsum("ncp,ncd,ndq->pq", J, output, J) / len(x)


def numpy_factors(weights, x, sampled=None):
    """Categorical: K-FAC's [(G, A)], exact, or from one sampled target per example."""
    z, inputs, back = numpy_pass(weights, x)
    p = softmax(z)
    if sampled is None:
        output = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - p[:, :, None] * p[:, None, :]
    else:
        score = np.eye(p.shape[1])[sampled] - p
        output = score[:, :, None] * score[:, None, :]
    return [(np.einsum("nco,ncd,ndq->oq", b, output, b) / len(x), a.T @ a / len(x)) for b, a in zip(back, inputs, strict=True)]


def numpy_kfac_direction(factors, grads, damping, form):
    """Per layer: (G + √λ/π I)⁻¹ g (A + π√λ I)⁻¹ ("root": with π = 1, over L), or (G ⊗ A + λI)⁻¹ vec g solved whole."""
    directions = []
    for (G, A), g in zip(factors, grads, strict=True):
        if form == "exact":
            whole = np.kron(G, A) + damping * np.eye(g.size)
            directions.append(np.linalg.solve(whole, g.reshape(-1)).reshape(g.shape))
        else:
            pi = 1.0 if form == "root" else np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
            left, right = G + np.sqrt(damping) / pi * np.eye(len(G)), A + np.sqrt(damping) * pi * np.eye(len(A))
            share = 1 / len(grads) if form == "root" else 1.0
            directions.append(share * np.linalg.solve(left, np.linalg.solve(right, g.T).T))
    return directions


# ---- any module: one example at a time, PyTorch's own gradients, positions one after the other


def matrices(model):
    """[(module name, parameter names, whether they are rows of [W | b])] of every module that trains, in the flat order."""
    pieces = []
    for name, module in model.named_modules():
        own = [key for key, p in module.named_parameters(recurse=False) if p.requires_grad]
        everything = len(own) == len(list(module.parameters(recurse=False)))
        if isinstance(module, nn.RNNBase) and everything and not module.proj_size:
            for key in (key for key in own if key.startswith("weight")):
                pieces.append((name, [k for k in (key, key.replace("weight", "bias")) if k in own], True))
        elif own:
            pieces.append((name, own, isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)))
    return [(name, [f"{name}.{key}".lstrip(".") for key in keys], rows) for name, keys, rows in pieces]


def flat_gradient(model, value):
    """Gradient of a number by all trainable parameters, in the flat order."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(value, list(named.values()), retain_graph=True, materialize_grads=True)
    by_name, flat = dict(zip(named, grads, strict=True)), []
    for _, keys, rows in matrices(model):
        if rows:
            flat.append(torch.cat([by_name[key].reshape(len(by_name[keys[0]]), -1) for key in keys], 1).flatten())
        else:
            flat += [by_name[key].flatten() for key in keys]
    return torch.cat(flat)


def module_blocks(model):
    """The slice of each piece of `matrices` in the flat order."""
    sizes = [sum(model.get_parameter(key).numel() for key in keys) for _, keys, _ in matrices(model)]
    ends = np.cumsum(sizes)
    return [slice(int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)]


def positions_of(output, class_dim):
    """(S, C) of one example's output: class_dim counts the example's dimension; None: all of it is one position."""
    if class_dim is None or output.ndim == 1:
        return output.reshape(1, -1)
    return torch.stack(output.unbind(class_dim - (class_dim > 0)), -1).reshape(-1, output.shape[class_dim - (class_dim > 0)])


def fisher_of_any(model, density, inputs, class_dim=None):
    """(1/N) Σ_n Σ_s J_nsᵀ Λ_ns J_ns."""
    total = 0
    for example in inputs:
        for output in positions_of(model(example[None])[0], class_dim):
            J = torch.stack([flat_gradient(model, value) for value in output])
            total = total + J.T @ output_fisher(density, output.detach()) @ J
    return total / len(inputs)


def scores_of_any(model, density, inputs, targets, class_dim=None):
    """∂ Σ_s log p(y_ns | x_n) / ∂θ, (N, P)."""
    rows = []
    for example, target in zip(inputs, targets, strict=True):
        outputs = positions_of(model(example[None])[0], class_dim)
        aligned = target.reshape(-1) if density[0] == "categorical" else target.reshape(outputs.shape)
        rows.append(flat_gradient(model, sum(log_density(density, o, y) for o, y in zip(outputs, aligned, strict=True))))
    return torch.stack(rows)
