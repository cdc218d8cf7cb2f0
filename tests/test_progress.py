"""Telling people about long work: what is printed, where, and that the items come through untouched."""

import sys

import pytest

from natgrad_lab import progress


def test_an_estimate_is_printed_above_one_gibibyte_only(capsys):
    progress.announce(2**30, "little")
    progress.announce(2.5 * 2**30, "a dense Fisher")
    assert capsys.readouterr() == ("", "natgrad_lab: a dense Fisher takes 2.5 GiB\n")


def test_short_work_shows_nothing(capsys):
    assert list(progress.track(range(4), "work")) == [0, 1, 2, 3] and list(progress.track([], "nothing")) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("way", ["bar", "file", "without rich"])
def test_long_work_shows_a_bar_on_stderr_or_lines_where_there_can_be_none(monkeypatch, capsys, way):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    if way == "bar":
        monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    if way == "without rich":
        monkeypatch.setitem(sys.modules, "rich.console", None)
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert list(progress.track(range(3), "overview")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    if way == "bar":
        assert "overview" in err and "/3" in err and "pieces" not in err
    else:
        assert err.splitlines() == [f"natgrad_lab: overview, {words}" for words in ("3 pieces ...", "1 of 3", "2 of 3")]


def test_a_bar_stops_when_the_work_is_left(monkeypatch):
    stopped = []
    bar = type("Bar", (), {"update": lambda *a, **k: None, "stop": lambda self: stopped.append(1)})()
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    monkeypatch.setattr(progress, "_bar", lambda what, total: (bar, None))
    work = progress.track(range(9), "work")
    next(work), next(work)
    work.close()
    assert stopped == [1]


def test_no_bar_while_notebooks_are_made(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    monkeypatch.setenv("NATGRAD_STILL", "1")
    assert list(progress.track([1, 2, 3], "work")) == [1, 2, 3] and capsys.readouterr().err == ""
