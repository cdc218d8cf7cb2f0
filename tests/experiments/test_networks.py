"""Networks, likelihoods and targets that go with data; batches that grow; a network from a file."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from natgrad_lab import datasets, models
from natgrad_lab.datasets import Dataset
from natgrad_lab.experiments import MODELS, ExperimentConfig, prepare, run
from natgrad_lab.experiments.networks import network

TINY = ExperimentConfig(num_examples=24, steps=3, method="sgd", lr=0.01, dtype="float64", device="cpu")


def sequences(length=5, **options):
    """Word numbers, the next word as target."""
    words = torch.randint(4, (30, length + 1), generator=torch.Generator().manual_seed(0))
    return Dataset("sequences", words[:, :-1], words[:, 1:], classes=tuple("abcd"))


def pictures(dtype=None, split="train"):
    """Two-coloured pictures with a test part."""
    generator = torch.Generator().manual_seed(len(split))
    inputs = torch.rand(20 if split == "train" else 7, 2 * 4 * 6, generator=generator, dtype=dtype)
    return Dataset("pictures", inputs, torch.arange(len(inputs)) % 3, tuple("abc"), image_shape=(2, 4, 6))


@pytest.fixture
def more_data(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "sequences", sequences)
    monkeypatch.setitem(datasets.DATASETS, "pictures", pictures)


@pytest.mark.parametrize(
    "model, dataset, likelihood, shape",
    [
        ("mlp", "digits", "Categorical", (10,)),
        ("mlp", "linear_teacher", "Gaussian", (3,)),
        ("deep_linear", "linear_teacher", "Gaussian", (3,)),
        ("autoencoder", "digits", "Bernoulli", (64,)),
        ("autoencoder", "gaussian_blobs", "Gaussian", (2,)),  # inputs outside [0, 1]
        ("convnet", "digits", "Categorical", (10,)),
        ("convnet", "pictures", "Categorical", (3,)),
        ("lstm", "sequences", "Categorical", (5, 4)),
    ],
)
def test_every_model_is_built_for_the_data_and_trains(model, dataset, likelihood, shape, more_data):
    config = replace(TINY, model=model, dataset=dataset, num_examples=16, evaluate_every=1)
    training = prepare(config)
    assert type(training.likelihood).__name__ == likelihood
    assert training.model(training.inputs[:6]).shape == (6, *shape)
    assert all(parameter.dtype == torch.float64 for parameter in training.model.parameters())
    if MODELS[model].is_autoencoder:
        assert training.targets is training.inputs
    losses = [record.loss for record in run(config, training)]
    assert losses[-1] < losses[0] and [each.step for each in training.evaluations] == [0, 1, 2, 3]


def test_the_autoencoder_of_784_pixels_is_the_classic_one():
    data = Dataset("pixels", torch.zeros(2, 784), torch.zeros(2, 784))
    made = network("autoencoder", data)
    assert [m.out_features for m in made if isinstance(m, nn.Linear)] == [1000, 500, 250, 30, 250, 500, 1000, 784]
    assert sum(parameter.numel() for parameter in made.parameters()) == 2_837_314
    assert isinstance(made[1], nn.Sigmoid)


@pytest.mark.parametrize("model, sizes, same", [
    ("mlp", (64, 7, 10), lambda g: models.mlp((64, 7, 10), generator=g)),
    ("deep_linear", (64, 7, 10), lambda g: models.deep_linear((64, 7, 10), generator=g)),
    ("autoencoder", (64, 9, 4), lambda g: models.autoencoder((64, 9, 4), generator=g)),
    ("convnet", (3, 5), lambda g: models.convnet((1, 8, 8), (3, 5), 10, generator=g)),
])  # fmt: skip
def test_widths_and_seed_reach_the_constructor(model, sizes, same):
    ours = prepare(replace(TINY, model=model, sizes=sizes, seed=5)).model
    theirs = same(torch.Generator().manual_seed(5))
    assert [(p.shape, p.tolist()) for p in ours.parameters()] == [(p.shape, p.tolist()) for p in theirs.parameters()]


@pytest.mark.parametrize("choices, words", [
    ({"model": "mlpp"}, "no model 'mlpp'. Did you mean 'mlp'"),
    ({"model": "lstm"}, r"'lstm' needs sequences, .*digits has inputs \(1797, 64\)"),
    ({"model": "convnet", "dataset": "gaussian_blobs"}, "'convnet' needs images; gaussian_blobs has none"),
    ({"model": "mlp", "dataset": "sequences"}, "needs rows of numbers; sequences has inputs .*Take lstm"),
    ({"model": "autoencoder", "sizes": (63, 5)}, r"sizes \(63, 5\) do not fit digits"),
    ({"model": "lstm", "dataset": "sequences", "sizes": (3, 4, 5)}, r"\(embedding, hidden\), hidden once for every layer"),
    ({"model": "lstm", "dataset": "sequences", "sizes": (3,)}, r"\(embedding, hidden\), hidden once for every layer"),
    ({"model": "lstm", "dataset": "sequences", "activation": "relu"}, "model 'lstm' takes no activation"),
    ({"model": "convnet", "bias": False}, "model 'convnet' takes no bias"),
    ({"data_options": {"colour": "red"}}, "colour"),
    ({"test_fraction": 0.1, "dataset": "pictures"}, "pictures has a test part of its own"),
    ({"test_fraction": 2.0}, "test_fraction must leave"),
    ({"options": {"generator": torch.Generator()}}, "options must hold plain values"),
    ({"batch_growth": (5,)}, r"batch_growth must be \(first, until\)"),
    ({"batch_growth": (5, 1)}, r"batch_growth must be \(first, until\)"),
    ({"batch_growth": (5, 9), "batch_size": 4}, "more than batch_size = 4"),
    ({"batch_growth": (25, 9)}, "begins with 25 examples, but there are only 24"),
    ({"evaluate_every": 0}, "evaluate_every must be an integer >= 1; got 0"),
    ({"seed": -1}, "seed must be an integer >= 0; got -1"),
])  # fmt: skip
def test_what_does_not_fit_is_named(choices, words, more_data):
    config = {"num_examples": 24, "device": "cpu"} | choices
    if "dataset" in choices:
        config.pop("num_examples")
    if choices.get("model") == "lstm":
        config["num_examples"] = None
    with pytest.raises(ValueError, match=words):
        prepare(ExperimentConfig(**config))


def test_two_layers_of_an_lstm(more_data):
    made = prepare(replace(TINY, model="lstm", dataset="sequences", sizes=(3, 6, 6))).model
    assert (made.recurrent.num_layers, made.recurrent.hidden_size, made.embedding.embedding_dim) == (2, 6, 3)
    assert made.embedding.num_embeddings == 4


def test_options_of_the_data_set_arrive():
    training = prepare(ExperimentConfig(dataset="gaussian_blobs", data_options={"dim": 5, "num_classes": 4}, device="cpu"))
    assert training.inputs.shape == (300, 5) and training.model[-1].out_features == 4


# ---- a network of the user's own


SOURCE = """
import torch
from torch import nn
def make():
    return nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))
net = make()
"""


def test_a_network_from_a_file_depends_on_the_seed_alone(tmp_path):
    (tmp_path / "my.py").write_text(SOURCE)
    config, before = replace(TINY, model=f"{tmp_path / 'my.py'}:make"), torch.get_rng_state()
    first, again, other = (prepare(replace(config, seed=seed)).model for seed in (1, 1, 2))
    assert torch.equal(first[0].weight, again[0].weight) and not torch.equal(first[0].weight, other[0].weight)
    assert first[0].weight.dtype == torch.float64 and torch.equal(torch.get_rng_state(), before)
    assert isinstance(prepare(replace(config, model=f"{tmp_path / 'my.py'}:net")).model, nn.Sequential)
    assert len(list(run(config))) == 3


def test_a_network_from_a_file_says_its_own_widths(tmp_path):
    (tmp_path / "my.py").write_text(SOURCE)
    with pytest.raises(ValueError, match="says its own"):
        prepare(replace(TINY, model=f"{tmp_path / 'my.py'}:make", sizes=(64, 10)))


def test_a_changed_file_is_no_resume_and_is_not_executed(tmp_path):
    (tmp_path / "my.py").write_text(SOURCE)
    config = replace(TINY, model=f"{tmp_path / 'my.py'}:make")
    list(run(config, folder=tmp_path / "run"))
    assert len(list(run(replace(config, steps=5), folder=tmp_path / "run", resume=True))) == 2
    (tmp_path / "my.py").write_text(SOURCE + f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="the file of model .* is not the one .* SHA-256"):
        run(replace(config, steps=7), folder=tmp_path / "run", resume=True)
    assert not (tmp_path / "executed").exists()


# ---- batches that grow


def test_a_growing_batch_is_drawn_without_replacement_from_seed_and_step():
    training, other = (prepare(replace(TINY, batch_growth=(3, 6), seed=seed)) for seed in (0, 1))
    sizes = [len(training.batch(step)[0]) for step in range(8)]
    assert sizes == [min(24, math.floor(3 * (24 / 3) ** (step / 5) + 1e-9)) for step in range(8)]  # m_k by the formula
    assert sizes == [3, 4, 6, 10, 15, 24, 24, 24]
    for step in range(5):
        inputs, targets = training.batch(step)
        assert len(inputs.unique(dim=0)) == len(inputs)
        where = [int((training.inputs == row).all(1).nonzero()[0]) for row in inputs]
        assert torch.equal(training.targets[where], targets)
        assert not torch.equal(inputs, other.batch(step)[0])
        assert torch.equal(inputs, prepare(replace(TINY, batch_growth=(3, 6))).batch(step)[0])
    assert not torch.equal(training.batch(0)[0][:3], training.batch(1)[0][:3])


def test_batches_grow_to_the_batch_size_and_go_on_in_epochs():
    training = prepare(replace(TINY, batch_growth=(2, 4), batch_size=6))
    assert [len(training.batch(step)[0]) for step in range(9)] == [2, 2, 4, 6, 6, 6, 6, 6, 6]
    epoch = torch.cat([training.batch(step)[0] for step in range(4, 8)])
    assert len(epoch.unique(dim=0)) == 24
