"""The race and the dashboard of conditioning, against a front end that is not there and against dense matrices."""

import copy
import threading

import numpy as np
import pytest
import torch
from toy import wait_until

import natgrad_lab as ng
from natgrad_lab.likelihoods import Categorical, Gaussian


def data(count=20):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def network():
    return ng.models.mlp((4, 5, 3))


@pytest.fixture
def race(page):
    made = []

    def race(*args, **options):
        panel = ng.widgets.race(*args, **options)
        made.append(panel)
        page.ready(panel.plot)
        assert panel.run.wait()
        return panel

    yield race
    for panel in made:
        panel.close()


def curves(panel):
    return {entrant["name"]: entrant for entrant in panel.run.latest.arrays["entrants"]}


# ---- the race


def test_all_start_from_the_same_weights_and_the_model_is_left_alone(page, race):
    model = network()
    before = copy.deepcopy(model.state_dict())
    panel = race(model, Categorical(), data(), {"sgd": {"lr": 0.1}, "fast": {"method": "sgd", "lr": 0.7}, "kfac": {}})
    panel.run.step(9)
    assert panel.run.wait()
    firsts = {entrant["losses"][0] for entrant in curves(panel).values()}
    with torch.no_grad():
        expected = float(Categorical().loss(model(data()[0]), data()[1]))
    assert len(firsts) == 1 and firsts.pop() == pytest.approx(expected, rel=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_curve_of_sgd_is_gradient_descent(page, race):
    inputs, targets = data()
    model = network()
    panel = race(model, Categorical(), (inputs, targets), {"sgd": {"lr": 0.3}})
    panel.run.step(4)
    assert panel.run.wait()
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    entrant = curves(panel)["sgd"]
    np.testing.assert_allclose(entrant["losses"], losses, rtol=1e-12)
    assert list(entrant["updates"]) == [0, 1, 2, 3] and list(entrant["examples"]) == [0, 20, 40, 60]
    assert (np.diff(entrant["seconds"]) > 0).all()


def test_the_next_update_goes_to_the_one_that_spent_least(race):
    panel = race(network, Categorical(), data(), ("sgd", "kfac", "exact_ngd"))
    panel.run.step(60)
    assert panel.run.wait()
    spent = [entrant["spent"] for entrant in curves(panel).values()]
    longest = max(entrant["spent"] / entrant["done"] for entrant in curves(panel).values())
    assert sum(entrant["done"] for entrant in curves(panel).values()) == 60
    assert max(spent) - min(spent) < 60 * longest


def test_one_that_diverges_stands_still_and_the_others_go_on(page, race):
    inputs, _ = data()
    targets = torch.randn(20, 1)
    methods = {"sgd": {"lr": 1e-3}, "wild <b>": {"method": "sgd", "lr": 1e160}}
    panel = race(lambda: ng.models.mlp((4, 1)), Gaussian(), (inputs, targets), methods)
    panel.run.step(40)
    assert panel.run.wait() and panel.run.state == "paused"
    assert "diverged" in curves(panel)["wild <b>"]["ended"] and curves(panel)["sgd"]["ended"] == ""
    assert "wild &lt;b&gt;" in panel.table.value and "<b>" not in panel.table.value
    assert panel.headline.value.count("sgd leads") == 1


def test_when_nobody_is_left_the_race_is_over(page, race):
    inputs, _ = data()
    panel = race(lambda: ng.models.mlp((4, 1)), Gaussian(), (inputs, torch.randn(20, 1)), {"sgd": {"lr": 1e160}})
    page.click(panel.start)
    assert panel.run.wait(30) and panel.run.state == "paused"
    assert "no method is left" in panel.error.value and panel.start.disabled
    page.click(panel.reset)
    assert panel.run.wait() and not panel.start.disabled and panel.error.value == ""


def test_run_pause_reset_and_axes(page, race):
    panel = race(network, Categorical(), data(), ("sgd", "adam"))
    assert "press Run" in panel.headline.value and panel.start.description == "Run"
    page.click(panel.start)
    assert wait_until(lambda: panel.run.latest.step > 5) and panel.start.description == "Pause"
    page.click(panel.start)
    assert panel.run.wait() and panel.run.state == "paused"
    page.choose(panel.axis, "updates of the parameters")
    header, buffers = page.sent(panel.plot)[-1]
    assert header["stamp"].startswith("axis=updates") and [t["name"] for t in header["figure"]["data"]] == ["sgd", "adam"]
    x = header["figure"]["data"][0]["x"]
    assert np.array_equal(np.frombuffer(buffers[x["$buffer"]], x["dtype"]), curves(panel)["sgd"]["updates"])
    page.click(panel.reset)
    assert panel.run.wait() and panel.run.latest.step == 0 and curves(panel)["sgd"]["done"] == 0


def test_a_race_made_again_leaves_one_thread(race):
    first = race(network, Categorical(), data(), ("sgd",))
    race(network, Categorical(), data(), ("sgd",))
    assert first.run.state == "closed" and ng.widgets.running() == ("race",)
    assert sum(thread.name == "natgrad-live-race" for thread in threading.enumerate()) == 1


def test_curves_are_thinned(monkeypatch):
    from natgrad_lab.widgets import race_problem

    monkeypatch.setattr(race_problem, "MOST_POINTS", 8)
    entrant = race_problem.Entrant("a", "sgd")
    for number in range(100):
        entrant.add(float(number), 0.5, 10)
    assert len(entrant.losses) <= 8 and entrant.updates[0] == 0 and entrant.done == 100 and entrant.newest == 99
    assert entrant.losses == [float(update) for update in entrant.updates]
    assert entrant.examples == [10 * update for update in entrant.updates] and entrant.spent == 50


def test_names_at_the_ends_of_lines_do_not_touch():
    from natgrad_lab.widgets.race_plot import _apart

    places = [0.0, 0.01, 1.0, 0.02]
    shifts = _apart(places, 1.0)
    ends = sorted(300 * place + shift for place, shift in zip(places, shifts, strict=True))
    assert min(np.diff(ends)) >= 16 - 1e-9 and shifts[0] == shifts[2] == 0
    assert _apart([0.5, 0.5], 0.0) == [0.0, 16.0] and _apart([], 1.0) == []


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"model": 3}, TypeError, "must be a torch.nn.Module"),
        ({"model": lambda: "x"}, TypeError, "got str"),
        ({"data": torch.zeros(3)}, TypeError, "inputs, targets"),
        ({"data": (torch.zeros(5, 4).double(), torch.zeros(4).long())}, ValueError, "each of the 5 inputs; got 4"),
        ({"data": (torch.zeros(5, 4).double(), [1, 2, 0, 1, 2])}, (TypeError, ValueError), "got list"),
        ({"data": (torch.zeros(5, 4).float(), torch.zeros(5).long())}, ValueError, "float32"),
        ({"data": (torch.zeros(5, 4).double(), torch.full((5,), 7))}, ValueError, "7"),
        ({"data": (torch.full((5, 4), float("nan")).double(), torch.zeros(5).long())}, Exception, "NaN"),
        ({"methods": ("sgdd",)}, ValueError, "Did you mean 'sgd'"),
        ({"methods": "sgd"}, TypeError, "methods are names"),
        ({"methods": ()}, TypeError, "methods are names"),
        ({"methods": {"kfac": {"dampng": 1}}}, ValueError, "does not take these options"),
        ({"batch_size": 50}, ValueError, "from 1 to the 20 examples"),
        ({"likelihood": torch.nn.CrossEntropyLoss()}, TypeError, "likelihood"),
    ],
)
def test_what_cannot_race_is_refused_before_training(change, error, words):
    from natgrad_lab.widgets.race_panel import race

    given = {"model": network, "likelihood": Categorical(), "data": data(), "methods": ("sgd",), "batch_size": None} | change
    is_about_types = error is not ValueError  # the tests' checker of types may speak first
    with pytest.raises(error, match=None if is_about_types else words):
        race(given["model"], given["likelihood"], given["data"], given["methods"], batch_size=given["batch_size"])
    assert not any(thread.name.startswith("natgrad-live") for thread in threading.enumerate())


# ---- conditioning


def dense(model, inputs):
    """F and its rows, by the formula, in NumPy."""
    rows = []
    for x in inputs:
        outputs = model(x[None])[0]
        p = torch.softmax(outputs, 0).detach().numpy()
        jacobian = []
        for c in range(3):
            gradients = torch.autograd.grad(outputs[c], list(model.parameters()), retain_graph=True)
            jacobian.append(np.concatenate([gradient.numpy().ravel() for gradient in gradients]))
        jacobian = np.array(jacobian)
        rows.append(jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian)
    return np.mean(rows, 0)


@pytest.fixture
def shown(page):
    model, inputs = network(), data(7)[0]
    panel = ng.widgets.conditioning(model, Categorical(), inputs)
    page.ready(panel.plot)
    assert panel.wait()
    yield panel, model, inputs
    panel.close()


def flat(structure_fisher, model, inputs, **options):
    """An approximation in the order of the Fisher of this package, and the Fisher itself, dense."""
    fisher = ng.fisher.dense_fisher(model, Categorical(), inputs).to_dense().numpy()
    return structure_fisher(model, Categorical(), inputs, **options).to_dense().numpy(), fisher


def test_condition_numbers_are_those_of_the_dense_matrix(shown):
    panel, model, inputs = shown
    F, λ = dense(model, inputs), 1e-2
    values = np.linalg.eigvalsh(F)[::-1]
    rank = 7 * 2  # two of three probabilities are free, for each of 7 examples
    result = panel.conditioning.result(λ)
    assert result["rank"] == rank and result["dim"] == len(F)
    assert result["conditions"]["F"] == pytest.approx(values[0] / values[rank - 1], rel=1e-6)
    assert result["damped"] == pytest.approx((values[0] + λ) / (values[-1] + λ), rel=1e-9)
    np.testing.assert_allclose(result["spectra"]["F"], values[:rank], rtol=1e-7, atol=1e-12 * values[0])


@pytest.mark.parametrize(
    "name, estimate, options",
    [
        ("K-FAC", ng.fisher.kfac_fisher, {}), ("diagonal", ng.fisher.diagonal_fisher, {}),
        ("PRONG's whitening", ng.fisher.one_sided_input_fisher, {"scale": "one"}),
    ],
)  # fmt: skip
def test_preconditioned_spectra(shown, name, estimate, options):
    panel, model, inputs = shown
    M, F = flat(estimate, model, inputs, **options)
    for λ in (1e-4, 1e-1):
        ours = panel.conditioning.preconditioned(name, λ).numpy()
        theirs = np.sort(np.linalg.eigvals(np.linalg.solve(M + λ * np.eye(len(M)), F)).real)[::-1]
        np.testing.assert_allclose(ours[:14], theirs[:14], rtol=1e-6, atol=1e-10 * theirs[0])


def test_layers(shown):
    panel, model, inputs = shown
    F, λ = ng.fisher.dense_fisher(model, Categorical(), inputs).to_dense().numpy(), 1e-2
    for (_, size, _, damped), layer in zip(
        panel.conditioning.result(λ)["layers"], ng.ParameterLayout(model).layers, strict=True
    ):
        values = np.linalg.eigvalsh(F[layer.slice, layer.slice])
        assert size == layer.size and damped == pytest.approx((values[-1] + λ) / (max(values[0], 0) + λ), rel=1e-9)


def test_the_slider_of_the_damping(page, shown):
    from natgrad_lab.widgets import text

    panel, *_ = shown
    assert "κ = " in panel.headline.value and "layer 0" in panel.table.value
    page.choose(panel.damping, text.scientific(1e-4))
    assert panel.wait() and page.sent(panel.plot)[-1][0]["stamp"] == "damping=0.0001"
    expected = panel.conditioning.result(1e-4)
    assert text.scientific(expected["damped"]) in panel.headline.value
    assert text.scientific(expected["conditions"]["K-FAC"]) in panel.table.value
    assert wait_until(lambda: not any(thread.name.startswith("natgrad-card") for thread in threading.enumerate()))


def test_a_model_whose_fisher_is_zero_has_no_condition_number(page):
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model[2].requires_grad_(False)  # what remains cannot reach the outputs
    panel = ng.widgets.conditioning(model, Categorical(), torch.zeros(3, 4))
    assert panel.wait() and panel.error.value == "" and "κ = –" in panel.headline.value
    panel.close()


def test_too_much_and_unfit_is_refused():
    with pytest.raises(ValueError, match=r"up to 3,000 rows.*Pass fewer examples, as inputs\[:1500\]"):
        ng.widgets.conditioning(network(), Categorical(), torch.randn(1600, 4))
    with pytest.raises(ValueError, match="no Fisher without targets 'empirical'"):
        ng.widgets.conditioning(network(), Categorical(), torch.randn(5, 4), "empirical")
