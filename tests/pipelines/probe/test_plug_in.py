"""A probe in transformers' own loop: what reaches the policy, what is refused, and that nothing stays."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictor.errors import InputError as PredictorInputError
from predictor.probe.states import POSITIONS
from scheduler.errors import InputError
from scheduler.renewals import Renewal

CAP, EVERY = 40, 4


@pytest.fixture(scope="module")
def served(chat_model: Path) -> Any:
    """The random model in single precision, greedy."""
    from pipelines.served_model.loading import load_served_model

    loaded = load_served_model(str(chat_model), CAP, "cpu", exact=True)
    settings = loaded.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
    return loaded


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Ten prompts of 3 to 49 tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(5, 200, int(n)).tolist() for n in rng.integers(3, 50, 10)]


@pytest.fixture
def configured(served: Any, exports: dict[str, Path]) -> Callable[..., Any]:
    """A function that returns the engine's settings, with further ones as given."""
    from pipelines.plug_ins import continuous_batching_config

    def make(probe: Path | None = None, policy: str = "amin", **settings: Any) -> Any:
        given = {"num_blocks": 10, "timeout": 30.0, "max_batch_tokens": 32, "renew_every": EVERY} | settings
        model = given.pop("served_model", served.model)
        return continuous_batching_config(
            exports["fp32"], served.tokenizer, policy, probe=probe, served_model=model, **given
        )

    return make


def drive(
    served: Any, config: Any, prompts: Sequence[list[int]], cancel_at: int = -1
) -> tuple[Any, dict[str, list[int]], list[tuple[str, Renewal]]]:
    """The scheduler, tokens by request and renewals that the policy got; some are cancelled at a step."""
    import torch

    model = served.model
    manager = model.init_continuous_batching(
        generation_config=served.generation_config, continuous_batching_config=config
    )
    processor = manager.batch_processor = manager._create_batch_processor()
    queues = processor.scheduler
    renewals, renew = [], queues.runner.policy.renew

    def watched(index: int, renewal: Renewal) -> None:
        renewals.append((queues.runner.request(index).request_id, renewal))
        renew(index, renewal)

    queues.runner.policy.renew = watched
    for i, prompt in enumerate(prompts):
        manager.add_request(prompt, request_id=f"r{i}", max_new_tokens=CAP)
    tokens, step = {}, 0
    with torch.no_grad():
        while processor.prepare_next_batch():
            processor._generation_step(model)
            processor.update_batch()
            step += 1
            for name in [*list(queues.active_requests)[:2], *list(queues.waiting_requests)[:2]] * (step == cancel_at):
                queues.set_request_cancellation(name)
            while (output := manager.get_result(timeout=0)) is not None:
                tokens[output.request_id] = output.generated_tokens
    manager.destroy()
    return queues, tokens, renewals


def plain_states(served: Any, prompt: list[int], answer: list[int], out: int) -> np.ndarray:
    """Last state, mean of the last 16 and of the prompt's after `out` tokens of the answer, [1, 3, H]."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([[*prompt, *answer[:out]]])
        states = served.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0].numpy()
    first = max(len(prompt) - 1, len(states) - 16)
    return np.stack([states[-1], states[first:].mean(0), states[: len(prompt)].mean(0)])[None]


@pytest.mark.parametrize("policy", ["amin", "amin-survival"])
def test_the_policy_gets_what_a_plain_pass_would_give(
    served: Any,
    prompts: list[list[int]],
    configured: Callable[..., Any],
    make_probe: Callable[..., Path],
    policy: str,
) -> None:
    """After evictions and split prefills too; the tokens are those without a probe, and nothing is kept."""
    from pipelines.probe.renewed_bounds import RenewedBounds
    from predictor.probe.probe import Probe

    folder = make_probe()
    _, expected, none = drive(served, configured(policy=policy, num_blocks=64), prompts)
    assert not none
    queues, tokens, renewals = drive(served, configured(folder, policy), prompts)
    assert queues.runner.num_evictions > 0
    assert tokens == expected
    assert queues._states.reader.num_kept == 0
    assert {name for name, _ in renewals} == {name for name, answer in tokens.items() if len(answer) > 1}
    plainly = RenewedBounds(Probe.load(folder), 0.1)
    for name, renewal in renewals[::5]:
        prompt, out = prompts[int(name[1:])], renewal.num_generated - 1
        states = plain_states(served, prompt, tokens[name], out)
        (again,) = plainly.renew(states, [out], [len(prompt)], [None])
        assert again is not None
        assert renewal.forecast.edges.tolist() == again.forecast.edges.tolist()
        np.testing.assert_allclose(renewal.forecast.survival, again.forecast.survival, atol=1e-3)


def test_running_requests_are_renewed_every_so_many_tokens(
    served: Any, prompts: list[list[int]], configured: Callable[..., Any], make_probe: Callable[..., Path]
) -> None:
    """All of them in one iteration, and each right after its prefill."""
    _, tokens, renewals = drive(served, configured(make_probe(), num_blocks=64), prompts)
    for name, answer in tokens.items():
        counts = [renewal.num_generated for each, renewal in renewals if each == name]
        if len(answer) > 1:
            assert counts[0] == 1
            assert set(np.diff(counts[1:])) <= {EVERY}
            assert len(answer) - counts[-1] <= EVERY


def test_a_bound_is_renewed_once_for_each_calibrated_position(
    served: Any, prompts: list[list[int]], configured: Callable[..., Any], make_probe: Callable[..., Path]
) -> None:
    """Of two renewals between positions the second has the bound of the first, as far as the answer is not past it."""
    folder = make_probe(bias=-3.0)  # bounds well above what is out
    _, _, renewals = drive(served, configured(folder, num_blocks=64, renew_every=2, tau=0.5), prompts)
    bounds: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for name, renewal in renewals:
        passed = sum(renewal.num_generated - 1 >= position for position in POSITIONS)
        bounds.setdefault((name, passed), []).append((renewal.num_generated, renewal.output_len_lower_bound))
    assert max(map(len, bounds.values())) >= 4
    assert any(each[0][1] > each[-1][0] + 1 for each in bounds.values() if len(each) > 1)
    for (_, first), *later in bounds.values():
        assert all(bound == max(first, out + 1) for out, bound in later)


def test_a_mixture_is_read_with_its_own_predictor_alone(
    served: Any,
    prompts: list[list[int]],
    configured: Callable[..., Any],
    make_probe: Callable[..., Path],
    exports: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Next to it the prompt's forecast counts; next to another the probe is read alone, and the log says so."""

    def first_survivals(probe: Path) -> dict[str, np.ndarray]:
        _, _, renewals = drive(served, configured(probe, num_blocks=64), prompts)
        return {name: each.forecast.survival for name, each in renewals if each.num_generated == 1}

    alone = first_survivals(make_probe())
    mixed = first_survivals(make_probe(mixed_with=exports["fp32"]))
    assert not [line for line in caplog.messages if "it is read alone" in line]
    other = first_survivals(make_probe(mixed_with=exports["int8"]))
    assert [line for line in caplog.messages if "it is read alone" in line]
    for name, survival in alone.items():
        np.testing.assert_allclose(other[name], survival, atol=1e-5)  # batches differ, and so does the last digit
        assert not np.allclose(mixed[name], survival, atol=1e-3)


def test_a_cancelled_request_leaves_no_state(
    served: Any, prompts: list[list[int]], configured: Callable[..., Any], make_probe: Callable[..., Path]
) -> None:
    """Running or waiting; and the hook goes with the engine."""
    layers = served.model.model.layers
    gc.collect()
    before = len(layers[0]._forward_hooks)
    queues, tokens, _ = drive(served, configured(make_probe()), prompts, cancel_at=5)
    assert len(tokens) < len(prompts)
    assert queues._states.reader.num_kept == 0
    assert len(layers[0]._forward_hooks) == before + 1
    del queues
    gc.collect()
    assert len(layers[0]._forward_hooks) == before


def test_a_state_that_is_no_number_is_counted_and_leaves_the_forecast(
    served: Any,
    prompts: list[list[int]],
    configured: Callable[..., Any],
    make_probe: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says so when their number has doubled, not at each."""
    queues, tokens, renewals = drive(served, configured(make_probe(bias=float("nan"))), prompts)
    assert len(tokens) == len(prompts)
    assert not renewals
    num_failed = queues.runner.renewals.bounds.num_failed
    assert num_failed >= len(prompts)
    said = [line for line in caplog.messages if "not numbers" in line]
    assert 1 <= len(said) <= num_failed.bit_length()


def test_generate_batch_gives_the_same_answers_with_a_probe(
    served: Any, prompts: list[list[int]], configured: Callable[..., Any], make_probe: Callable[..., Path]
) -> None:
    """The way of a user, in the engine's own thread."""

    def answers(probe: Path | None) -> list[list[int]]:
        outputs = served.model.generate_batch(
            prompts,
            generation_config=served.generation_config,
            continuous_batching_config=configured(probe),
            warmup=False,
        )
        assert all(output.error is None for output in outputs.values())
        return sorted(output.generated_tokens for output in outputs.values())

    assert answers(make_probe()) == answers(None)


@pytest.mark.parametrize("change", [{"revision": "r2"}, {"template": "t2"}, {"layers": (9,)}], ids=str)
def test_another_probe_is_refused_in_a_line(
    configured: Callable[..., Any], make_probe: Callable[..., Path], change: dict[str, Any]
) -> None:
    """Before there is an engine; the line names what differs."""
    with pytest.raises(PredictorInputError, match=next(iter(change)).removesuffix("s")) as error:
        configured(make_probe(**change))
    assert "\n" not in str(error.value)


def test_settings_that_do_not_go_with_a_probe_are_refused(
    served: Any, configured: Callable[..., Any], make_probe: Callable[..., Path], tmp_path: Path
) -> None:
    """No model, no probe, a policy that reads nothing, a batch too many; and another model than the one given."""
    import copy

    probe = make_probe()
    for wrong, message in (
        ({"served_model": None}, "served_model: missing"),
        ({"probe": tmp_path}, "no probe that can be read"),
        ({"renew_every": 0}, "renew_every: is 0, must be at least 1"),
        ({"tau": 0.0001}, "tau"),
    ):
        with pytest.raises(PredictorInputError, match=message):
            configured(**{"probe": probe, **wrong})
    with pytest.raises(InputError, match="'fcfs' reads no predictions; leave the probe out"):
        configured(probe, "fcfs")
    with pytest.raises(InputError, match="use_async_batching: must be False with a probe"):
        configured(probe, use_async_batching=True)
    with pytest.raises(PredictorInputError, match="served_model: is not the model that generates"):
        drive(served, configured(probe, served_model=copy.deepcopy(served.model)), [[5, 6]])
