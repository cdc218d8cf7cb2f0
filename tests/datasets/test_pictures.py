"""Pictures that are drawn (curves, textures) and pictures made smaller (resize), against slow formulas."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from natgrad_lab.datasets import Dataset, autoencoding, curves, digits, gaussian_blobs, resize, textures

# ---- curves


def drawn_by_hand(points, size, sigma):
    """One picture: the parabola through the points at times 0, ½, 1, fitted by polyfit; the nearest of 60 places a pixel."""
    time = np.linspace(0, 1, 60)
    x, y = (np.polyval(np.polyfit([0, 0.5, 1], points[:, axis], 2), time) for axis in (0, 1))
    picture = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            picture[row, column] = np.exp(-min((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
    return picture.ravel()


@pytest.mark.parametrize("size, sigma, margin", [(28, 1.25, 5.0), (9, 0.4, 0.0), (12, 3.0, 5.4)])
def test_curves_are_parabolas_through_three_points(size, sigma, margin):
    data = curves(4, seed=2, size=size, sigma=sigma, margin=margin)
    points = np.random.default_rng(2).uniform(margin, size - 1 - margin, (4, 3, 2))
    expected = np.stack([drawn_by_hand(each, size, sigma) for each in points])
    assert np.abs(data.inputs.numpy() - expected).max() < 1e-11  # polyfit is good to 1e-14, exp'(u) u <= 1
    assert data.image_shape == (size, size) and 0 <= data.inputs.min() and data.inputs.max() <= 1
    assert data.targets is data.inputs and "stand-in" in data.name and "stand-in" in data.source


def test_curves_depend_on_the_seed_alone(monkeypatch):
    data = curves(10, dtype=torch.float32)
    state = torch.get_rng_state()
    assert torch.equal(curves(6, dtype=torch.float32).inputs, data.inputs[:6])
    monkeypatch.setattr(sys.modules["natgrad_lab.datasets.curves"], "CHUNK", 3)
    assert torch.equal(curves(10, dtype=torch.float32).inputs, data.inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(curves(10, seed=1, dtype=torch.float32).inputs, data.inputs)
    assert (curves(10).inputs - data.inputs).abs().max() < 2e-5  # squares up to 1500 in float32, over 2σ²
    half = curves(10, dtype=torch.float16).inputs  # drawn in float32, then rounded
    assert half.dtype == torch.float16 and (half.float() - data.inputs).abs().max() < 5e-4


def test_eighteen_components_leave_the_error_that_the_stand_in_was_made_for():
    """Principal components of 2000 pictures, squared error on others: 5.9 is what is reported for the original."""
    train, test = curves(2000).inputs, curves(500, seed=1).inputs
    directions = torch.linalg.svd(train - train.mean(0), full_matrices=False).Vh[:18]
    rest = test - train.mean(0)
    rest = rest - rest @ directions.T @ directions
    assert 5 < rest.square().sum(1).mean() < 7


# ---- textures


def test_textures_are_waves_of_their_class_and_nothing_else_without_noise():
    data = textures(40, 5, size=7, period=3.3, noise=0.0)
    rows, columns = np.mgrid[0:7, 0:7]
    for picture, label in zip(data.inputs.numpy(), data.targets.tolist(), strict=True):
        angle = np.pi * label / 5
        phase = 2 * np.pi * (columns * np.cos(angle) + rows * np.sin(angle)).ravel() / 3.3
        waves = np.stack([np.cos(phase), np.sin(phase)], axis=1)
        weights, *_ = np.linalg.lstsq(waves, picture, rcond=None)
        assert np.abs(waves @ weights - picture).max() < 1e-12
        assert abs(np.hypot(*weights) - np.sqrt(2)) < 1e-12
    assert data.targets.tolist() == [n % 5 for n in range(40)] and data.classes == ("0°", "36°", "72°", "108°", "144°")


def test_textures_are_no_linear_problem_but_an_easy_one_for_squared_filters():
    train, test = textures(4000), textures(2000, seed=1)
    targets = torch.nn.functional.one_hot(train.targets, 4).to(train.inputs)
    ones = [torch.cat([data.inputs, torch.ones(len(data), 1)], dim=1) for data in (train, test)]
    linear = (ones[1] @ torch.linalg.lstsq(ones[0], targets).solution).argmax(1)
    # chance is 1/4; a deviation of the count over 2000 pictures is 0.0097
    assert (linear == test.targets).double().mean() < 0.25 + 4 * 0.0097
    clean = textures(400, noise=0.0, seed=2)  # waves of each class at many phases: an orthonormal pair spans them
    energy = [torch.linalg.svd(clean.inputs[clean.targets == k], full_matrices=False).Vh[:2] for k in range(4)]
    guess = torch.stack([(test.inputs @ pair.T).square().sum(1) for pair in energy], dim=1).argmax(1)
    assert (guess == test.targets).double().mean() > 0.99


def test_texture_noise_has_the_deviation_asked_for_and_the_seed_says_all():
    noisy, clean = textures(500, noise=0.7, seed=4), textures(500, noise=0.0, seed=4)
    noise = noisy.inputs - clean.inputs
    assert abs(noise.std() - 0.7) < 0.01  # 72,000 numbers: one deviation of the estimate is 0.7 / √144,000 = 0.002
    assert torch.equal(textures(500, noise=0.7, seed=4).inputs, noisy.inputs)
    assert not torch.equal(textures(500, noise=0.7, seed=5).inputs, noisy.inputs)
    single = textures(500, noise=0.7, seed=4, dtype=torch.float32).inputs
    assert torch.equal(single, noisy.inputs.float())


# ---- resize


def pictures(shape, generator):
    """Three random pictures as a Dataset."""
    rows = torch.rand(3, int(np.prod(shape)), generator=generator)
    return Dataset("random", rows, torch.arange(3), ("a", "b", "c"), shape, "here", "CC0")


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_each_new_pixel_is_the_mean_over_its_area(height, width, choose):
    rows, columns = choose.draw(st.integers(1, height)), choose.draw(st.integers(1, width))
    data = pictures((height, width), torch.Generator().manual_seed(height * 100 + width))
    small = resize(data, (rows, columns))
    # every old pixel cut into rows x columns equal parts; a new pixel is the mean of height x width of them
    for old, new in zip(data.inputs.numpy(), small.inputs.numpy(), strict=True):
        fine = np.kron(old.reshape(height, width), np.ones((rows, columns)))
        expected = fine.reshape(rows, height, columns, width).mean((1, 3))
        assert np.abs(new.reshape(rows, columns) - expected).max() < 1e-13
    assert small.image_shape == (rows, columns) and f"{height} x {width} to {rows} x {columns}" in small.source
    assert (small.inputs.mean(1) - data.inputs.mean(1)).abs().max() < 1e-13


def test_whole_factors_are_plain_means_and_the_own_size_changes_nothing(generator):
    data = pictures((8, 6), generator)
    means = data.inputs.unflatten(1, (4, 2, 3, 2)).mean((2, 4)).flatten(1)
    assert (resize(data, (4, 3)).inputs - means).abs().max() < 1e-15
    assert torch.equal(resize(data, (8, 6)).inputs, data.inputs)


def test_colours_are_made_small_one_by_one(generator):
    data = pictures((3, 8, 8), generator)
    small = resize(data, 5)
    for channel in range(3):
        one = replace(data, inputs=data.inputs[:, 64 * channel : 64 * (channel + 1)], image_shape=(8, 8))
        part = small.inputs[:, 25 * channel : 25 * (channel + 1)]
        assert (resize(one, 5).inputs - part).abs().max() < 1e-15
    assert small.image_shape == (3, 5, 5) and small.targets is data.targets


def test_targets_that_are_the_inputs_are_made_small_too():
    small = resize(autoencoding(digits()), 4)
    assert small.targets is small.inputs and small.num_outputs == 16
    assert resize(digits(torch.float32), 4).inputs.dtype == torch.float32


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: resize(gaussian_blobs(), 1), "resize needs pictures; gaussian_blobs has no image_shape"),
        (lambda: resize(digits(), 9), "between 1 and the picture's own 8 x 8; got 9 x 9"),
        (lambda: resize(digits(), (0, 3)), "between 1 and the picture's own 8 x 8; got 0 x 3"),
        (
            lambda: resize(replace(digits(), inputs=digits().targets[:, None].repeat(1, 64)), 4),
            "needs real inputs; .* torch.int64",
        ),
    ],
)
def test_what_cannot_be_resized_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
