import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from scheduler.integrations.background_predictions import BackgroundPredictions
from scheduler.request import Request

CAP = 40


def unchanged(request: Request) -> Request:
    """What goes on without a prediction."""
    return request


def made_up(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
    """Bounds that differ from request to request."""
    bounds = [1 + sum(ids) % CAP for ids in prompts]
    return [
        replace(request, output_len_lower_bound=bound, output_len_prediction=bound)
        for request, bound in zip(requests, bounds, strict=True)
    ]


def request(name: str) -> Request:
    """A request of ten tokens."""
    return Request(name, 10, CAP)


def names(requests: Sequence[Request]) -> list[str]:
    """Their ids."""
    return [request.request_id for request in requests]


def test_what_arrives_during_a_prediction_is_the_next_batch() -> None:
    """And each request is handed over once, with its prediction."""
    batches, begun, gate = [], threading.Event(), threading.Event()

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        batches.append(names(requests))
        begun.set()
        gate.wait(60)
        return made_up(requests, prompts)

    desk = BackgroundPredictions(complete, unchanged, timeout=30.0)
    desk.add(request("r0"), [0])
    assert begun.wait(60)
    for i in range(1, 4):
        desk.add(request(f"r{i}"), [i])
    assert desk.take() == []
    gate.set()
    taken = desk.take(wait=True)
    while len(taken) < 4:
        taken += desk.take(wait=True)
    assert names(taken) == ["r0", "r1", "r2", "r3"]
    assert [request.output_len_lower_bound for request in taken] == [1, 2, 3, 4]
    assert batches == [["r0"], ["r1", "r2", "r3"]]
    assert desk.take(wait=True) == []
    assert desk.num_fallbacks == 0


def test_a_burst_is_predicted_by_length_and_before_what_comes_later() -> None:
    """Like lengths share a batch, so that little is padded; short ones that keep coming do not starve a long one."""
    batches, begun, gate = [], threading.Event(), threading.Event()

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        batches.append([request.num_prompt_tokens for request in requests])
        begun.set()
        gate.wait(60)
        return requests

    desk = BackgroundPredictions(complete, unchanged, timeout=30.0, max_batch=2)
    desk.add_all((Request(f"r{size}", size, CAP), [0]) for size in (90, 10, 80, 20))
    assert begun.wait(60)
    desk.add_all((Request(f"r{size}", size, CAP), [0]) for size in (5, 4))
    desk.discard("r90")
    gate.set()
    taken: list[Request] = []
    while len(taken) < 5:
        taken += desk.take(wait=True)
    desk.close()
    assert batches == [[10, 20], [80], [4, 5]]


def test_a_late_prediction_is_replaced_and_never_handed_over() -> None:
    """By the fallback, when its time is up; a discarded request not at all."""
    gate = threading.Event()

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        gate.wait(60)
        return requests

    desk = BackgroundPredictions(
        complete, lambda old: Request(old.request_id, 10, CAP, output_len_lower_bound=7), timeout=0.05
    )
    started = time.monotonic()
    desk.add(request("late"), [1])
    desk.add(request("gone"), [1])
    desk.discard("gone")
    (taken,) = desk.take(wait=True)
    assert time.monotonic() - started >= 0.05
    assert (taken.request_id, taken.output_len_lower_bound) == ("late", 7)
    gate.set()
    time.sleep(0.05)
    assert desk.take() == []
    assert desk.num_fallbacks == 1


def test_a_name_used_again_gets_its_own_prediction() -> None:
    """The one that was given up while it was being predicted is not handed over in its place."""
    gate = threading.Event()

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        gate.wait(60)
        return made_up(requests, prompts)

    desk = BackgroundPredictions(complete, unchanged, timeout=30.0)
    desk.add(Request("again", 10, CAP), [3])
    desk.discard("again")
    desk.add(Request("again", 40, CAP), [5])
    gate.set()
    (taken,) = desk.take(wait=True)
    assert (taken.num_prompt_tokens, taken.output_len_lower_bound) == (40, 6)
    assert desk.take(wait=True) == []


def test_a_request_is_still_held_until_it_is_taken() -> None:
    """One that is predicted and cancelled before the engine looks is not handed over, and nothing fails over it."""
    desk = BackgroundPredictions(made_up, unchanged, timeout=30.0)
    desk.add_all([(request("gone"), [3]), (request("again"), [4]), (request("stays"), [5])])
    while desk._held:
        time.sleep(0.001)
    assert "gone" in desk
    assert sorted(desk.request_ids()) == ["again", "gone", "stays"]
    desk.discard("gone")
    desk.add(Request("again", 40, CAP), [7])
    taken = dict[str, Request]()
    while len(taken) < 2:
        taken |= {one.request_id: one for one in desk.take(wait=True)}
    assert "gone" not in desk
    assert sorted(taken) == ["again", "stays"]
    assert (taken["again"].num_prompt_tokens, taken["again"].output_len_lower_bound) == (40, 8)
    desk.discard("stays")
    desk.close()


def test_a_predictor_that_fails_does_not_stop_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    """The requests go on with the fallback, and the log says why."""

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        raise ValueError("no such token")

    desk = BackgroundPredictions(complete, unchanged, timeout=30.0)
    desk.add(request("r0"), [1])
    assert names(desk.take(wait=True)) == ["r0"]
    assert "no such token" in caplog.text


class PanicError(BaseException):
    """What a tokenizer written in Rust raises is no Exception."""


def test_one_prompt_that_cannot_be_predicted_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Of 32 that wait, the bad one alone goes on with the fallback, and what comes later is predicted."""

    def complete(requests: Sequence[Request], prompts: Sequence[Sequence[int]]) -> Sequence[Request]:
        if [13] in prompts:
            raise PanicError("a byte that no token has")
        return made_up(requests, prompts)

    desk = BackgroundPredictions(complete, lambda old: replace(old, output_len_lower_bound=40), timeout=30.0)
    desk.add_all((request(f"r{i}"), [i]) for i in range(32))
    taken: dict[str, Request] = {}
    while len(taken) < 32:
        taken |= {one.request_id: one for one in desk.take(wait=True)}
    bounds = [taken[f"r{i}"].output_len_lower_bound for i in range(32)]
    assert bounds == [40 if i == 13 else made_up([request("r")], [[i]])[0].output_len_lower_bound for i in range(32)]
    assert desk.num_fallbacks == 1
    assert caplog.text.count("goes on without a prediction") == 1
    desk.add(request("later"), [1])
    assert desk.take(wait=True)[0].output_len_lower_bound == made_up([request("r")], [[1]])[0].output_len_lower_bound
    desk.close()
