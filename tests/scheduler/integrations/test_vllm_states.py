"""States by blocks of a KV cache: what is read is what a plain pass over prompt and answer gives."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

WIDTH, SIZE, WINDOW = 5, 4, 3


@cache
def state_of(prefix: tuple[int, ...]) -> np.ndarray:
    """The state at the last of these tokens, [H]: it depends on all of them."""
    return np.random.default_rng(prefix).normal(size=WIDTH).astype(np.float32)


def plainly(prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """Last state, mean of the last ones and of the prompt's, [3, H]."""
    tokens = (*prompt, *answer)
    states = np.stack([state_of(tokens[: i + 1]) for i in range(len(tokens))])
    first = max(len(prompt) - 1, len(states) - WINDOW)
    return np.stack([states[-1], states[first:].mean(0), states[: len(prompt)].mean(0)])


class Paged:
    """A block pool as vLLM's: equal beginnings are found again until their blocks are written anew."""

    def __init__(self, states: Any, num_blocks: int, rng: np.random.Generator) -> None:
        self.states, self.rng = states, rng
        self.free = list(range(num_blocks))
        self.holds: dict[int, tuple[int, ...]] = {}
        self.users = [0] * num_blocks
        self.tokens: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.num_found = 0

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the beginning of these tokens; the last token is always computed."""
        found: list[int] = []
        for stop in range(SIZE, len(tokens), SIZE):
            same = [block for block, held in self.holds.items() if held == tuple(tokens[:stop])]
            if not same:
                break
            found.append(same[0])
        return found

    def start(self, name: str) -> None:
        """Begin a request, or begin it again."""
        self.blocks[name] = found = self.find(self.tokens[name])
        for block in found:
            self.users[block] += 1
            if block in self.free:
                self.free.remove(block)
        self.num_found += len(found)
        self.computed[name] = len(found) * SIZE

    def grow(self, name: str, stop: int) -> list[int]:
        """Give a request blocks for so many tokens."""
        new = []
        while len(self.blocks[name]) * SIZE < stop:
            block = self.free.pop(0)
            self.holds.pop(block, None)
            self.users[block] += 1
            self.blocks[name].append(block)
            new.append(block)
        return new

    def stop(self, name: str) -> None:
        """Free the blocks of a request; what is full stays to be found."""
        for block in self.blocks.pop(name)[::-1]:
            self.users[block] -= 1
            if not self.users[block]:
                self.free.append(block)

    def pass_over(self, plan: dict[str, int]) -> None:
        """Compute so many tokens of each request."""
        import torch

        chunks, rows = [], []
        for name, length in plan.items():
            start, tokens = self.computed[name], self.tokens[name]
            chunks.append((name, start, length))
            rows += [state_of(tuple(tokens[: i + 1])) for i in range(start, start + length)]
            self.computed[name] = stop = start + length
            for end in range(SIZE, stop + 1, SIZE):
                self.holds[self.blocks[name][end // SIZE - 1]] = tuple(tokens[:end])
        padding = np.full((2, WIDTH), np.nan, np.float32)
        self.states.note(torch.from_numpy(np.concatenate([rows, padding])), chunks)


@pytest.fixture
def paged() -> Paged:
    """A pool of 30 blocks."""
    import torch

    from scheduler.integrations.vllm_states import BlockStates

    return Paged(BlockStates(30, SIZE, WIDTH, WINDOW, torch.empty(0)), 30, np.random.default_rng(0))


def test_states_are_those_of_a_plain_pass(paged: Paged) -> None:
    """With prompts in chunks, common beginnings, next turns, evictions at any time, and blocks that are used again."""
    rng, states, common, num_checked, num_evicted = paged.rng, paged.states, [1, 2, 3, 4, 5, 6, 7, 8, 9], 0, 0
    running: list[str] = []
    waiting: list[str] = []
    ended: list[list[int]] = []  # whose next turn begins with prompt and answer
    for step in range(600):
        if step % 3 == 0:
            name = f"r{step}"
            before = common[: int(rng.integers(0, 10))] if step % 2 or not ended else ended[-1]
            prompt = before + rng.integers(10, 12, int(rng.integers(1, 9))).tolist()
            paged.tokens[name], paged.prompts[name] = prompt, len(prompt)
            waiting.append(name)
        while waiting and len(paged.free) > 12:
            name = waiting.pop(int(rng.integers(len(waiting))))
            paged.start(name)
            states.admit(name, paged.prompts[name], paged.blocks[name])
            running.append(name)
        plan = {}
        for name in running:
            left = len(paged.tokens[name]) - paged.computed[name]
            length = int(rng.integers(1, min(left, 12) + 1))
            if len(paged.free) < 4:
                continue
            states.extend(name, paged.grow(name, paged.computed[name] + length))
            plan[name] = length
        if plan:
            paged.pass_over(plan)
        whole = [name for name in plan if paged.computed[name] == len(paged.tokens[name])]
        if whole:
            found, counts = states.read(whole)
            for name, row, count in zip(whole, found.numpy(), counts, strict=True):
                size = paged.prompts[name]
                assert count == (len(paged.tokens[name]) - size, size)
                np.testing.assert_allclose(
                    row, plainly(paged.tokens[name][:size], paged.tokens[name][size:]), atol=1e-5
                )
                num_checked += 1
        for name in whole:
            paged.tokens[name].append(int(rng.integers(10, 12)))
            if rng.random() < 0.1:
                running.remove(name)
                paged.stop(name)
                states.forget(name)
                ended.append(paged.tokens[name][:20])
        while running and (len(paged.free) < 6 or rng.random() < 0.1):
            name = running.pop(int(rng.integers(len(running))))
            paged.stop(name)
            waiting.append(name)
            num_evicted += 1
    assert num_checked > 1000
    assert paged.num_found > 200
    assert num_evicted > 50
    for name in [*running, *waiting]:
        states.forget(name)
    assert states.num_kept == 0


def test_a_streamed_input_begins_anew_with_what_was_generated(paged: Paged) -> None:
    """A request that comes back with a longer prompt has its mean over that."""
    tokens = [3, 4, 5, 6, 7, 8]
    paged.tokens["a"], paged.prompts["a"] = tokens, 3
    paged.start("a")
    paged.grow("a", len(tokens))
    paged.states.admit("a", 3, paged.blocks["a"])
    paged.pass_over({"a": 3})
    paged.pass_over({"a": 1})
    paged.states.admit("a", 6, paged.blocks["a"])
    paged.pass_over({"a": 2})
    found, counts = paged.states.read(["a"])
    assert counts == [(0, 6)]
    np.testing.assert_allclose(found[0].numpy(), plainly(tokens, ()), atol=1e-5)


def test_a_state_that_is_no_number_reaches_those_alone_who_read_it(paged: Paged) -> None:
    """Whoever finds the block again is not a number either; once it is written anew it is one."""
    import torch

    states = paged.states
    states.admit("bad", 5, [0, 1])
    states.note(torch.full((5, WIDTH), torch.nan), [("bad", 0, 5)])
    states.admit("finds it", 6, [0, 2])
    states.admit("alone", 2, [3])
    states.note(torch.ones(4, WIDTH), [("finds it", 4, 2), ("alone", 0, 2)])
    states.forget("bad")
    states.admit("anew", 2, [0])
    read, _ = states.read(["finds it", "alone"])
    assert torch.isnan(read[0, 2]).all()
    assert not torch.isnan(read[1]).any()
    states.note(torch.ones(2, WIDTH), [("anew", 0, 2)])
    assert not torch.isnan(states.read(["anew"])[0]).any()
