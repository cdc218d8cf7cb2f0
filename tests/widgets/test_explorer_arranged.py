"""The explorer's kernel side: another arrangement, the numbers beside the picture, a region as npz, the same view again."""

import io

import numpy as np
import pytest
import torch
from test_explorer import ask, newest, tiles_of, wait_for

import natgrad_lab as ng
from natgrad_lab.likelihoods import Categorical
from natgrad_lab.models import mlp


@pytest.fixture(autouse=True)
def page_answers_by_hand(page):
    page.auto = False  # its own answers are those to frames of another kind


@pytest.fixture
def inputs():
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def view(page, inputs):
    torch.manual_seed(0)
    made = ng.explore(mlp((8, 12, 4)), Categorical(), inputs, approximations=["kfac"])
    yield made
    made.close()


def arranged(page, view, **change):
    """Ask for it and wait for the frame that says so."""
    before = len(page.sent(view, "frame"))
    page.tell(view, type="arrange", **change)
    wait_for(lambda: len(page.sent(view, "frame")) > before)
    return newest(page, view, "frame")


def test_an_arrangement_comes_with_its_names_and_its_tiles(page, view):
    page.ready(view)
    wait_for(lambda: page.sent(view, "about"))
    frame = arranged(page, view, order="unit")
    assert frame["about"]["arrangement"]["order"] == "unit" and sorted(frame["about"]["units"][0]) == list(range(12))
    ask(page, view, [[0, 0]], epoch=frame["epoch"])
    wait_for(lambda: tiles_of(page, view))
    names = [view.explorer.layout.parameter_name(i) for i in range(160)]
    order = [names.index(view.explorer.name_at(i)) for i in range(64)]
    plain = view.explorer.arranged(order="layer").sources["exact"].entries(slice(0, 160), slice(0, 160)).numpy()
    np.testing.assert_allclose(tiles_of(page, view)[-1][1].reshape(64, 64), plain[np.ix_(order, order)], rtol=1e-5, atol=1e-9)
    frame = arranged(page, view, order="eigenvector")
    places = np.frombuffer(page.sent(view, "frame")[-1][1][-1], np.int32)
    assert sorted(places) == list(range(160))
    frame = arranged(page, view, order="layer", white=True, damping=0.5)
    assert frame["about"]["arrangement"] == {"order": "layer", "white": True, "damping": 0.5}


def test_a_refused_arrangement_is_told_and_the_old_one_stays(page, inputs):
    made = ng.explore(torch.nn.Sequential(torch.nn.Unflatten(1, (2, 4)), torch.nn.Conv1d(2, 3, 2), torch.nn.Flatten()),
                      Categorical(), inputs)  # fmt: skip
    page.ready(made)
    page.tell(made, type="arrange", white=True)
    wait_for(lambda: page.sent(made, "problem"))
    assert "Conv1d" in newest(page, made, "problem")["text"] and not newest(page, made, "arranged")["arrangement"]["white"]
    assert not made.explorer.arrangement.white
    made.close()


def test_white_coordinates_name_what_they_leave_out(page, inputs):
    made = ng.explore(mlp((8, 12, 4)), Categorical(), inputs, approximations=["kfac", "unit_wise"])
    page.ready(made)
    wait_for(lambda: page.sent(made, "about"))
    assert newest(page, made, "about")["about"]["left_out"] == {}
    page.tell(made, type="tiles", epoch=0, wanted=[["unit_wise", "entries", 0, 0, 0]], shown=True)
    about = arranged(page, made, white=True)["about"]
    assert list(about["left_out"]) == ["unit_wise"] and "only exact and Kronecker" in about["left_out"]["unit_wise"]
    assert "kfac" in about["sources"] and not any("unit_wise" in name for name in about["sources"])
    assert arranged(page, made, white=False)["about"]["left_out"] == {} and not page.sent(made, "problem")
    made.close()


def test_limits_of_a_matrix_come_with_its_first_tiles(page, view):
    page.ready(view)
    for name in ("inverse of exact", "exact"):
        ask(page, view, [[0, 0]], source=name)
        wait_for(lambda name=name: any(content["tiles"][0][0] == name for content, _ in page.sent(view, "tiles")))
    limits = [content["limits"] for content, _ in page.sent(view, "tiles")]
    assert list(limits[0]) == ["inverse of exact"] and limits[0]["inverse of exact"][0] > 0
    dense = view.explorer.sources["exact"].entries(slice(0, 160), slice(0, 160)).numpy()
    inverse = np.linalg.inv(dense + 1e-3 * np.eye(160))
    np.testing.assert_allclose(tiles_of(page, view)[0][1].reshape(64, 64), inverse[:64, :64], rtol=1e-3, atol=1e-4)


def test_numbers_beside_the_picture(page, view):
    page.ready(view)
    page.tell(view, type="analysis")
    wait_for(lambda: page.sent(view, "analysis"))
    told = newest(page, view, "analysis")["analysis"]
    assert [spectrum["name"] for spectrum in told["spectra"]] == ["exact F", "kfac"] and len(told["layers"]) == 2


def test_a_region_as_npz(page, view, tmp_path):
    page.ready(view)
    page.tell(view, type="region", rows=[0, 9], columns=[108, 160], source="kfac − exact")
    wait_for(lambda: page.sent(view, "region"))
    with np.load(io.BytesIO(page.sent(view, "region")[0][1][0])) as kept:
        expected = view.explorer.sources["kfac − exact"].entries(slice(0, 9), slice(108, 160))
        np.testing.assert_array_equal(kept["values"], expected)
        assert list(kept["rows"][:2]) == ["0.weight[0,0]", "0.weight[0,1]"] and kept["columns"][0] == "2.weight[0,0]"
    view.save_region(tmp_path / "part.npz", "W2[1] x W1[0,3]")
    with np.load(tmp_path / "part.npz") as kept:
        assert kept["values"].shape == (13, 1) and list(kept["columns"]) == ["0.weight[0,3]"]


def test_the_same_view_opens_again(page, inputs, view):
    state = {
        "row": 40.0,
        "column": 30.0,
        "span": 20.0,
        "source": "inverse of kfac",
        "order": "unit",
        "white": True,
        "damping": 0.1,
    }
    again = ng.explore(view.explorer.layout.model, Categorical(), inputs, approximations=["kfac"], state=state)
    assert again.state == state and again.explorer.arrangement == ng.explorer.Arrangement("unit", True, 0.1)
    page.ready(again)
    wait_for(lambda: page.sent(again, "about"))
    assert newest(page, again)["about"]["arrangement"] == {"order": "unit", "white": True, "damping": 0.1}
    again.close()


def test_a_training_keeps_its_arrangement(page, inputs):
    model = mlp((8, 12, 4))
    view = ng.widgets.LiveExplorer(model, Categorical(), inputs)
    page.ready(view)
    wait_for(lambda: page.sent(view, "about"))
    arranged(page, view, order="unit", damping=0.2)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    view.update("step 1", now=True)
    assert view.explorer.arrangement == ng.explorer.Arrangement("unit", False, 0.2)
    diagonal = view.explorer.sources["exact"].diagonal()
    truth = ng.fisher.dense_fisher(model, Categorical(), inputs).diagonal()
    torch.testing.assert_close(diagonal.sort().values, truth.sort().values)
    sizes = diagonal[:108].view(12, 9).sum(1)
    assert (sizes.diff() <= 1e-7).all()
    view.close()
