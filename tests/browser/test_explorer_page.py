"""The page of `natgrad heatmap` in a real Chromium: the same numbers as the matrix, without a kernel, at two widths."""

import pytest
import torch
from waiting import soon, steady

import natgrad_lab as ng
from natgrad_lab.explorer.page import page
from natgrad_lab.likelihoods import Categorical


@pytest.fixture(scope="module")
def seen():
    torch.manual_seed(0)
    inputs = ng.datasets.digits(dtype=torch.float64).inputs[:40]
    return ng.explorer.explorer(
        ng.models.mlp((64, 6, 6, 10), dtype=torch.float64), Categorical(), inputs, approximations=["kfac"]
    )


def assert_reads(tab, names, entry):
    text = tab.inner_text(".ngx-readout")
    assert text.startswith(f"{names[0]} × {names[1]}: F = ")
    assert float(text.rpartition("= ")[2]) == pytest.approx(entry, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("width", [1280, 800, 420])
def test_zoom_to_entries_names_and_the_same_view_again(seen, chromium, tmp_path, artifacts, width):
    (tmp_path / "page.html").write_text(page(seen, "Exact Fisher of a test"), encoding="utf-8")
    tab = chromium.new_page(viewport={"width": width, "height": 900})
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(f"file://{tmp_path / 'page.html'}")
    tab.wait_for_function("() => document.querySelector('.ngx-pixels').dataset.missing === '0'")
    tab.screenshot(path=str(artifacts / f"heatmap_page_{width}.png"))
    assert tab.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    dense = seen.sources["exact"].entries(slice(0, seen.layout.dim), slice(0, seen.layout.dim))
    for row, column in ((0, 0), (400, 3), (3, 400), (seen.layout.dim - 1, 200), (129, 64)):
        names = [seen.layout.parameter_name(place) for place in (row, column)]
        tab.fill(".ngx-search input", " x ".join(names))
        tab.keyboard.press("Enter")
        soon(lambda names=names, entry=float(dense[row, column]): assert_reads(tab, names, entry))
    before, address = steady(lambda: (tab.evaluate("() => document.querySelector('.ngx-pixels').toDataURL()"), tab.url))
    again = chromium.new_page(viewport={"width": width, "height": 900})
    again.goto(address)
    steady(lambda: again.evaluate("() => document.querySelector('.ngx-pixels').toDataURL()"), lambda picture: picture == before)
    assert again.inner_text(".ngx-ends") == tab.inner_text(".ngx-ends") and complaints == []
    tab.locator(".ngx-more summary").click()
    with tab.expect_download() as saved:
        tab.locator("button[title='save this view as PNG']").click()
    assert saved.value.suggested_filename == "fisher.png"
    tab.close(), again.close()


def test_javascript_has_the_same_cells_as_python(seen, chromium, tmp_path):
    (tmp_path / "page.html").write_text(page(seen, "cells"), encoding="utf-8")
    tab = chromium.new_page()
    tab.goto(f"file://{tmp_path / 'page.html'}")
    for level in range(seen.pyramid.num_levels + 3):
        edges = seen.pyramid.edges(level).tolist()
        code = "([level, count]) => Array.from({ length: count }, (_, k) => natgradViewer.space.edge(level, k))"
        assert tab.evaluate(code, [level, len(edges)]) == edges
        places = list(range(0, seen.layout.dim, 7))
        code = "([level, places]) => places.map((place) => natgradViewer.space.cellAt(level, place))"
        assert tab.evaluate(code, [level, places]) == [seen.pyramid.cell_at(level, place) for place in places]
    names = tab.evaluate("count => Array.from({ length: count }, (_, k) => natgradViewer.space.name(k))", seen.layout.dim)
    assert names == [seen.layout.parameter_name(k) for k in range(seen.layout.dim)]
    tab.close()
