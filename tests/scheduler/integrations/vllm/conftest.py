"""vLLM's real scheduler with a made-up model, as fixtures; without vLLM the tests next to it are skipped."""

import importlib.util
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
if importlib.util.find_spec("vllm") is not None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own imports warn
        import torch
        from vllm import SamplingParams
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput
        from vllm.v1.request import Request, RequestStatus
        from vllm.v1.structured_output import StructuredOutputManager

        from scheduler.integrations.vllm import AminScheduler

ROOT = Path(__file__).parents[4]
BLOCK_SIZE, MAX_MODEL_LEN, STOP = 16, 160, 2


class Engine:
    """vLLM's real scheduler with a made-up model: the token at position p is 10 + p, and the last one STOP.

    `depth` iterations are in flight at once, as 2 are with asynchronous scheduling. The model accepts as many draft
    tokens as `accept` says.
    """

    def __init__(self, scheduler: Any, depth: int, accept: Callable[[], int] = lambda: 0) -> None:
        self.scheduler, self.depth, self.accept = scheduler, depth, accept
        self.requests: dict[str, Any] = {}
        self.output_lens: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.num_steps, self.may_resume_at_once = 0, False
        self.arrived_transfers: set[str] = set()
        self.hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        self._in_flight: deque[tuple[Any, set[str]]] = deque()

    def add(
        self,
        request_id: str,
        prompt: int | list[int] | None,
        output_len: int,
        *,
        params: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        **extra_args: Any,
    ) -> Any:
        """Submit a request with so many prompt tokens, or these; `params` are sampling ones, `facts` vLLM's."""
        sampling = {"temperature": 0, "max_tokens": 100, "ignore_eos": True} | (params or {})
        settings = SamplingParams(stop_token_ids=[STOP], extra_args=extra_args or None, **sampling)
        # The tokens of an anonymous prompt are its own, so that it shares no block.
        tokens = [1000 + len(self.requests)] * prompt if isinstance(prompt, int) else prompt
        options: dict[str, Any] = {"arrival_time": float(len(self.requests))} | (facts or {})
        request = Request(request_id, tokens, settings, None, block_hasher=self.hasher, **options)
        self.requests[request_id], self.output_lens[request_id] = request, output_len
        self.scheduler.add_request(request)
        return request

    def step(self) -> Any:
        """Schedule an iteration; take in the oldest one if enough are in flight."""
        output = self.scheduler.schedule()
        self.num_steps += 1
        ids = list(output.num_scheduled_tokens)
        assert self.may_resume_at_once or output.preempted_req_ids.isdisjoint(ids), (
            "the first model runner takes them for never gone"
        )
        in_prefill = {name for name in ids if self.scheduler.requests[name].is_prefill_chunk}
        self._in_flight.append((output, in_prefill))
        if len(self._in_flight) == self.depth or not ids:
            self._take_in(*self._in_flight.popleft())
        return output

    def _take_in(self, output: Any, in_prefill: set[str]) -> None:
        ids = list(output.num_scheduled_tokens)
        drafts = output.scheduled_spec_decode_tokens
        sampled = [[] if name in in_prefill else self._sample(name, len(drafts.get(name, ()))) for name in ids]
        rows = {request_id: i for i, request_id in enumerate(ids)}
        transfers, self.arrived_transfers = self.arrived_transfers, set()
        kv = KVConnectorOutput(finished_recving=transfers) if transfers else None
        self.scheduler.update_from_output(output, ModelRunnerOutput(ids, rows, sampled, kv_connector_output=kv))
        for name in ids:
            if name not in self.scheduler.requests:
                self.ends.setdefault(name, self.num_steps)
        if (num_drafts := self.scheduler.num_spec_tokens) and self.depth == 1:
            left = [name for name in ids if name in self.scheduler.requests and name not in in_prefill]
            self.scheduler.update_draft_token_ids(DraftTokenIds(left, [[7] * num_drafts for _ in left]))

    def _sample(self, name: str, num_drafts: int) -> list[int]:
        request = self.requests[name]
        last = request.num_prompt_tokens + self.output_lens[name] - 1
        count = 1 + min(num_drafts, self.accept())
        return [STOP if p == last else 10 + p for p in range(request.num_tokens, request.num_tokens + count)]

    def check_memory(self) -> None:
        """What vLLM has handed out is within what the policy counts, which is within the cache."""
        pool, runner = self.scheduler.kv_cache_manager.block_pool, self.scheduler.governor.runner
        used = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        assert used <= runner.running.next_blocks <= runner.policy.worker.kv_cache.num_blocks

    def check_counts(self) -> None:
        """The policy counts the tokens as of before this iteration; only what is in flight at an eviction is late."""
        runner, requests = self.scheduler.governor.runner, self.scheduler.requests
        for index, request_id in zip(runner.running, runner.running_ids(), strict=True):
            request, counted = requests[request_id], runner.running.num_generated(index)
            ahead = request.num_output_tokens + request.num_output_placeholders - counted
            assert ahead in ((-1, 0) if request.status == RequestStatus.PREEMPTED else (0, 1)), request_id

    def run(self, *, max_steps: int = 20_000, check: bool = True) -> None:
        """Run to the end; nothing may be left anywhere."""
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished_requests():
                break
            self.step()
            if check:
                self.check_memory()
                self.check_counts()
        assert not self.scheduler.has_unfinished_requests(), "livelock"
        assert not self.scheduler.requests
        assert not self.scheduler.waiting
        self.check_empty()

    def check_empty(self) -> None:
        """The plug-in keeps nothing of any request."""
        scheduler = self.scheduler
        if not isinstance(scheduler, AminScheduler) or scheduler.arrivals is None:
            return
        places: list[Any] = [scheduler.arrivals]
        if scheduler.governor is not None:
            runner = scheduler.governor.runner
            assert len(runner) == len(runner.running) == len(runner.policy.waiting) == 0
            assert runner.running.common_blocks == runner.num_outside_blocks
            runner.policy.schedule(runner.running)  # what has ended is taken out by the next call
            places += [
                scheduler.governor,
                scheduler.governor.adapters,
                runner,
                runner.policy,
                runner.policy.waiting,
                runner.policy.waiting.prefixes,
            ]
        held = {(type(place).__name__, *item) for place in places for item in _kept(place)}
        assert held == set()

    def check_tokens(self, request_ids: Iterable[str]) -> None:
        """Each of these has exactly its tokens, in order."""
        for request_id in request_ids:
            request = self.requests[request_id]
            start, output_len = request.num_prompt_tokens, self.output_lens[request_id]
            expected = [10 + position for position in range(start, start + output_len - 1)] + [STOP]
            assert list(request.output_token_ids) == expected, request_id

    def add_random(self, count: int, rng: np.random.Generator, first: int = 0, *, all_bounded: bool = False) -> None:
        """Prompts up to 59 tokens, answers up to 99, most with a bound."""
        for i in range(first, first + count):
            output_len = int(rng.integers(1, 100))
            lower = max(1, int(output_len * rng.uniform(0.3, 1.3)))
            bounds = {"output_len_lower_bound": lower} if i % 4 or all_bounded else {}
            self.add(f"r{i}", int(rng.integers(1, 60)), output_len, **bounds)

    @property
    def mean_end(self) -> float:
        """Mean number of iterations to the end of a request, all having arrived at the start."""
        return float(np.mean(list(self.ends.values())))


def _kept(place: Any) -> list[tuple[str, str]]:
    """What collections hold by request; names that a heap drops when they come up are not counted."""
    return [
        (name, repr(value)[:80])
        for name, value in vars(place).items()
        if isinstance(value, dict | set) and value and name != "_removed"
    ]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model of two layers, a tokenizer and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    file = ROOT / "checkpoints/length-predictor-small/tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="[SEP]", pad_token="[PAD]")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two random LoRA adapters of the random model, by name."""
    from safetensors.torch import save_file

    rng, folders = torch.Generator().manual_seed(1), {}
    for name in ("left", "right"):
        folders[name] = tmp_path_factory.mktemp(name)
        weights = {
            f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight": torch.randn(
                (8, 64) if part == "A" else (64, 8), generator=rng
            )
            for layer in range(2)
            for module in ("q_proj", "v_proj")
            for part in "AB"
        }
        save_file(weights, folders[name] / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj", "v_proj"]}
        (folders[name] / "adapter_config.json").write_text(json.dumps(config))
    return folders


@pytest.fixture(scope="session")
def make_config(tiny_model: Path) -> Callable[..., Any]:
    """A function that returns the configuration of an engine that splits long prefills; options are vLLM's."""

    def make(**options: Any) -> Any:
        arguments = {
            "model": str(tiny_model),
            "dtype": "float32",
            "max_model_len": MAX_MODEL_LEN,
            "block_size": BLOCK_SIZE,
            "max_num_batched_tokens": 64,
            "max_num_seqs": 16,
            "enable_prefix_caching": False,
        }
        return EngineArgs(**(arguments | options)).create_engine_config()

    return make


@pytest.fixture(scope="session")
def make_engine(make_config: Callable[..., Any]) -> Callable[..., Engine]:
    """A function that returns an engine with `num_blocks` for requests.

    `kind` is a scheduler class, by default the plug-in; `vllm` are vLLM's options, `settings` the plug-in's.
    """
    plain = make_config()

    def make(num_blocks: int, depth: int = 1, kind: Any = None, *, vllm: Any = None, **settings: Any) -> Engine:
        config = make_config(**vllm) if vllm else plain
        init_none_hash(sha256)
        spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=2, head_size=64, dtype=torch.float32)
        config.cache_config.num_gpu_blocks = num_blocks + 1
        config.additional_config = {"amin": settings}
        scheduler = (kind or AminScheduler)(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
            log_stats=True,
        )
        return Engine(scheduler, depth)

    return make


@pytest.fixture(scope="session")
def vllms_own() -> Any:
    """The scheduler that vLLM takes by itself."""
    return AsyncScheduler


@pytest.fixture(scope="session")
def abort() -> Callable[..., list[str]]:
    """A function that aborts requests as a client that leaves does, all of them for None; it returns their names."""

    def leave(engine: Engine, names: Any) -> list[str]:
        ended = engine.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)
        return [request.request_id for request in ended]

    return leave


@pytest.fixture(scope="session")
def streaming_chunk() -> Callable[[Engine, str, list[int] | None], None]:
    """A function that sends a session its next tokens, or with None its end."""

    def send(engine: Engine, name: str, tokens: list[int] | None) -> None:
        settings = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, stop_token_ids=[STOP])
        engine.scheduler.add_request(Request(name, tokens or [0], settings, None, resumable=tokens is not None))

    return send


class Transfers:
    """A KV connector that brings the first tokens of some prompts from elsewhere, when it is told to."""

    requires_kv_delivery = supports_divergent_local_hybrid_hits = False

    def __init__(self, names: set[str], num_tokens: int) -> None:
        self.names, self.num_tokens = set(names), num_tokens

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Return how many tokens come, and whether later."""
        waits = request.request_id in self.names
        return (self.num_tokens, True) if waits and num_computed_tokens < self.num_tokens else (0, False)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {
            "request_finished": (False, None),
            "request_finished_all_groups": (False, None),
            "has_pending_push_work": False,
            "has_pending_block_frees": False,
            "get_loaded_kv_cache_group_ids": (),
        }
        return lambda *args, **kwargs: answers.get(name)


@pytest.fixture(scope="session")
def connector() -> Callable[..., Callable[[], None]]:
    """A function that gives an engine such a connector; it returns one that lets all transfers arrive."""

    def connect(engine: Engine, names: set[str], num_tokens: int) -> Callable[[], None]:
        transfers = Transfers(names, num_tokens)
        engine.scheduler.connector = transfers

        def arrive() -> None:
            engine.arrived_transfers = set(transfers.names)
            transfers.names = set()

        return arrive

    return connect
