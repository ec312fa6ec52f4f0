import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from predictor.sidecar.batching import Batcher

Result = TypeVar("Result")


class Model:
    """Stands for the network: lasts `seconds` a prompt, returns the prompts' lengths, remembers its batches."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Their lengths [N, 1]; text with "poison" breaks it."""
        self.gate.wait(60)
        self.batches.append(list(prompts))
        self.threads.add(threading.get_ident())
        if any("poison" in prompt for prompt in prompts):
            raise ValueError("poison")
        time.sleep(self.seconds * len(prompts))
        return np.array([[len(prompt)] for prompt in prompts], dtype=float)


def values(answers: list[object]) -> list[object]:
    """Predictions as numbers, reasons as they are."""
    return [answer if isinstance(answer, str) else int(answer[0]) for answer in answers]  # type: ignore[index]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is what timers say: it jumps to the next one, and a batch of n prompts takes `seconds` times n of it."""

    now, seconds = 0.0, 0.01

    def time(self) -> float:
        """Return the virtual seconds."""
        return self.now

    def run_in_executor(self, executor: object, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Return what the function returns, when its time is over."""
        done = self.create_future()
        self.call_later(self.seconds * len(args[0]), lambda: done.set_result(function(*args)))
        return done

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, Result], seconds: float) -> Result:
    """Return what a coroutine returns on a virtual clock, on which a prompt takes so many seconds."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().seconds = seconds  # type: ignore[attr-defined]
        return runner.run(main)


def test_concurrent_prompts_share_an_inference_and_get_their_own_answer() -> None:
    """Twenty requests at once, batches of at most eight, one worker thread."""
    model = Model()
    told: list[int] = []

    async def main() -> list[list[object]]:
        async with Batcher(model, max_wait=0.05, on_batch=lambda size, seconds: told.append(size)) as batcher:
            return await asyncio.gather(*(batcher.predict(["x" * i], 60.0) for i in range(1, 21)))

    answers = asyncio.run(main())
    assert [values(answer) for answer in answers] == [[i] for i in range(1, 21)]
    assert told == [len(batch) for batch in model.batches] == [8, 8, 4]
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


def test_a_lone_prompt_waits_no_longer_than_it_was_told() -> None:
    """30 ms, not the 60 s that it would have."""

    async def main() -> float:
        async with Batcher(Model(), max_wait=0.03) as batcher:
            start = time.perf_counter()
            await batcher.predict(["a"], 60.0)
            return time.perf_counter() - start

    assert 0.028 <= asyncio.run(main()) < 30.0


def test_prompts_of_one_size_share_a_batch_up_to_its_work() -> None:
    """Padding costs: long prompts go alone, the short ones together, the most urgent first."""
    model = Model()
    prompts = ["x" * 100, "x" * 10, "y" * 90, "y" * 11, "z" * 12, "x" * 99]

    async def main() -> list[object]:
        async with Batcher(model, size=len, max_work=100) as batcher:
            return values(await batcher.predict(prompts, 60.0))

    assert asyncio.run(main()) == [len(prompt) for prompt in prompts]
    sizes = [[len(prompt) for prompt in batch] for batch in model.batches]
    assert sizes == [[100], [10, 11, 12], [90], [99]]


def test_the_earliest_deadline_goes_first() -> None:
    """A bulk request with time to spare lets a hasty one pass."""
    model = Model()

    async def main() -> None:
        async with Batcher(model, max_batch=1, max_wait=0) as batcher:
            model.gate.clear()
            first = asyncio.create_task(batcher.predict(["first"], 60.0))
            await until(lambda: batcher.num_waiting == 0)
            bulk = asyncio.create_task(batcher.predict(["bulk"] * 3, 90.0))
            hasty = asyncio.create_task(batcher.predict(["hasty"], 70.0))
            await until(lambda: batcher.num_waiting == 4)
            model.gate.set()
            await asyncio.gather(first, bulk, hasty)

    asyncio.run(main())
    assert model.batches == [["first"], ["hasty"], ["bulk"], ["bulk"], ["bulk"]]


def test_what_would_be_late_is_shed_at_once_and_the_queue_is_bounded() -> None:
    """0.1 s a prompt: of ten with 0.35 s, a few are predicted, the rest told immediately; nobody waits much longer."""

    async def main() -> tuple[list[object], float, list[object]]:
        async with Batcher(Model(), max_batch=1, max_queue=4) as batcher:
            await batcher.predict(["warm"], 60.0)
            start = asyncio.get_running_loop().time()
            answers = values(await batcher.predict(["p"] * 10, 0.35))
            seconds = asyncio.get_running_loop().time() - start
            full = values(await batcher.predict(["p"] * 10, 60.0))
            return answers, seconds, full

    answers, seconds, full = run_virtually(main(), 0.1)
    assert set(answers) <= {1, "deadline", "queue_full"}
    assert 1 in answers
    assert answers.count("deadline") + answers.count("queue_full") >= 6
    assert seconds <= 0.35
    assert full.count("queue_full") == 6


def test_a_stuck_inference_delays_no_answer_beyond_its_deadline() -> None:
    """And when it is over, the next prompts are predicted."""
    model = Model()

    async def main() -> tuple[list[object], float, int, list[object]]:
        async with Batcher(model, max_wait=0) as batcher:
            model.gate.clear()
            start = time.perf_counter()
            stuck = values(await batcher.predict(["a"], 0.05))
            waiting = values(await batcher.predict(["b", "c"], 0.05))
            seconds = time.perf_counter() - start
            left = batcher.num_waiting
            model.gate.set()
            await asyncio.sleep(0.05)
            return [*stuck, *waiting], seconds, left, values(await batcher.predict(["dd"], 60.0))

    late, seconds, left, after = asyncio.run(main())
    assert late == ["deadline"] * 3
    assert (seconds < 30.0, left, after) == (True, 0, [2])
    assert ["b", "c"] not in model.batches, "nobody waits for them any more"


def test_after_a_slow_batch_an_idle_worker_takes_prompts_again() -> None:
    """The estimate, a second a prompt, must not shed everything for ever."""

    async def main() -> list[object]:
        async with Batcher(Model()) as batcher:
            await batcher.predict(["slow"], 60.0)
            asyncio.get_running_loop().seconds = 0.0  # type: ignore[attr-defined]
            return [value for _ in range(40) for value in values(await batcher.predict(["p"], 0.1))]

    assert run_virtually(main(), 0.2) == [1] * 40


def test_two_workers_predict_at_the_same_time() -> None:
    """Both are stuck at once, a third prompt waits for either; leaving answers all three."""
    model = Model()

    async def main() -> tuple[int, list[object]]:
        async with Batcher(model, max_batch=1, max_wait=0, num_workers=2) as batcher:
            model.gate.clear()
            tasks = [asyncio.create_task(batcher.predict(["p"], 60.0)) for _ in range(3)]
            await until(lambda: batcher.num_waiting == 1)
            await asyncio.sleep(0.02)
            left = batcher.num_waiting
            model.gate.set()
        return left, [value for task in tasks for value in values(await task)]

    assert asyncio.run(main()) == (1, [1, 1, 1])
    assert len(model.threads) == 2


def test_a_prompt_that_cannot_be_predicted_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Its neighbours in the batch are predicted, and so is what comes later."""

    async def main() -> list[object]:
        async with Batcher(Model(), max_wait=0.02) as batcher:
            first = values(await batcher.predict(["a", "poison", "ccc"], 60.0))
            return [*first, *values(await batcher.predict(["dd"], 60.0))]

    assert asyncio.run(main()) == [1, "error", 3, 2]
    assert "cannot be predicted" in caplog.text


class Panic(BaseException):
    """As the Rust code of a tokenizer raises it: not an Exception."""


def test_a_panic_fails_one_prompt(caplog: pytest.LogCaptureFixture) -> None:
    """The batcher goes on, and says so."""

    def predict(prompts: Sequence[str]) -> np.ndarray:
        if "panic" in prompts:
            raise Panic
        return np.ones((len(prompts), 1))

    async def main() -> tuple[list[object], bool]:
        async with Batcher(predict, max_wait=0.02) as batcher:
            first = values(await batcher.predict(["a", "panic", "b"], 60.0))
            return [*first, *values(await batcher.predict(["c"], 60.0))], batcher.is_running

    assert asyncio.run(main()) == ([1, "error", 1, 1], True)
    assert "cannot be predicted" in caplog.text


def test_leaving_answers_what_waits_and_refuses_the_rest() -> None:
    """Nothing is lost at the end."""
    model = Model(0.01)

    async def main() -> tuple[list[object], list[object]]:
        batcher = Batcher(model, max_batch=2)
        async with batcher:
            waiting = asyncio.create_task(batcher.predict(["p"] * 6, 60.0))
            await until(lambda: batcher.num_waiting > 0)
        return values(await waiting), values(await batcher.predict(["late"], 60.0))

    assert asyncio.run(main()) == ([1] * 6, ["stopped"])


@pytest.mark.parametrize("times", [1.5, 5.0])
def test_goodput_stays_at_the_capacity_in_an_overload(times: float) -> None:
    """10 ms a prompt, two workers, 0.1 s for each: about 200 a second, whatever is offered. It fell to a quarter."""

    async def main() -> tuple[float, float]:
        loop, in_time = asyncio.get_running_loop(), 0
        async with Batcher(Model(), max_wait=0, num_workers=2) as batcher:

            async def ask() -> None:
                nonlocal in_time
                start = loop.time()
                (answer,) = await batcher.predict(["p"], 0.1)
                in_time += not isinstance(answer, str) and loop.time() - start <= 0.1

            async def ask_on_and_on() -> None:
                while loop.time() < start + 3.0:
                    await ask()

            start = loop.time()
            await asyncio.gather(*(ask_on_and_on() for _ in range(4)))
            capacity, in_time = in_time / (loop.time() - start), 0
            start, tasks = loop.time(), list[asyncio.Task[None]]()
            while loop.time() < start + 3.0:
                await asyncio.sleep(0.005)
                due = int((loop.time() - start) * capacity * times)
                tasks += [asyncio.create_task(ask()) for _ in range(due - len(tasks))]
            await asyncio.gather(*tasks)
            return in_time / (loop.time() - start), capacity

    goodput, capacity = run_virtually(main(), 0.01)
    assert capacity == pytest.approx(200, rel=0.1)
    assert goodput >= 0.85 * capacity


def test_a_newcomer_whose_time_the_queue_takes_is_refused_without_being_queued() -> None:
    """One runs and four wait, 0.1 s each: with 0.9 s there is no turn for a fifth, an idle worker takes any."""

    async def main() -> list[list[object]]:
        async with Batcher(Model(), max_batch=1) as batcher:
            idle = values(await batcher.predict(["first"], 0.01)), values(await batcher.predict(["a"], 60.0))
            waiting = [asyncio.create_task(batcher.predict(["p"], 0.8)) for _ in range(5)]
            await until(lambda: batcher.num_waiting == 4)
            start = asyncio.get_running_loop().time()
            refused = values(await batcher.predict(["late"], 0.9))
            assert asyncio.get_running_loop().time() == start
            assert batcher.num_waiting == 4
            patient = values(await batcher.predict(["patient"], 60.0))
            return [*idle, refused, patient, *(values(task.result()) for task in waiting)]

    assert run_virtually(main(), 0.1) == [["deadline"], [1], ["deadline"], [7], *[[1]] * 5]


def test_idle_workers_share_what_waits() -> None:
    """Four at once on two workers: two each, not four on one of them."""
    model = Model()

    async def main() -> None:
        async with Batcher(model, num_workers=2, max_wait=0) as batcher:
            await asyncio.gather(*(batcher.predict(["p"], 60.0) for _ in range(4)))

    run_virtually(main(), 0.1)
    assert [len(batch) for batch in model.batches] == [2, 2]


def test_bad_options_are_refused() -> None:
    """A batch of none would never end."""
    with pytest.raises(ValueError, match="max_batch"):
        Batcher(Model(), max_batch=0)
    with pytest.raises(ValueError, match="num_workers: must be at least 1, not 8, 256 and 0"):
        Batcher(Model(), num_workers=0)
