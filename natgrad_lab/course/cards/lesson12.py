"""Lesson 12, validate an approximation: a dashboard over `ng.compare`, and a clinic of anonymous preconditioners."""

from collections.abc import Callable, Sequence
from functools import cache
from numbers import Real

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn

from natgrad_lab import comparison, datasets, fisher, likelihoods, metrics, models
from natgrad_lab.course.card import Card, Control, Prediction
from natgrad_lab.optimizers import METHODS
from natgrad_lab.plots.comparison import colour
from natgrad_lab.plots.style import EXACT, GREY, template
from natgrad_lab.shapes import Float, Tensor

F64 = torch.float64
CATEGORICAL = likelihoods.Categorical()

# ---- the dashboard

MOMENTS = (0, 3, 10)
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
NAMES = {
    "block_tridiagonal": "K-FAC, block-tridiagonal", "block_diagonal": "exact blocks", "kfac": "K-FAC",
    "unit_wise": "unit-wise", "diagonal": "diagonal", "identity": "plain gradient",
}  # fmt: skip
JUDGES = {  # name → (axis, from the curves of one approximation)
    "efficiency": ("efficiency", lambda curves: curves["efficiency"]),
    "cosine": ("Euclidean cosine", lambda curves: curves["cosine"]),
    "best step": ("best step length α*", lambda curves: curves["best_step"]),
    "achieved / predicted": (
        "fall of the loss, achieved / predicted",
        lambda curves: [a / p for a, p in zip(curves["achieved_decrease"], curves["predicted_decrease"], strict=True)],
    ),
}


@cache
def small_digits() -> tuple[Tensor, Tensor]:
    """100 digits of 4 x 4 pixels and their classes."""
    digits = datasets.resize(datasets.digits(F64), 4)
    return digits.inputs[:100], digits.targets[:100]


@cache
def network(steps: int) -> nn.Module:
    """A tanh network of 16, 12 and 10 units after some exact natural-gradient steps (learning rate 0.5, λ = 0.01)."""
    model = models.mlp((16, 12, 10), "tanh", generator=torch.Generator().manual_seed(0), dtype=F64)
    optimizer = METHODS["exact_ngd"](model, CATEGORICAL, lr=0.5, damping=0.01)
    for _ in range(steps):
        optimizer.step(*small_digits())
    return model


@cache
def report(steps: int) -> comparison.Report:
    """Six approximations on the network after `steps`, at λ = 0.01 and from 10⁻⁵ to 10."""
    return comparison.compare(network(steps), CATEGORICAL, *small_digits(), 1e-2, list(NAMES))


def dashboard(state: dict) -> dict:
    """Curves of all approximations over the damping, and the numbers of the chosen one at the chosen damping."""
    found, name = report(state["steps"]), state["approximation"]
    dampings = np.array(found.sweep.dampings)
    place = int(np.argmin(np.abs(np.log(dampings / state["damping"]))))
    curves = {key: np.array(JUDGES[state["judge"]][1](found.sweep.curves[key])) for key in NAMES}
    chosen = {key: values[place] for key, values in found.sweep.curves[name].items()}
    return {
        "dampings": dampings, "curves": curves, "judge": state["judge"], "name": name, "damping": state["damping"],
        "loss": found.about["loss"], **{key: float(chosen[key]) for key in chosen},
    }  # fmt: skip


def light(efficiency: Real) -> str:
    """The traffic light: green from 80 %, yellow from 50 %."""
    return "green" if efficiency >= 0.8 else "yellow" if efficiency >= 0.5 else "red"


def _draw_dashboard(result: dict) -> go.Figure:
    figure = go.Figure(layout=template())
    for name, label in NAMES.items():
        chosen = name == result["name"]
        line = {"color": colour(name), "width": 4 if chosen else 1.5, "dash": "solid" if chosen else "dot"}
        figure.add_scatter(x=result["dampings"], y=result["curves"][name], name=label, mode="lines", line=line)
    figure.add_vline(result["damping"], line={"color": GREY, "dash": "dash", "width": 1})
    figure.update_layout(showlegend=True, legend={"x": 1.0, "y": 1.0}, width=820, height=400)
    figure.update_xaxes(title_text="damping λ", type="log", dtick=1)
    figure.update_yaxes(title_text=JUDGES[result["judge"]][0])
    if result["judge"] in ("efficiency", "cosine"):
        figure.update_yaxes(range=[0, 1.03])
    elif result["judge"] == "best step":
        figure.update_yaxes(type="log")
    return figure


def _dashboard_headline(result: dict) -> tuple[str, str]:
    return f"{100 * result['efficiency']:.0f} %", (
        f"of the possible decrease ({light(result['efficiency'])}): {NAMES[result['name']]} at λ = {result['damping']:g}; "
        f"cosine {result['cosine']:.2f}; best step {result['best_step']:.3g}; the quadratic model promises "
        f"{result['predicted_decrease']:.3g} nats, the loss of {result['loss']:.3g} falls by {result['achieved_decrease']:.3g}"
    )


# ---- the clinic: a softmax regression, of which everything is small

Direction = Callable[[Tensor, Real], Tensor]
HEALTHY = ("exact", "kfac", "diagonal")
FAULTS = ("labels", "no mean", "order", "unused", "damping")
DIAGNOSES = (*HEALTHY, *FAULTS)
LARGE = 1e4  # a damping beside which every Fisher is small


def _solve(matrix: Float[Tensor, "P P"]) -> Direction:
    eye = torch.eye(len(matrix), dtype=F64)
    return lambda gradient, damping: torch.linalg.solve(matrix + damping * eye, gradient)


def _factors(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    block = fisher.kfac_fisher(model, CATEGORICAL, inputs).blocks[0]
    return block.right, block.left


def _order(model, inputs, targets) -> Direction:
    A, G = _factors(model, inputs, targets)
    return _solve(torch.kron(A.contiguous(), G.contiguous()))


def _damped_factors(model, inputs, targets) -> Direction:
    A, G = _factors(model, inputs, targets)

    def direction(gradient: Tensor, damping: Real) -> Tensor:
        left, right = (M + damping * torch.eye(len(M), dtype=F64) for M in (G, A))
        return torch.kron(torch.linalg.inv(left), torch.linalg.inv(right)) @ gradient

    return direction


def _dense(model, inputs, *which) -> Tensor:
    return fisher.dense_fisher(model, CATEGORICAL, inputs, *which).to_dense()


PATIENTS: dict[str, Callable[..., Direction]] = {  # diagnosis → (model, inputs, targets) → preconditioner
    "exact": lambda model, inputs, targets: _solve(_dense(model, inputs)),
    "kfac": lambda model, inputs, targets: _solve(torch.kron(*reversed(_factors(model, inputs, targets)))),
    "diagonal": lambda model, inputs, targets: _solve(torch.diag(_dense(model, inputs).diagonal())),
    "labels": lambda model, inputs, targets: _solve(_dense(model, inputs, "empirical", targets)),
    "no mean": lambda model, inputs, targets: _solve(len(inputs) * _dense(model, inputs)),
    "order": _order,
    "unused": lambda model, inputs, targets: lambda gradient, damping: gradient.clone(),
    "damping": _damped_factors,
}
PROBES = {  # name → what it is
    "efficiency": "efficiency at λ = 0.01, between 0 and 1",
    "best_step": "best step length α* at λ = 0.01; 1 for the exact one",
    "labels": "relative change of the direction when the labels are permuted (the gradient stays)",
    "copies": "relative change of the direction when the data set is copied",
    "large_damping": "λ‖v‖ / ‖g‖ at λ = 10,000, where every (F + λI)⁻¹g is g / λ",
    "one_example": "efficiency if the data set is a single example",
    "spread": "share of v outside of the entry, for a gradient with a single entry that is not 0",
}


def patient(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Direction]:
    """Every preconditioner of the clinic, made from these data."""
    return {name: make(model, inputs, targets) for name, make in PATIENTS.items()}


def examine(model: nn.Module, inputs: Tensor, targets: Tensor, damping: Real = 0.01) -> dict[str, dict[str, float]]:
    """All probes of all preconditioners: diagnosis → probe → number."""
    shuffled, copied = targets.roll(1), (torch.cat([inputs, inputs]), torch.cat([targets, targets]))
    errors = model(inputs).detach().softmax(1) - nn.functional.one_hot(targets, 10)
    extended = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=F64)], 1)
    g = (errors.mT @ extended / len(inputs)).flatten()  # of the mean loss, unit by unit
    first = torch.outer(errors[0], extended[0]).flatten()
    F, F_first = fisher.dense_fisher(model, CATEGORICAL, inputs), fisher.dense_fisher(model, CATEGORICAL, inputs[:1])
    made, relabelled = patient(model, inputs, targets), patient(model, inputs, shuffled)
    twice, alone = patient(model, *copied), patient(model, inputs[:1], targets[:1])
    entry = int(F.diagonal().argmax())
    spike = torch.zeros_like(g)
    spike[entry] = 1.0
    found = {}
    for name, direction in made.items():
        v, w = direction(g, damping), direction(spike, damping)
        change = lambda other, v=v: float((other[name](g, damping) - v).norm() / v.norm())  # noqa: B023, E731
        found[name] = {
            "efficiency": metrics.efficiency(v, g, F, damping),
            "best_step": float(g @ v / (v @ F.matmul(v) + damping * v @ v)),
            "labels": change(relabelled), "copies": change(twice),
            "large_damping": float(LARGE * direction(g, LARGE).norm() / g.norm()),
            "one_example": metrics.efficiency(alone[name](first, damping), first, F_first, damping),
            "spread": float((w - w[entry] * spike).norm() / w.norm()),
        }  # fmt: skip
    return found


def deal(generator: torch.Generator) -> dict[str, str]:
    """Letters A to H for the diagnoses, in an order of the generator's."""
    order = torch.randperm(len(DIAGNOSES), generator=generator).tolist()
    return {letter: DIAGNOSES[place] for letter, place in zip("ABCDEFGH", order, strict=True)}


def clinic(generator: torch.Generator) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """A clinic: letter → diagnosis, and letter → probe → number; 60 digits and weights drawn from the generator."""
    (chosen, model, letters), (inputs, targets) = _drawn(generator), small_digits()
    numbers = examine(model, inputs[chosen], targets[chosen])
    return letters, {letter: numbers[name] for letter, name in letters.items()}


def _drawn(generator: torch.Generator) -> tuple[torch.Tensor, nn.Module, dict[str, str]]:
    """Which digits, the network, and the letters."""
    chosen = torch.randperm(100, generator=generator)[:60]
    model = models.mlp((16, 10), generator=generator, dtype=F64)
    return chosen, model, deal(generator)


SHOWN = 2026  # the seed of the clinic that the card shows


@cache
def _shown() -> tuple[dict, dict]:
    return clinic(torch.Generator().manual_seed(SHOWN))


@cache
def _healthy() -> dict[str, float]:
    """The exact one's numbers, beside which the others are shown."""
    letters, numbers = _shown()
    return numbers[next(letter for letter, name in letters.items() if name == "exact")]


def fault_clinic(state: dict) -> dict:
    """One probe of all eight, and the file of one patient."""
    letters, numbers = _shown()
    name = letters[state["patient"]]
    return {
        "patient": state["patient"], "probe": state["probe"], "file": numbers[state["patient"]],
        "values": np.array([numbers[letter][state["probe"]] for letter in letters]), "letters": list(letters),
        "reference": _healthy()[state["probe"]], "healthy": name in HEALTHY, "diagnosis": name, "open": state["open"],
    }  # fmt: skip


_LOG = ("best_step", "large_damping")


def _draw_clinic(result: dict) -> go.Figure:
    figure, is_log = go.Figure(layout=template()), result["probe"] in _LOG
    colours = [EXACT if letter == result["patient"] else GREY for letter in result["letters"]]
    values = result["values"]
    figure.add_scatter(
        x=result["letters"], y=values, name="patients", mode="markers+text", marker={"color": colours, "size": 13},
        text=["0" if abs(value) < 1e-12 else f"{value:.3g}" for value in values], textposition="top center", cliponaxis=False,
    )  # fmt: skip
    line = {"color": GREY, "dash": "dash", "width": 1}
    figure.add_hline(result["reference"], line=line)
    figure.update_xaxes(title_text="patient (dashed: the exact natural gradient)", showgrid=False)
    title = PROBES[result["probe"]].replace(", where", "<br>where").replace(" when", "<br>when").replace(", for", "<br>for")
    figure.update_yaxes(title_text=title, type="log" if is_log else "linear")
    if not is_log:
        figure.update_yaxes(range=[-0.06, 1.15 * max(1.0, float(values.max()))])
    return figure.update_layout(width=760, height=400, margin={"l": 90, "r": 16, "t": 34, "b": 44})


def _clinic_headline(result: dict) -> tuple[str, str]:
    numbers = result["file"]
    words = (
        f"efficiency of patient {result['patient']}; α* {numbers['best_step']:.3g}; labels move it {numbers['labels']:.0%}, "
        f"copies {numbers['copies']:.0%}; λ‖v‖/‖g‖ {numbers['large_damping']:.3g}; one example {numbers['one_example']:.1%}; "
        f"spread {numbers['spread']:.2g}"
    )
    verdict = f". It is {'healthy' if result['healthy'] else 'faulty'}: {result['diagnosis']}" if result["open"] else ""
    return f"{100 * numbers['efficiency']:.0f} %", words + verdict


def letters_with(diagnoses: Sequence[str]) -> list[str]:
    """The letters of the shown clinic that have one of these diagnoses."""
    letters = _drawn(torch.Generator().manual_seed(SHOWN))[-1]
    return [letter for letter, name in letters.items() if name in diagnoses]


CARDS = (
    Card(
        name="validation_dashboard",
        title="Is this preconditioner good for this step?",
        message="Efficiency and cosine rank approximations differently, and only one of them is about the loss.",
        controls=(
            Control("approximation", "approximation", tuple(NAMES), "identity"),
            Control("steps", "after exact steps", MOMENTS, 10),
            Control("damping", "damping λ", DAMPINGS, 1e-2),
            Control("judge", "judged by", tuple(JUDGES), "efficiency"),
        ),
        compute=dashboard,
        draw=_draw_dashboard,
        headline=_dashboard_headline,
        caption=(
            "One number of six approximations against the damping, on a logarithmic axis; the chosen approximation is drawn "
            "strongly, and the dashed line is the chosen damping."
        ),
        presets={
            "optimal": {"approximation": "block_tridiagonal", "steps": 0},
            "break it": {"approximation": "identity", "steps": 10, "damping": 1e-3},
            "cosine lies": {"approximation": "identity", "steps": 10, "judge": "cosine"},
        },
        prediction=Prediction(
            question="After ten steps the plain gradient has a cosine of 0.93 to the exact natural gradient. What percentage "
            "of the possible decrease does the best step along it reach?",
            answer=lambda r: round(100 * r["efficiency"]),
            unit="percent",
            explanation="Only {answer} percent. The small missing part is where the loss bends little and much can be won.",
        ),
    ),
    Card(
        name="fault_clinic",
        title="Eight anonymous preconditioners",
        message="Five of the eight have a fault. Which, and what is it?",
        controls=(
            Control("patient", "patient", tuple("ABCDEFGH"), "A"),
            Control("probe", "examination", tuple(PROBES), "efficiency"),
            Control("open", "open the file", (False, True), False),
        ),
        compute=fault_clinic,
        draw=_draw_clinic,
        headline=_clinic_headline,
        caption=(
            "One examination of eight preconditioners of the same softmax regression, the chosen one in blue; the dashed line "
            "is what the exact natural gradient shows."
        ),
        presets={
            "optimal": {"patient": letters_with(["exact"])[0], "open": True},
            "break it": {"patient": letters_with(["order"])[0], "probe": "one_example"},
        },
        prediction=Prediction(
            question="One of the eight reaches less than a third of the possible decrease and is nevertheless free of faults. "
            "Which kind of approximation can that be?",
            options=("K-FAC", "the diagonal of the Fisher", "none: such a result is a fault"),
            answer=lambda r: "the diagonal of the Fisher",
            explanation="The answer: {answer}. Weak is not wrong: the examinations, not the efficiency, find the faults.",
        ),
    ),
)  # fmt: skip
