"""What requests bring, when they can start, and how they end."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

import torch
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.request import RequestStatus

from scheduler.integrations.vllm_requests import Bounds, read_bounds

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours


@pytest.mark.parametrize(
    ("extra_args", "bounds", "complains"),
    [
        ({"output_len_lower_bound": 7}, Bounds(7, 21, 70), False),
        ({"output_len_lower_bound": 7.9}, Bounds(7, 21, 70), False),
        ({"output_len_lower_bound": 700}, Bounds(100, 100, 100), False),
        ({"output_len_lower_bound": 7, "output_len_upper_bound": 14}, Bounds(7, 14, 14), False),
        (
            {"output_len_lower_bound": 7, "output_len_prediction": 9, "output_len_upper_bound": 3},
            Bounds(7, 9, 9),
            False,
        ),
        ({}, Bounds(), False),
        *[
            ({"output_len_lower_bound": value}, Bounds(), True)
            for value in ("7", 0, -3, float("nan"), float("inf"), True, [7], {})
        ],
    ],
)
def test_bounds_are_read_from_the_extra_arguments(extra_args: Any, bounds: Bounds, complains: bool) -> None:
    """What is no number of tokens is left out, with a complaint; what is too large is lowered."""
    assert read_bounds(extra_args, 100)[0] == bounds
    assert bool(read_bounds(extra_args, 100)[1]) is complains


def test_malformed_bounds_are_reported_once(make_engine: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """The first of them names the request and the value."""
    engine = make_engine(10)
    with caplog.at_level(logging.WARNING, logger="scheduler.integrations"):
        for i, bound in enumerate(["short", 3, -1]):
            engine.add(f"r{i}", 5, 3, output_len_lower_bound=bound)
        engine.run()
    assert len(caplog.records) == 1
    assert "request r0: output_len_lower_bound is 'short'" in caplog.text


def test_requests_whose_grammar_is_not_ready_hold_neither_slots_nor_memory(
    make_engine: Callable[..., Any],
) -> None:
    """Four such with the shortest bounds come first, four may run, and six plain ones end all the same."""
    engine = make_engine(14, vllm={"max_num_seqs": 4})
    grammars: list[Future[Any]] = [Future() for _ in range(4)]
    for i, grammar in enumerate(grammars):
        params = {"structured_outputs": StructuredOutputsParams(json="{}")}
        request = engine.add(f"g{i}", 20, 5, params=params, output_len_lower_bound=2)
        request.structured_output_request.grammar = grammar
    for i in range(6):
        engine.add(f"p{i}", 20, 30, output_len_lower_bound=20)
    for _ in range(100):
        engine.step()
    assert sorted(engine.ends) == [f"p{i}" for i in range(6)]
    for grammar in grammars:
        grammar.set_result(SimpleNamespace(accept_tokens=lambda *_: True, is_terminated=lambda: False))
    engine.scheduler.structured_output_manager.accept_tokens = lambda *_: True
    engine.run(check=False)
    engine.check_tokens(engine.requests)


def test_a_grammar_that_cannot_be_compiled_ends_its_request_alone(make_engine: Callable[..., Any]) -> None:
    """With vLLM's error; the plug-in forgets it."""
    engine = make_engine(14)
    params = {"structured_outputs": StructuredOutputsParams(json="{}")}
    request = engine.add("g", 20, 5, params=params, output_len_lower_bound=2)
    request.structured_output_request.grammar = Future()
    request.structured_output_request._grammar.set_exception(ValueError("no grammar"))
    engine.add("p", 20, 30, output_len_lower_bound=20)
    engine.run()
    assert request.status == RequestStatus.FINISHED_ERROR
    engine.check_tokens({"p"})


def test_prompt_embeddings_are_scheduled_beside_words(make_engine: Callable[..., Any]) -> None:
    """A prompt without token ids disturbs nobody."""
    engine = make_engine(14)
    engine.add_random(10, np.random.default_rng(0), all_bounded=True)
    engine.add("embedded", None, 10, facts={"prompt_embeds": torch.zeros(20, 4)})
    engine.run()
    engine.check_tokens(engine.requests)


def test_a_streamed_input_is_left_to_vllm(make_engine: Callable[..., Any], streaming_chunk: Callable[..., Any]) -> None:
    """A session is served along with requests that the policy governs, chunk by chunk, and what it holds is counted."""
    engine = make_engine(14)
    engine.add_random(20, np.random.default_rng(0), all_bounded=True)
    session = engine.add("session", 20, 5, facts={"resumable": True})
    for _ in range(60):
        engine.step()
    assert session.status == RequestStatus.WAITING_FOR_STREAMING_REQ
    streaming_chunk(engine, "session", [7] * 20)
    for _ in range(60):
        engine.step()
    streaming_chunk(engine, "session", None)
    engine.run(check=False)
    engine.check_tokens(engine.requests.keys() - {"session"})


@pytest.mark.parametrize("policy", [None, "amin", "amin-survival", "fcfs"])
def test_priorities_are_honoured(make_engine: Callable[..., Any], vllms_own: Any, policy: str | None) -> None:
    """With `--scheduling-policy priority` the urgent ones end first, whatever their lengths; so they do in vLLM."""
    vllm = {"scheduling_policy": "priority", "max_num_seqs": 4}
    engine = make_engine(12, vllm=vllm, policy=policy) if policy else make_engine(12, kind=vllms_own, vllm=vllm)
    for i in range(12):
        length = 60 if i % 2 else 10
        engine.add(f"r{i}", 20, length, facts={"priority": i % 2 == 0}, output_len_lower_bound=length // 2)
    engine.run(check=False)
    engine.check_tokens(engine.requests)
    urgent, others = ([engine.ends[f"r{i}"] for i in range(12) if i % 2 == odd] for odd in (1, 0))
    assert np.mean(urgent) < np.mean(others)


def test_draws_of_a_prompt_share_it(make_engine: Callable[..., Any]) -> None:
    """With n > 1 vLLM makes as many requests of one; eight of them are scheduled with one copy of the prompt."""
    engine = make_engine(14, vllm={"enable_prefix_caching": True})
    for i in range(8):
        engine.add(f"{i}_parent", list(range(97)), 10, output_len_lower_bound=8, output_len_upper_bound=12)
    engine.step()
    engine.step()
    assert len(engine.scheduler.running) == 8  # six blocks in common, one for each
    engine.run()
    engine.check_tokens(engine.requests)


def test_answers_that_a_stop_string_ends_are_learnt_from(make_engine: Callable[..., Any]) -> None:
    """Aborted by vLLM's front end, as those of a client that leaves; those teach nothing."""
    engine = make_engine(14)
    ends = engine.scheduler._ends
    ends._load = lambda: SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    for i, stop in enumerate(["23", "9999"]):
        engine.add(f"r{i}", 10, 90, params={"stop": [stop], "detokenize": True}, output_len_lower_bound=40)
    ends._tokenizer.result()
    for _ in range(8):
        engine.step()
    engine.scheduler.finish_requests(["r0", "r1"], RequestStatus.FINISHED_ABORTED)
    assert (engine.scheduler.metrics.bounds_missed, engine.scheduler.metrics.bounds_covered) == (1, 0)
    engine.check_empty()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("num_drafts", [1, 3])
def test_speculative_decoding_is_followed(make_engine: Callable[..., Any], num_drafts: int, depth: int) -> None:
    """Several tokens of an iteration are as many iterations to the policy; memory is counted with the drafts."""
    drafts = {"method": "ngram", "num_speculative_tokens": num_drafts, "prompt_lookup_max": 2}
    engine = make_engine(16, depth, vllm={"speculative_config": drafts})
    rng = np.random.default_rng(6)
    engine.accept = lambda: int(rng.integers(0, num_drafts + 1))
    engine.add_random(30, np.random.default_rng(7), all_bounded=True)
    engine.run(check=False)
    engine.check_tokens(engine.requests)
    assert engine.num_steps < 600
