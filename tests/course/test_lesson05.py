"""Lesson 05: its Fisher in white coordinates against the Fisher of a network that has them, and its kept curves."""

import json

import pytest
import torch

from natgrad_lab import environment, likelihoods
from natgrad_lab.course.cards import lesson05
from natgrad_lab.course.measured import measured
from natgrad_lab.fisher import dense_fisher
from natgrad_lab.optimizers.whitened import WhitenedNetwork


class Coordinates(torch.nn.Module):
    """The network in (V, d), spelled out: its parameters are V and d, so that its Fisher is that of (V, d)."""

    def __init__(self, epsilon, centred, data):
        super().__init__()
        net = lesson05.network(data)
        self.layers, self.fixed = torch.nn.ModuleList(), []
        for layer, received in zip((m for m in net["model"] if isinstance(m, torch.nn.Linear)), net["received"], strict=True):
            U, c = lesson05.whitening(received, epsilon, centred)
            white = torch.nn.Linear(len(c), len(layer.weight), dtype=torch.float64)
            with torch.no_grad():
                white.weight.copy_(layer.weight @ torch.linalg.inv(U))
                white.bias.copy_(layer.bias + layer.weight @ c)
            self.layers.append(white)
            self.fixed.append((U, c))

    def forward(self, x):
        for place, (layer, (U, c)) in enumerate(zip(self.layers, self.fixed, strict=True)):
            x = layer((x - c) @ U.mT)
            x = x.tanh() if place < 2 else x
        return x


@pytest.mark.parametrize("epsilon, centred, data", [(1e-3, True, "digits"), (1e-1, False, "white noise")])
def test_the_fisher_after_is_that_of_a_network_with_these_parameters(epsilon, centred, data):
    net, spelled = lesson05.network(data), Coordinates(epsilon, centred, data)
    want = dense_fisher(spelled, likelihoods.Categorical(), net["received"][0]).to_dense()
    got = lesson05.fisher_after(epsilon, centred, (0, 1, 2), data)
    assert (got - want).norm() < 1e-9 * want.norm()  # products with U of norm 30 and sums over 600 examples, float64
    assert (spelled(net["received"][0]) - net["outputs"]).norm() < 1e-12 * net["outputs"].norm()


def test_whitening_is_the_packages():
    net = lesson05.network("digits")
    network = WhitenedNetwork(net["model"])
    network.reparametrize(net["received"][0], 1e-4)
    for layer, received in zip(network.whitened().values(), net["received"], strict=True):
        U, c = lesson05.whitening(received, 1e-4, True)
        assert torch.allclose(U.mT @ U, layer.U.mT @ layer.U, rtol=1e-8) and torch.allclose(c, layer.c)


def test_kept_curves_are_those_of_the_reproductions():
    root = environment.checkout() / "benchmarks" / "reproduce"
    kept = json.loads((root / "prong-fig2.json").read_text(encoding="utf-8"))
    for ours, theirs in zip(measured("prong_fig2")["seeds"], kept["seeds"], strict=True):
        assert ours["training"] == theirs["training"] and ours["before"] == theirs["before"]
    for name, problem, results in (("sngd_races", "digits", ("sngd-batchnorm", "sngd-mnist")),
                                   ("cnn_races", "textures", ("kfc-cnn", "prong-fig4-cifar"))):  # fmt: skip
        races = measured(name)
        for result in results:
            kept = json.loads((root / f"{result}.json").read_text(encoding="utf-8"))
            assert races["verdicts"][result] == kept["verdict"]["word"]
        first = json.loads((root / f"{results[0]}.json").read_text(encoding="utf-8"))
        for entrant, curves in races["curves"].items():
            if entrant in first["seeds"][0]["curves"][problem]:
                assert curves == [seed["curves"][problem][entrant] for seed in first["seeds"]]


def test_the_grid_holds_every_pair_and_its_best_is_no_worse_than_any():
    grid = measured("prong_grid")["curves"]
    cells = {(e, p): lesson05.cell(e, p)["errors"][-1] for e in lesson05.START for p in lesson05.PERIODS}
    assert len(cells) == 20 and lesson05.cell(*lesson05.best_cell())["errors"][-1] == min(cells.values())
    assert all(curve["updates"][-1] == 400 for curve in grid.values())
