"""Other libraries beside ours: checked equal before they are timed, convention factors stated, failures told."""

import math

import pytest
import torch

from natgrad_lab.bench import BENCHES
from natgrad_lab.bench import peers as room
from natgrad_lab.bench.peers import Peers, factor_agreement, tensor_agreement
from natgrad_lab.structures import BlockDiagonal, Kronecker


@pytest.fixture
def made_up(monkeypatch):
    """Three libraries: one right but for a factor 2, one wrong in an entry, one that fails."""
    truth = torch.eye(3, dtype=torch.float64)
    wrong = truth.clone()
    wrong[0, 1] = 0.1

    def broken():
        raise RuntimeError("no such layer\nsecond line")

    makers = {"twice": lambda: lambda: 2 * truth, "wrong": lambda: lambda: wrong, "broken": lambda: broken}
    monkeypatch.setitem(room.PEERS, "dense", {name: ("torch", make) for name, make in makers.items()})
    return truth


def test_peers_are_checked_before_they_are_timed(made_up):
    peers = Peers()
    peers.add("dense", (), tensor_agreement(made_up), ", here")
    (case,) = peers.cases
    assert case.startswith("twice") and case.endswith(", here") and "convention factor 0.5" in peers.notes[case]
    wrong, broken = peers.left_out
    assert math.isnan(wrong.ratio) and "not equal" in wrong.note
    assert broken.note == "RuntimeError: no such layer"


def test_a_library_that_is_not_installed_is_said_to_be_so(monkeypatch):
    monkeypatch.setitem(room.PEERS, "dense", {"other": ("natgrad_lab_no_such_package", lambda: lambda: None)})
    peers = Peers()
    peers.add("dense", (), tensor_agreement(torch.eye(2)))
    assert not peers.cases and "not installed" in peers.left_out[0].case


def spd(n, seed):
    a = torch.randn(n, n + 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T


def test_factors_agree_up_to_one_factor_for_all_layers():
    blocks = BlockDiagonal((Kronecker(spd(3, 0), spd(4, 1)), Kronecker(spd(2, 2), spd(3, 3))))
    pairs = [(block.left, block.right) for block in blocks.blocks]
    agreement = factor_agreement(blocks)
    error, factor = agreement([(g * 8, a / 2) for g, a in pairs])  # 4 times ours, split as they like
    assert error < 1e-14 and factor == pytest.approx(0.25, rel=1e-12)
    assert agreement([(pairs[0][0], pairs[0][1]), (2 * pairs[1][0], pairs[1][1])])[0] > 0.9  # another factor per layer
    transposed = [(g, a.flip(0).flip(1)) for g, a in pairs]  # the bias first
    assert agreement(transposed)[0] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "natural", "spectrum", "factors", "conventions"])
def test_installed_libraries_agree_with_ours(name):
    pytest.importorskip("curvlinops")
    torch.set_default_dtype(torch.float32)  # some take it for granted; the fixture of every test puts it back
    rows = BENCHES[name](sizes=(7, 5, 3), num_examples=6, rounds=1).rows
    theirs = [row for row in rows if "3.0" in row.case or "nngeometry" in row.case or "BackPACK" in row.case]
    assert theirs and all("convention factor" in row.note and row.rounds == 1 for row in theirs), [r.note for r in theirs]
