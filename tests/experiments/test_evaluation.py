"""Errors on whole sets: the numbers by hand, the moments, and that measuring changes nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_networks import pictures
from torch import nn

from natgrad_lab import datasets, experiments
from natgrad_lab.experiments import ExperimentConfig, RunFolder, evaluate, prepare, run
from natgrad_lab.experiments import evaluation as module
from natgrad_lab.likelihoods import Bernoulli, Categorical, Gaussian

TINY = ExperimentConfig(
    sizes=(64, 5, 10), num_examples=24, batch_size=8, steps=7, method="sgd", lr=0.05, dtype="float64", device="cpu"
)


def by_hand(kind, f, y):
    """(loss, error) from outputs and targets, in NumPy."""
    if kind == "categorical":
        shifted = f - f.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        nll = -np.take_along_axis(log_p, y[..., None], -1)[..., 0]
        return nll.reshape(len(f), -1).sum(1).mean(), (f.argmax(-1) != y).mean()
    if kind == "bernoulli":
        p = 1 / (1 + np.exp(-f))
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1).mean(), ((y - p) ** 2).sum(1).mean()
    return ((y - f) ** 2).sum(1).mean() / (2 * 0.25), ((y - f) ** 2).sum(1).mean()


LIKELIHOODS = {"categorical": Categorical(), "bernoulli": Bernoulli(), "gaussian": Gaussian(0.25)}


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("kind, shape", [("categorical", (9, 3)), ("categorical", (9, 4, 3)), ("bernoulli", (9, 3)),
                                         ("gaussian", (9, 3))])  # fmt: skip
def test_loss_and_error_are_those_by_hand_in_any_chunks(kind, shape, chunk, generator, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    outputs = torch.randn(shape, generator=generator)
    targets = torch.rand(shape, generator=generator)
    if kind == "categorical":
        targets = torch.randint(3, shape[:-1], generator=generator)
    found = module.loss_and_error(nn.Identity(), LIKELIHOODS[kind], outputs, targets)
    assert found == pytest.approx(by_hand(kind, outputs.numpy(), targets.numpy()), rel=1e-12)  # rounding of sums


def test_measuring_leaves_no_trace(tmp_path):
    """Dropout is off while measured and on again; the run is the same bit for bit with and without."""
    plain, measured = list(run(TINY)), list(run(replace(TINY, evaluate_every=2)))
    assert [record.loss for record in plain] == [record.loss for record in measured]
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).train()
    model[0].eval()
    inputs, targets, state = torch.randn(5, 3), torch.zeros(5, 2), torch.get_rng_state()
    model[0].train()
    first = module.loss_and_error(model, Gaussian(), inputs, targets)
    assert first == module.loss_and_error(model, Gaussian(), inputs, targets) and torch.equal(state, torch.get_rng_state())
    assert model.training and model[0].training and model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_moments_and_the_numbers_of_a_run(tmp_path, monkeypatch):
    config = replace(TINY, evaluate_every=3, test_fraction=0.2)
    training, seen = prepare(config), []
    for record in run(config, training, folder=tmp_path):
        if record.step % 3 == 0:
            logits = training.model(training.test[0]).detach().numpy()
            seen += by_hand("categorical", logits, training.test[1].numpy())
    evaluations = RunFolder(tmp_path).evaluations()
    assert list(map(repr, evaluations)) == list(map(repr, training.evaluations))
    assert [each.step for each in evaluations] == [0, 3, 6] and len(training.test[0]) == round(0.2 * 1797)
    kept = [value for each in evaluations[1:] for value in (each.test_loss, each.test_error)]
    assert kept == pytest.approx(seen, rel=1e-12)
    full = prepare(replace(config, batch_size=None))
    assert evaluate(full).train_loss == pytest.approx(next(run(replace(config, batch_size=None), full)).loss, rel=1e-12)


def test_a_test_part_of_its_own_is_taken_and_the_first_so_many(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "pictures", pictures)
    config = ExperimentConfig(dataset="pictures", model="convnet", evaluate_every=1, dtype="float64", device="cpu")
    training = prepare(config)
    assert torch.equal(training.test[0], pictures(torch.float64, "test").inputs)
    few, (inputs, targets) = evaluate(training, 4), training.test
    loss = training.likelihood.loss(training.model(inputs[:4]), targets[:4]).item()
    assert few.test_loss == pytest.approx(loss, rel=1e-12)
    assert prepare(replace(config, evaluate_every=None)).test is None


def test_without_a_test_set_its_numbers_are_nan():
    found = evaluate(prepare(TINY))
    assert math.isnan(found.test_loss) and math.isnan(found.test_error) and math.isfinite(found.train_error)


def test_the_averaged_iterate_is_measured_beside_the_parameters():
    training = prepare(TINY)
    own = [parameter.detach().clone() for parameter in training.model.parameters()]

    class Averaged:
        averaging = True

        def averaged(self):
            from contextlib import contextmanager

            @contextmanager
            def lend():
                with torch.no_grad():
                    [parameter.zero_() for parameter in training.model.parameters()]
                    yield
                    [p.copy_(old) for p, old in zip(training.model.parameters(), own, strict=True)]

            return lend()

    training.optimizer = Averaged()
    found = evaluate(training)
    assert found.averaged_train_loss == pytest.approx(math.log(10), rel=1e-12) != found.train_loss


def test_an_evaluation_lost_by_a_stop_is_made_again(tmp_path, monkeypatch):
    """Ctrl-C falls into the measurement after step 3: no checkpoint claims that step, and the file ends up the same."""
    config = replace(TINY, evaluate_every=3)
    whole = prepare(config)
    list(run(config, whole))
    steps = run(config, folder=tmp_path, checkpoint_every=2)
    next(steps), next(steps)

    def interrupted(*data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiments.training, "loss_and_error", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(steps)
    assert RunFolder(tmp_path).saved_step() == 2 and len(RunFolder(tmp_path).records()) == 3
    list(run(config, folder=tmp_path, resume=True))
    assert list(map(repr, RunFolder(tmp_path).evaluations())) == list(map(repr, whole.evaluations))
