"""Likelihoods p(y | f) of the network outputs f: the only place where a loss, its scale and its targets are defined.

Each is five closed-form functions of the outputs (N, C): `nll`, `score`, `sample`, `fisher_root`, `kl`, all in nats and
per example; `root_coordinates` inverts the root on the vectors that need it and `validate` refuses targets that have no
density. There is no `reduction` argument: a loss is the mean over examples, everywhere.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.nn import functional

from natgrad_lab.shapes import Float, Tensor


class Likelihood(ABC):
    """A density p(y | f) over targets y given network outputs f (N, C)."""

    @abstractmethod
    def nll(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, " N"]:
        """−log p(y | f) per example, in nats."""

    @abstractmethod
    def score(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, "N C"]:
        """∂ log p(y | f) / ∂f per example (the negative gradient of `nll`)."""

    @abstractmethod
    def sample(self, outputs: Float[Tensor, "N C"], num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from p(y | f): (num_samples, N) classes or (num_samples, N, C) values.

        Without a `generator` a new one with seed 0 is used: PyTorch's global random state is never read nor moved.
        """

    @abstractmethod
    def fisher_root(self, outputs: Float[Tensor, "N C"]) -> Float[Tensor, "N C K"]:
        """S with S Sᵀ = E_{y~p}[score scoreᵀ], the output Fisher; its K ≤ C columns are vectors to backpropagate."""

    @abstractmethod
    def kl(self, outputs: Float[Tensor, "N C"], other: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """KL(p(y | outputs) ‖ p(y | other)) per example, in nats."""

    @abstractmethod
    def root_coordinates(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Solve S u = v for u, where v is in the range of S (as every score is)."""

    def root_product(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N K"]) -> Float[Tensor, "N C"]:
        """S v; without S where the likelihood knows how."""
        return (self.fisher_root(outputs) @ vectors.unsqueeze(2)).squeeze(2)

    def transposed_root_product(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Sᵀ v; without S where the likelihood knows how."""
        return (self.fisher_root(outputs).mT @ vectors.unsqueeze(2)).squeeze(2)

    @abstractmethod
    def _refuse_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError if `targets` have no density under `outputs`."""

    def positions(self, outputs: Tensor) -> Float[Tensor, "N S C"]:
        """The model's outputs as (N, S, C): S positions of one example with C outputs each. One position unless overridden."""
        return outputs.reshape(outputs.shape[0], 1, -1)

    def from_positions(self, scores: Float[Tensor, "K N S C"], outputs: Tensor) -> Tensor:
        """Vectors at the positions, back in the shape of the model's outputs (K, N, ...)."""
        return scores.reshape(scores.shape[0], *outputs.shape)

    def flat_targets(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Targets checked against the model's outputs, one per position: (N S,) or (N S, C)."""
        self.validate(outputs, targets)
        return targets.reshape(outputs.shape[0], -1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Mean over examples of the nll, summed over an example's positions, in nats; differentiable, targets checked."""
        flat_targets = self.flat_targets(outputs.detach(), targets).detach()
        return self.nll(self.positions(outputs).flatten(0, 1), flat_targets).sum() / outputs.shape[0]

    def output_fisher(self, outputs: Float[Tensor, "N C"]) -> Float[Tensor, "N C C"]:
        """Λ = S Sᵀ, the Fisher information of the outputs, per example."""
        root = self.fisher_root(outputs)
        return root @ root.mT

    def validate(self, outputs: Tensor, targets: Tensor) -> None:
        """Refuse targets of the wrong kind, shape, device or range, saying what was given and what is expected."""
        if not isinstance(targets, Tensor):
            raise TypeError(
                f"targets must be a torch.Tensor; got {type(targets).__name__}. Convert them with torch.as_tensor(...)."
            )
        if targets.device != outputs.device:
            raise ValueError(
                f"targets are on {targets.device}, the model's outputs on {outputs.device}. Move them with "
                f"targets.to({str(outputs.device)!r})."
            )
        self._refuse_targets(outputs, targets)


def _own_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    if generator is None:
        return torch.Generator(device=device).manual_seed(0)
    if generator.device.type != device.type:
        raise ValueError(
            f"the generator is on {generator.device}, the outputs on {device}. Make it with "
            f"torch.Generator(device={str(device)!r}).manual_seed(seed)."
        )
    return generator


def _refuse_real_targets(name: str, outputs: Tensor, targets: Tensor) -> None:
    if targets.shape != outputs.shape:
        raise ValueError(
            f"{name} needs one target per output: targets of shape {tuple(outputs.shape)}; got {tuple(targets.shape)}."
        )
    if not targets.is_floating_point():
        raise ValueError(
            f"{name} needs floating-point targets; got {targets.dtype}. Convert them with targets.to({outputs.dtype})."
        )
    if not torch.isfinite(targets).all():
        bad = int((~torch.isfinite(targets)).reshape(len(targets), -1).any(dim=1).nonzero()[0])
        raise ValueError(f"targets hold NaN or infinity (first in example {bad}). Remove or repair those examples.")


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One of C classes, outputs are logits: p(y | f) = softmax(f)_y. Targets: integers (N,) in 0 .. C−1.

    Outputs may also have positions: logits (N, T, C) or, with `class_dim=1`, (N, C, H, W) for pictures; targets are then
    (N, T) or (N, H, W), and log p of an example is the sum over its positions.

    Output Fisher diag(p) − ppᵀ, rank C − 1. The scores at the C targets, times √p_c, are the columns of diag(√p) − p √pᵀ
    = diag(q) (I − q qᵀ) with the unit vector q = √p: one more than the rank. The reflection that takes q to −e_C turns them
    into C − 1 vectors and a zero. With w = q + e_C it is I − w wᵀ / (1 + q_C), so the root is S = diag(q) Q, where Q is its
    first C − 1 columns; no subtraction cancels. [MartensGrosse2015], [Dangel2025].
    """

    class_dim: int = -1

    def positions(self, outputs: Tensor) -> Float[Tensor, "N S C"]:
        """Logits with the classes last and all positions in one dimension."""
        return outputs.movedim(self.class_dim, -1).flatten(1, -2) if outputs.ndim > 2 else outputs.unsqueeze(1)

    def from_positions(self, scores: Float[Tensor, "K N S C"], outputs: Tensor) -> Tensor:
        """Undo `positions`, K times."""
        if outputs.ndim == 2:
            return scores.squeeze(2)
        moved = outputs.movedim(self.class_dim, -1).shape
        return scores.reshape(-1, *moved).movedim(-1, self.class_dim % outputs.ndim + 1)

    def flat_targets(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Classes, one per position: (N S,)."""
        self.validate(outputs, targets)
        return targets.reshape(-1)

    def nll(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, " N"]:
        """log Σ exp f − f_y."""
        return functional.cross_entropy(outputs, targets.long(), reduction="none")

    def score(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, "N C"]:
        """e_y − softmax(f)."""
        score = -outputs.softmax(-1)
        return score.scatter_add_(-1, targets.long().unsqueeze(-1), torch.ones_like(outputs[:, :1]))

    def sample(self, outputs: Float[Tensor, "N C"], num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Classes (num_samples, N), by inversion: the first class whose cumulative probability exceeds a uniform number."""
        generator = _own_generator(generator, outputs.device)
        cumulative = outputs.softmax(-1).T.cumsum(0)[:-1]  # (C - 1, N)
        shape = (num_samples, 1, outputs.shape[0])
        uniform = torch.rand(shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
        return (cumulative <= uniform).sum(1)

    def fisher_root(self, outputs: Float[Tensor, "N C"]) -> Float[Tensor, "N C K"]:
        """diag(q) Q, (N, C, C − 1): q_i δ_ij − p_i q_j / (1 + q_C), and −q_C q_j in the last row. One class: a zero."""
        return self.root_product(outputs.unsqueeze(1), self._eye(outputs)).mT

    def root_product(self, outputs: Float[Tensor, "*N C"], vectors: Float[Tensor, "*M K"]) -> Float[Tensor, "*M C"]:
        """diag(q) Q v = q ∘ ((v, 0) − w (q · v) / (1 + q_C))."""
        q, rest, last = self._amplitudes(outputs)
        shift = (rest * vectors[..., : rest.shape[-1]]).sum(-1, keepdim=True) / (1 + last)
        return q * torch.cat([vectors[..., : rest.shape[-1]] - rest * shift, -(1 + last) * shift], -1)

    def transposed_root_product(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Qᵀ t with t = q ∘ (v − p · v), which is at a right angle to q, so that w · t = t_C."""
        q, rest, last = self._amplitudes(outputs)
        t = q * (vectors - (q.square() * vectors).sum(-1, keepdim=True))
        return self._first(t, rest, last)

    def root_coordinates(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Qᵀ (v / q), which solves S u = v whenever the entries of v sum to zero. Overflows where p underflows."""
        _, rest, last = self._amplitudes(outputs)
        return self._first(vectors * (-0.5 * outputs.log_softmax(-1)).exp(), rest, last)

    @staticmethod
    def _amplitudes(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q = √p, its first C − 1 entries, and the last; from the logarithm: exact where p underflows."""
        q = (0.5 * outputs.log_softmax(-1)).exp()
        return q, q[..., :-1], q[..., -1:]

    @staticmethod
    def _first(t: Tensor, rest: Tensor, last: Tensor) -> Tensor:
        """Qᵀ t for t at a right angle to q; with one class there is nothing, held as a zero."""
        if t.shape[-1] == 1:
            return torch.zeros_like(t)
        return t[..., :-1] - rest * (t[..., -1:] / (1 + last))

    @staticmethod
    def _eye(outputs: Tensor) -> Tensor:
        """The unit vectors that Q is applied to, (K, K)."""
        num_vectors = max(outputs.shape[-1] - 1, 1)
        return torch.eye(num_vectors, dtype=outputs.dtype, device=outputs.device).expand(len(outputs), -1, -1)

    def kl(self, outputs: Float[Tensor, "N C"], other: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """Σ_c p_c (log p_c − log q_c)."""
        log_p = outputs.log_softmax(-1)
        return (log_p.exp() * (log_p - other.log_softmax(-1))).sum(-1)

    def _refuse_targets(self, outputs: Tensor, targets: Tensor) -> None:
        moved = outputs.movedim(self.class_dim, -1) if outputs.ndim > 2 else outputs
        expected, num_classes = tuple(moved.shape[:-1]), moved.shape[-1]
        if tuple(targets.shape) != expected:
            hint = " Take targets.argmax(dim=1) of one-hot rows." if targets.shape == outputs.shape else ""
            where = "per example" if outputs.ndim == 2 else f"per position (class_dim={self.class_dim})"
            raise ValueError(
                f"Categorical needs one class {where}: targets of shape {expected}; got {tuple(targets.shape)}.{hint}"
            )
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise ValueError(f"Categorical needs integer classes; got {targets.dtype}. Convert them with targets.long().")
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"targets must be classes 0 .. {num_classes - 1} (the model has {num_classes} outputs); got values from "
                f"{low} to {high}. Check the class numbering or the size of the last layer."
            )


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """C independent coins, outputs are logits: p(y_c = 1 | f) = σ(f_c). Targets: (N, C) in [0, 1].

    Targets strictly between 0 and 1 (grey pixels of an autoencoder) give the cross-entropy, which is −log p averaged
    over a coin with that mean. Output Fisher diag(σ(f) σ(−f)).
    """

    def nll(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, " N"]:
        """−Σ_c y_c log σ(f_c) + (1 − y_c) log σ(−f_c). (PyTorch's softplus forgets exp(−f) from f = 20 on.)"""
        return -(targets * functional.logsigmoid(outputs) + (1 - targets) * functional.logsigmoid(-outputs)).sum(-1)

    def score(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, "N C"]:
        """y − σ(f)."""
        return targets.to(outputs.dtype) - outputs.sigmoid()

    def sample(self, outputs: Float[Tensor, "N C"], num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones (num_samples, N, C) in the outputs' dtype."""
        generator = _own_generator(generator, outputs.device)
        return torch.bernoulli(outputs.sigmoid().expand(num_samples, *outputs.shape), generator=generator)

    def fisher_root(self, outputs: Float[Tensor, "N C"]) -> Float[Tensor, "N C K"]:
        """diag(√(σ(f) σ(−f)))."""
        return torch.diag_embed(self._deviation(outputs))

    def root_product(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """√(σ(f) σ(−f)) v: S is diagonal."""
        return self._deviation(outputs) * vectors

    transposed_root_product = root_product

    def root_coordinates(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """v / √(σ(f) σ(−f)). Overflows where a coin is certain to the last bit."""
        return vectors / self._deviation(outputs)

    def kl(self, outputs: Float[Tensor, "N C"], other: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """Σ_c KL between the two coins, from log-sigmoids (no cancellation for certain coins)."""
        log_p, log_not_p = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
        log_q, log_not_q = functional.logsigmoid(other), functional.logsigmoid(-other)
        return (log_p.exp() * (log_p - log_q) + log_not_p.exp() * (log_not_p - log_not_q)).sum(-1)

    @staticmethod
    def _deviation(outputs: Tensor) -> Tensor:
        return (0.5 * (functional.logsigmoid(outputs) + functional.logsigmoid(-outputs))).exp()

    def _refuse_targets(self, outputs: Tensor, targets: Tensor) -> None:
        _refuse_real_targets("Bernoulli", outputs, targets)
        low, high = float(targets.min()), float(targets.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"Bernoulli targets must lie in [0, 1]; got values from {low:g} to {high:g}. Divide by the largest "
                "value, or use Gaussian() for unbounded targets."
            )


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Outputs are means, the variance is given: y ~ N(f, variance · I). Targets: (N, C), real.

    nll = ½‖y − f‖² / variance; the constant (C/2) log(2π variance) is left out, so that a perfect fit has loss 0.
    (`torch.nn.MSELoss` is 2 / C times this at variance 1.) Output Fisher I / variance.
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a variance that is no positive number."""
        if not (isinstance(self.variance, int | float) and 0 < self.variance < math.inf):
            raise ValueError(f"Gaussian needs a variance that is a positive number; got {self.variance!r}.")

    def nll(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, " N"]:
        """½‖y − f‖² / variance, without the constant."""
        return (targets - outputs).square().sum(-1) / (2 * self.variance)

    def score(self, outputs: Float[Tensor, "N C"], targets: Tensor) -> Float[Tensor, "N C"]:
        """(y − f) / variance."""
        return (targets.to(outputs.dtype) - outputs) / self.variance

    def sample(self, outputs: Float[Tensor, "N C"], num_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Values (num_samples, N, C)."""
        generator = _own_generator(generator, outputs.device)
        shape = (num_samples, *outputs.shape)
        noise = torch.randn(shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
        return outputs + math.sqrt(self.variance) * noise

    def fisher_root(self, outputs: Float[Tensor, "N C"]) -> Float[Tensor, "N C K"]:
        """I / √variance."""
        eye = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return (eye / math.sqrt(self.variance)).expand(outputs.shape[0], -1, -1)

    def root_product(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """v / √variance."""
        return vectors / math.sqrt(self.variance)

    transposed_root_product = root_product

    def root_coordinates(self, outputs: Float[Tensor, "N C"], vectors: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """√variance · v."""
        return math.sqrt(self.variance) * vectors

    def kl(self, outputs: Float[Tensor, "N C"], other: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """½‖f − f′‖² / variance."""
        return (outputs - other).square().sum(-1) / (2 * self.variance)

    def _refuse_targets(self, outputs: Tensor, targets: Tensor) -> None:
        _refuse_real_targets("Gaussian", outputs, targets)


def check_likelihood(likelihood: object) -> None:
    """Refuse what is no likelihood: a class, a name, a loss of PyTorch's."""
    if not isinstance(likelihood, Likelihood):
        raise TypeError(
            f"likelihood must be one of natgrad_lab.likelihoods (Categorical(), Bernoulli(), Gaussian()); got {likelihood!r}."
        )


LIKELIHOODS = {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian": Gaussian}
