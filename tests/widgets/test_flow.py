"""Back-pressure: two in flight, newest wins, acknowledgements that never come."""

import pytest
from toy import Clock


@pytest.fixture
def flow():
    from natgrad_lab.widgets.flow import FrameFlow

    sent = []
    made = FrameFlow(lambda header, buffers: sent.append(header["n"]), clock=Clock())
    made.sent = sent
    return made


def test_nothing_is_sent_before_a_page_is_ready(flow):
    for n in range(3):
        flow.push({"n": n}, [])
    assert flow.sent == []
    flow.ready("page")
    assert flow.sent == [2]


def test_two_in_flight_and_the_newest_waits(flow):
    flow.ready("page")
    numbers = [flow.push({"n": n}, []) for n in range(6)]
    assert flow.sent == [0, 1]
    flow.acknowledge("page", numbers[0])
    assert flow.sent == [0, 1, 5]
    flow.acknowledge("page", numbers[1])
    assert flow.sent == [0, 1, 5], "2, 3 and 4 were overtaken"


def test_lost_acknowledgements_expire(flow):
    flow.ready("page")
    for n in range(4):
        flow.push({"n": n}, [])
    flow._clock.now = 1.9
    flow.push({"n": 4}, [])
    assert flow.sent == [0, 1]
    flow._clock.now = 2.1
    flow.push({"n": 5}, [])
    assert flow.sent == [0, 1, 5]


def test_a_page_that_comes_back_gets_the_newest_again(flow):
    flow.ready("page")
    for n in range(4):
        flow.push({"n": n}, [])
    flow.ready("reloaded")
    assert flow.sent == [0, 1, 3]


def test_is_watched(flow):
    assert not flow.is_watched()
    flow.ready("page")
    assert flow.is_watched()
    flow._clock.now = 3600.0
    assert flow.is_watched(), "nothing was sent, so nothing is unanswered"
    number = flow.push({"n": 0}, [])
    flow._clock.now += 5.9
    assert flow.is_watched()
    flow._clock.now += 0.2
    assert not flow.is_watched(), "the page vanished without a word"
    flow.acknowledge("page", number)
    assert flow.is_watched()
    flow.gone("page")
    assert not flow.is_watched()
