"""What the panel shows, without a panel: against the dense Fisher."""

import math

import numpy as np
import pytest
import torch


@pytest.fixture
def default_net():
    import natgrad_lab as ng

    return ng.models.mlp((64, 32, 32, 10)), ng.likelihoods.Categorical(), ng.datasets.digits().inputs[:50]


def test_the_default_net_shows_450_nonzero_eigenvalues(default_net):
    from natgrad_lab.widgets import compute

    model, likelihood, inputs = default_net
    shown = compute({"model": model, "likelihood": likelihood, "inputs": inputs, "scale": "log", "damping": 0.01})
    assert (shown["rank"], shown["dim"]) == (450, 3466)
    assert shown["picture"].values.shape == (300, 300)
    values = shown["eigenvalues"]
    assert (np.diff(values) <= 0).all()
    assert shown["condition_number"] == pytest.approx(values[0] / values[449])
    assert shown["damped_condition_number"] == pytest.approx((values[0] + 0.01) / 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectrum_and_picture_are_those_of_the_dense_fisher(dtype):
    import natgrad_lab as ng
    from natgrad_lab.widgets import compute

    model, likelihood = ng.models.mlp((3, 4, 2), dtype=dtype), ng.likelihoods.Gaussian()
    inputs = torch.randn(20, 3, dtype=dtype)
    dense = ng.fisher.dense_fisher(model.double(), likelihood, inputs.double()).to_dense().numpy()
    model.to(dtype)
    state = {"model": model, "likelihood": likelihood, "inputs": inputs, "damping": 0.0, "scale": "signed"}
    shown = compute(state)
    expected = np.linalg.eigvalsh(dense)[::-1]
    count = min(26, len(shown["eigenvalues"]))
    np.testing.assert_allclose(shown["eigenvalues"][:count], expected[:count], atol=1e-6 * expected[0])
    # The picture is in float32: six digits of the largest entry.
    np.testing.assert_allclose(shown["picture"].values, dense, atol=1e-6 * np.abs(dense).max())
    part = compute({**state, "picture": ("0", "2")})["picture"]
    np.testing.assert_allclose(part.values, dense[:16, 16:], atol=1e-6 * np.abs(dense).max())


def test_the_model_is_left_alone(default_net):
    from natgrad_lab.widgets import compute

    model, likelihood, inputs = default_net
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compute({"model": model, "likelihood": likelihood, "inputs": inputs, "scale": "log", "damping": 0.01})
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_singular_fisher_without_damping_has_no_finite_condition(default_net):
    from natgrad_lab.widgets.state import damped_condition_number

    assert damped_condition_number(torch.tensor([2.0, 1.0]), 0.0, 3) == math.inf
    assert damped_condition_number(torch.tensor([2.0, 1.0]), 0.0, 2) == 2.0
    assert damped_condition_number(torch.tensor([2.0, 1.0]), 1.0, 3) == 3.0


def test_zero_fisher():
    import natgrad_lab as ng
    from natgrad_lab.widgets import compute

    model = ng.models.mlp((3, 2), bias=False)
    state = {"model": model, "likelihood": ng.likelihoods.Categorical(), "inputs": torch.zeros(4, 3), "scale": "log"}
    shown = compute({**state, "damping": 0.5})
    assert shown["rank"] == 0 and math.isnan(shown["condition_number"]) and shown["damped_condition_number"] == 1.0


def test_refused(default_net):
    import natgrad_lab as ng
    from natgrad_lab.widgets import compute
    from natgrad_lab.widgets.state import probe_fisher

    model, likelihood, inputs = default_net
    state = {"model": model, "likelihood": likelihood, "inputs": inputs, "scale": "log", "damping": 0.01}
    with pytest.raises(ValueError, match="no layer '9'; its layers are '0', '2', '4'"):
        compute({**state, "picture": ("0", "9")})
    with pytest.raises(ValueError, match="no scale 'lin'"):
        compute({**state, "scale": "lin"})
    with pytest.raises(ValueError, match="dense Fisher of 23,875 parameters .* takes up to 12,000"):
        probe_fisher(ng.models.mlp((64, 125, 125)), likelihood, inputs)


def test_picture_choices_name_every_pair_of_layers_once():
    import natgrad_lab as ng
    from natgrad_lab.widgets.state import picture_choices

    labels, choices = zip(*picture_choices(ng.ParameterLayout(ng.models.mlp((64, 32, 32, 10)))), strict=True)
    assert choices == ("whole", ("0", "0"), ("0", "2"), ("0", "4"), ("2", "2"), ("2", "4"), ("4", "4"))
    assert labels[0] == "whole, 3,466 × 3,466" and labels[-1] == "layer 4 × layer 4, 330 × 330"
    assert len(picture_choices(ng.ParameterLayout(ng.models.mlp((3, 2))))) == 1


def test_only_the_worker_gives_up_a_core(monkeypatch):
    import threading

    from natgrad_lab.experiments import ExperimentConfig
    from natgrad_lab.widgets.training import TrainingProblem, begin_config

    monkeypatch.setattr("os.cpu_count", lambda: 3)
    before, seen = torch.get_num_threads(), {}
    torch.set_num_threads(4)
    try:
        problem = TrainingProblem(begin_config(ExperimentConfig()))

        def work():
            problem.reset(method="sgd", lr=0.1, damping=0.1, scale="log", picture="whole")
            seen["worker"] = torch.get_num_threads()

        for name, target in (("", work), ("later", lambda: seen.update(later=torch.get_num_threads()))):
            thread = threading.Thread(target=target, name=name)
            thread.start()
            thread.join()
        assert seen == {"worker": 2, "later": 4} and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "value, text",
    [(227177.1, "2.3 × 10⁵"), (0.0, "0.0 × 10⁰"), (0.01, "1.0 × 10⁻²"), (9.96, "1.0 × 10¹"), (math.inf, "∞"), (math.nan, "–")],
)
def test_scientific(value, text):
    from natgrad_lab.widgets.text import scientific

    assert scientific(value) == text


def test_the_first_look_refuses_a_model_whose_weights_act_twice():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x):
            return torch.tanh(self.layer(x)) @ self.layer.weight

    from natgrad_lab.errors import UnsupportedLayerError
    from natgrad_lab.likelihoods import Categorical
    from natgrad_lab.widgets.state import probe_fisher

    with pytest.raises(UnsupportedLayerError, match="tied weights"):
        probe_fisher(Tied(), Categorical(), torch.rand(4, 3))
