"""Lesson 12: the dashboard against the formula, and every examination of the clinic against a property of its own."""

import pytest
import torch

from natgrad_lab.course.cards import lesson12 as lesson
from natgrad_lab.course.exercises import lesson12 as exercises


def test_the_dashboard_s_efficiency_is_the_formula_on_dense_matrices():
    inputs, targets = lesson.small_digits()
    model, damping = lesson.network(3), 1e-2
    outputs = model(inputs)
    J = torch.stack([_gradients(model, outputs[n, c]) for n in range(0, 100) for c in range(10)]).view(100, 10, -1)
    p = outputs.detach().softmax(1)
    F = torch.einsum("ncp,ncd,ndq->pq", J, torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1), J) / 100
    g = torch.einsum("ncp,nc->p", J, p - torch.nn.functional.one_hot(targets, 10)) / 100
    damped = F + damping * torch.eye(len(F), dtype=F.dtype)
    want = float((g @ g) ** 2 / (g @ damped @ g) / (g @ torch.linalg.solve(damped, g)))
    state = {"approximation": "identity", "steps": 3, "damping": damping, "judge": "efficiency"}
    assert lesson.dashboard(state)["efficiency"] == pytest.approx(want, rel=1e-8)
    assert exercises.validate(g, g, F, damping)[0] == pytest.approx(want, rel=1e-8)


def _gradients(model, output):
    gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])  # PyTorch's order: efficiency does not see it


@pytest.mark.parametrize("seed", range(4))
def test_the_examinations_show_what_they_say(seed):
    letters, numbers = lesson.clinic(torch.Generator().manual_seed(seed))
    found = {name: numbers[letter] for letter, name in letters.items()}
    assert sorted(letters.values()) == sorted(lesson.DIAGNOSES)
    for name, probe in found.items():
        assert 0 <= probe["efficiency"] <= 1 and (probe["labels"] > 0.1) == (name == "labels")
        assert (probe["copies"] > 0.1) == (name == "no mean") and min(probe["copies"], 1) < 1e-9 or name == "no mean"
        # one layer: on one example G ⊗ A is the Fisher
        if name in ("exact", "kfac", "no mean", "damping"):
            assert probe["one_example"] > 1 - 1e-9 or name == "damping"
        else:
            assert probe["one_example"] < 1 - 1e-4
    assert found["exact"]["efficiency"] == pytest.approx(1, abs=1e-10) == found["exact"]["best_step"]
    assert found["kfac"]["efficiency"] < 1 - 1e-6, "or the two could not be told apart"
    assert found["unused"]["large_damping"] == pytest.approx(lesson.LARGE)
    assert found["damping"]["large_damping"] == pytest.approx(1 / lesson.LARGE, rel=0.1)
    assert found["diagonal"]["spread"] == found["unused"]["spread"] == 0 < found["order"]["spread"]
    assert exercises.diagnose(numbers) == letters


def test_clinics_differ_by_student_and_not_by_the_global_generator():
    deals = {tuple(lesson.deal(torch.Generator().manual_seed(seed)).items()) for seed in range(20)}
    assert len(deals) > 15
    state = torch.get_rng_state()
    first = lesson.clinic(torch.Generator().manual_seed(0))
    assert lesson.clinic(torch.Generator().manual_seed(0)) == first and torch.equal(state, torch.get_rng_state())


def test_after_ten_steps_two_cosines_look_alike_and_two_efficiencies_do_not():
    rows = [lesson.report(10).row(name) for name in ("identity", "kfac")]
    assert abs(rows[0].cosine - rows[1].cosine) < 0.05 and rows[1].efficiency > 3 * rows[0].efficiency
