"""The framework of reproductions: verdicts in every word, resumption piece by piece, JSON without surprises, the page."""

import json
import math
import time
from pathlib import Path

import pytest

from natgrad_lab.cli import main
from natgrad_lab.reproduce import (
    REPRODUCTIONS,
    WORDS,
    Check,
    NotAttempted,
    Reproduction,
    Scale,
    conclude,
    kept_results,
    ledger_page,
    reproduce,
)
from natgrad_lab.reproduce.base import span
from natgrad_lab.reproduce.running import plain

ROOT = Path(__file__).parents[2]
GOOD, BAD = Check("a < 1", "0.5", True), Check("a < 1", "2", False)


def toy(run, **choices):
    """A reproduction of nothing: the seeds' `a` must be below 100."""
    return Reproduction(
        "toy", "A toy", "a is small.", "[Nobody2000]", "a < 100",
        {"small": Scale({"size": 2}, "size 2 for 3"), "full": Scale({})},
        run, lambda seeds: [Check("a < 100", span([s["a"] for s in seeds]), all(s["a"] < 100 for s in seeds))],
        lambda seeds: None, **{"min_seeds": 3} | choices,
    )  # fmt: skip


@pytest.mark.parametrize(
    "checks, seeds, miniature, word",
    [
        ([GOOD, GOOD], 5, "", "reproduced"),
        ([GOOD, GOOD], 9, "8 x 8", "reproduced in miniature"),
        ([GOOD, BAD], 5, "", "partly"),
        ([GOOD, BAD], 5, "8 x 8", "partly"),
        ([BAD, BAD], 5, "8 x 8", "not reproduced"),
        ([GOOD, GOOD], 4, "", "not attempted"),
        ([BAD], 1, "", "not attempted"),
    ],
)
def test_every_word(checks, seeds, miniature, word):
    verdict = conclude(checks, seeds, 5, miniature)
    assert verdict.word == word and word in WORDS and verdict.checks == tuple(checks)
    assert miniature in verdict.why or seeds < 5


def test_the_words_are_these_five():
    assert set(WORDS) == {"reproduced", "reproduced in miniature", "partly", "not reproduced", "not attempted"}


def test_a_result_holds_every_seed_and_its_verdict(tmp_path):
    result = reproduce(toy(lambda seed, work: {"a": seed * work.config["size"]}), tmp_path)
    assert result.verdict.word == "reproduced in miniature" and "size 2 for 3" in str(result.verdict)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["seeds"] == [{"seed": s, "a": 2 * s} for s in (1, 2, 3)]  # seed 0 is for tuning
    assert kept["verdict"]["word"] == "reproduced in miniature" and kept["config"] == {"size": 2}
    assert kept["about"][0]["torch"] and kept["seconds"] >= 0


def test_a_killed_run_goes_on_from_the_finished_seeds(tmp_path):
    made = []

    def run(seed, work):
        made.append(seed)
        if made == [1, 2]:
            raise KeyboardInterrupt
        return {"a": seed}

    with pytest.raises(KeyboardInterrupt):
        reproduce(toy(run), tmp_path)
    done = [key for key in sorted(path.stem for path in (tmp_path / "pieces").iterdir())]
    assert done == ["seed-1"]  # whole or absent: nothing of seed 2
    result = reproduce(toy(run), tmp_path)
    assert made == [1, 2, 2, 3] and [seed["a"] for seed in result.seeds] == [1, 2, 3]


def test_inner_pieces_are_kept_and_counted_once(tmp_path):
    made = []

    def run(seed, work):
        work.keep(f"inner-{seed}", lambda: made.append(seed) or {"b": seed})
        if made == [1, 2]:
            made.append("killed")
            raise KeyboardInterrupt
        return {"a": seed + work.tuned["shift"]}

    ticks = []
    each = toy(run, tune=lambda work: {"shift": 10}, pieces=lambda config, seeds: seeds)
    with pytest.raises(KeyboardInterrupt):
        reproduce(each, tmp_path)
    result = reproduce(each, tmp_path, tick=ticks.append)
    assert made == [1, 2, "killed", 3]
    assert ticks == ["tuned", "seed-1", "inner-2", "seed-2", "inner-3", "seed-3"]
    assert [seed["a"] for seed in result.seeds] == [11, 12, 13] and result.tuned == {"shift": 10}
    pieces = [json.loads(path.read_text())["seconds"] for path in (tmp_path / "pieces").iterdir()]
    assert min(pieces) >= 0 and abs(result.seconds - sum(pieces)) <= 1e-9


def test_time_inside_a_piece_is_not_counted_twice(tmp_path):
    def run(seed, work):
        work.keep(f"inner-{seed}", lambda: time.sleep(0.3) or {})
        return {"a": seed}

    result = reproduce(toy(run), tmp_path, num_seeds=1)
    own = json.loads((tmp_path / "pieces" / "seed-1.json").read_text())["seconds"]
    assert 0 <= own < 0.3 <= result.seconds  # what is around the inner piece takes milliseconds
    assert reproduce(toy(run), tmp_path, num_seeds=1).seconds == result.seconds  # read back, not measured again


def test_another_scale_in_the_same_folder_is_refused(tmp_path):
    each = toy(lambda seed, work: {"a": seed})
    reproduce(each, tmp_path)
    with pytest.raises(ValueError, match="holds pieces of another reproduction.*--out"):
        reproduce(each, tmp_path, "full")


def test_what_cannot_be_tried_says_why(tmp_path):
    def run(seed, work):
        raise NotAttempted("there is no CIFAR here")

    result = reproduce(toy(run), tmp_path / "a")
    assert str(result.verdict) == "not attempted (there is no CIFAR here)" and result.seeds == []
    result = reproduce(toy(run, methods=("kfac", "no_such"), data=("nowhere",)), tmp_path / "b")
    assert "the method 'no_such' and the data set 'nowhere'" in result.verdict.why


@pytest.mark.parametrize("seeds", [0, -1])
def test_a_number_of_seeds_that_means_nothing(tmp_path, seeds):
    with pytest.raises(ValueError, match="positive integer"):
        reproduce(toy(lambda seed, work: {"a": 1}), tmp_path, num_seeds=seeds)


def test_a_scale_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="no scale 'ful'.*Did you mean 'full'"):
        reproduce(toy(lambda seed, work: {"a": 1}), tmp_path, "ful")


def test_plain_values():
    assert plain({"a": (1.23456789, math.inf), "b": [math.nan, 3, True, None]}) == {
        "a": [1.23457, None],
        "b": [None, 3, True, None],
    }
    with pytest.raises(TypeError, match="plain values only; got set"):
        plain({"a": {1}})


def test_span_shows_the_median_and_the_ends():
    assert span([3.0, 1.0, 2.0]) == "2 (1 … 3)"
    assert span([1.0, 2.0]) == "1.5 (1 … 2)"
    assert span([1.0, None, 1.0]) == "1 (1 … inf)"
    assert span([7, 7]) == "7" and span([]) == "nothing measured"


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_reproduction_is_described(name):
    each = REPRODUCTIONS[name]
    assert each.name == name and each.claim.endswith(".") and not each.criterion.endswith(".")
    assert each.source.startswith("[") and each.min_seeds >= 5 and {"small", "full"} <= set(each.scales)
    plain(dict(each.scales["small"].config)), plain(dict(each.scales["full"].config))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks" / "reproduce").glob("*.json")))
def test_a_kept_verdict_follows_from_the_kept_numbers(name):
    kept, each = json.loads((ROOT / "benchmarks" / "reproduce" / f"{name}.json").read_text()), REPRODUCTIONS[name.split("@")[0]]
    assert name == each.name + ("" if kept["scale"] == "small" else f"@{kept['scale']}")
    scale = each.scales[kept["scale"]]
    assert kept["criterion"] == each.criterion and kept["claim"] == each.claim
    assert kept["config"] == plain(dict(scale.config)) and kept["miniature"] == scale.miniature
    assert len(kept["seeds"]) >= each.min_seeds or kept["verdict"]["word"] == "not attempted"
    if kept["seeds"]:
        verdict = conclude(each.judge(kept["seeds"]), len(kept["seeds"]), each.min_seeds, scale.miniature)
        assert kept["verdict"] == plain(verdict)
        assert each.figure(kept["seeds"]).data


def test_the_page_is_that_of_the_kept_results():
    assert (ROOT / "docs" / "reproductions.md").read_text(encoding="utf-8") == ledger_page(kept_results(ROOT))


def test_the_page_says_what_is_not_there():
    page = ledger_page({})
    assert "| [invariance](#invariance) | no result kept | | |" in page and "natgrad reproduce invariance" in page


def test_the_command_lists_and_refuses(capsys, tmp_path):
    assert main(["reproduce", "--list"]) == 0
    assert "invariance" in capsys.readouterr().out
    assert main(["reproduce", "invarianc"]) == 2
    assert "Did you mean 'invariance'" in capsys.readouterr().err


def test_the_command_measures_draws_and_ends_in_a_verdict(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("natgrad_lab.cli.reproduce.write_figures", lambda result, folder: "figures")
    arguments = ["reproduce", "invariance", "--seeds", "1", "--out", str(tmp_path)]
    assert main(arguments) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "invariance: not attempted (1 seed; the criterion asks for at least 5)" in out
    assert (tmp_path / "figure.html").stat().st_size > 1e6 and (tmp_path / "pieces" / "seed-1.json").is_file()
    page = tmp_path / "page.md"
    assert main(["reproduce", "--page", str(page)]) == 0 and page.read_text().startswith("# Reproductions")
