from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

CAP = 40
PAGE = 4


@pytest.fixture(scope="module")
def model(random_llama: Callable[..., Any]) -> Any:
    """A random Llama with two query heads per key head, in single precision."""
    return random_llama(
        97,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
    )


@pytest.fixture
def answers(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A function that returns greedy answers under a policy, with one of our attentions or the stock one."""
    from transformers import GenerationConfig

    from scheduler.integrations import transformers_attention, transformers_engine, transformers_varlen
    from scheduler.integrations.transformers_cb import TransformersExecutor
    from scheduler.kv_cache import KvCache
    from scheduler.loop import Loop
    from scheduler.policies import make_policy
    from scheduler.request import Request
    from scheduler.worker import Worker

    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, 97, int(n)).tolist() for n in (1, 2, 3, 4, 5, 8, 9, 17, 30, 31, 40, 60)]
    settings = GenerationConfig(do_sample=False, max_new_tokens=CAP, eos_token_id=1, pad_token_id=0)

    def as_on_a_gpu(cache: Any) -> bool:
        rows = transformers_varlen.rows_of(cache)
        assert rows is not None
        transformers_attention.attend_by(cache, rows, transformers_attention.NAME_ON_GPU)
        return True

    attentions = {"stock": lambda cache: False, "pages": transformers_attention.use_own_keys}

    def run(
        num_blocks: int, attention: str, *, resume: bool = False, max_batch_tokens: int = 24, calls: Any = None
    ) -> Any:
        monkeypatch.setattr(transformers_engine, "use_own_keys", attentions.get(attention, as_on_a_gpu))
        worker = Worker(KvCache(num_blocks, PAGE), resume=resume, max_batch_tokens=max_batch_tokens)
        executor = TransformersExecutor(model, prompts, worker, settings)
        if attention == "varlen, padded":
            pad(executor, {} if calls is None else calls, monkeypatch)
        requests = [Request(str(i), len(prompt), CAP) for i, prompt in enumerate(prompts)]
        policy = make_policy("fcfs", worker, rng, output_lens=None)
        result = Loop(policy, executor, requests).run()
        executor.close()
        assert model.config._attn_implementation == "sdpa"
        return [executor.outputs[i].tokens for i in range(len(prompts))], int(result.num_evictions.sum())

    monkeypatch.setattr(transformers_varlen.varlen, "varlen_attn", one_by_one)
    yield run
    assert model.config._attn_implementation == "sdpa"


def one_by_one(
    query: Any, key: Any, value: Any, starts: Any, key_starts: Any, max_q: int, max_k: int, **options: Any
) -> Any:
    """Attention of each request in turn, as PyTorch's `varlen_attn` has it on a GPU; no numbers where none is asked."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    assert options["window_size"] == (-1, 0)
    out = torch.full_like(query, float("nan"))
    for i in range(len(starts) - 1):
        asked, read = slice(*starts[i : i + 2].tolist()), slice(*key_starts[i : i + 2].tolist())
        num_queries, num_keys = asked.stop - asked.start, read.stop - read.start
        assert num_queries <= max_q
        assert num_keys <= max_k
        if num_queries:
            states = (each.transpose(0, 1)[None] for each in (query[asked], key[read], value[read]))
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
            found = scaled_dot_product_attention(*states, attn_mask=mask, scale=options["scale"], enable_gqa=True)
            out[asked] = found[0].transpose(0, 1)
    return out


def pad(executor: Any, calls: dict[Any, set[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pad batches as for CUDA graphs; note, for each graph there would be, what the attention is called with."""
    from scheduler.integrations.transformers_varlen import varlen

    processor = executor._engine._processor
    processor.model_runner.pad_inputs = processor.inputs_and_outputs.use_cuda_graph_varlen = True
    processor.model_runner.cb_config.q_padding_interval_size = 8
    processor.model_runner.cb_config.kv_padding_interval_size = 64

    def noted(*arguments: Any, **options: Any) -> Any:
        called_with = [each if isinstance(each, int) else tuple(each.shape) for each in arguments]
        called_with += [each.data_ptr() for each in arguments[3:5]]
        calls.setdefault(processor.inputs_and_outputs._get_graph_key(), set()).add(tuple(called_with))
        return one_by_one(*arguments, **options)

    monkeypatch.setattr(varlen, "varlen_attn", noted)


@pytest.mark.parametrize("attention", ["pages", "varlen", "varlen, padded"])
def test_tokens_are_those_of_the_stock_attention(answers: Callable[..., Any], attention: str) -> None:
    """Greedily, with prompts prefilled in parts, and under evictions that restart or resume."""
    stock, _ = answers(400, "stock", max_batch_tokens=400)
    for num_blocks, resume in ((400, False), (60, True), (27, False), (27, True)):
        ours, num_evictions = answers(num_blocks, attention, resume=resume)
        assert ours == stock, f"{num_blocks} blocks, resume {resume}"
        assert (num_evictions > 0) == (num_blocks < 400)


def test_a_graph_holds_for_every_batch_of_its_shape(answers: Callable[..., Any]) -> None:
    """For each key of transformers' graphs the attention is always called with the same shapes, places and lengths."""
    calls: dict[Any, set[Any]] = {}
    answers(60, "varlen, padded", resume=True, calls=calls)
    assert len(calls) > 1
    assert {len(each) for each in calls.values()} == {1}


def test_pages_far_apart_are_gathered(answers: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens whether pages are used where they lie or copied together first."""
    from scheduler.integrations import transformers_pages

    stock, _ = answers(400, "stock")
    monkeypatch.setattr(transformers_pages, "MAX_SPREAD", 0)
    assert answers(60, "pages")[0] == stock


def test_what_pages_held_before_does_not_matter(model: Any) -> None:
    """Even memory that held no numbers: an engine starts with a clean cache."""
    import torch

    from scheduler.integrations.transformers_pages import Pages

    memory = torch.full((4, 2, 3, 5, 6), float("nan"))
    Pages(list(memory[:2]), list(memory[2:]), 5)
    assert (memory == 0).all()


def test_a_model_that_ran_in_an_engine_generates_as_before(model: Any) -> None:
    """With the setting left in place, as after `generate_batch`, ordinary generation is that of sdpa."""
    import torch

    from scheduler.integrations import transformers_attention

    tokens = torch.arange(2, 22)[None]
    arguments = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 12, "do_sample": False}
    stock = model.generate(tokens, **arguments)
    model.config._attn_implementation = transformers_attention.NAME
    try:
        assert model.generate(tokens, **arguments).tolist() == stock.tolist()
    finally:
        model.config._attn_implementation = "sdpa"


@pytest.fixture
def on_the_device() -> Any:
    """A context in which tensors have no values and are on a GPU, and what looks at a value or moves one fails."""
    from contextlib import ExitStack

    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class StaysThere(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            devices = {str(each.device) for each in tree_leaves((args, kwargs, out)) if hasattr(each, "device")}
            assert devices <= {"cuda:0", "cuda"}, f"{func} moves a tensor between {devices}"
            return out

    context = ExitStack()
    context.enter_context(FakeTensorMode())
    context.enter_context(StaysThere())
    return context


def called_on_the_device(num_queries: int = 64, num_keys: int = 1000) -> Any:
    """Call the attention of a GPU on tensors of Llama's shapes, as transformers' continuous batching does."""
    import torch

    from scheduler.integrations.transformers_varlen import TokenRows, varlen_attention

    def states(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda")

    def numbers(size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="cuda")

    memory = TokenRows([states(4096, 8, 128)], [states(4096, 8, 128)])
    batch = {
        "read_index": [numbers(num_keys, torch.int64)],
        "write_index": [numbers(num_queries, torch.int64)],
        "cu_seq_lens_q": numbers(num_queries + 1, torch.int32),
        "cu_seq_lens_k": {"full_attention": numbers(num_queries + 1, torch.int32)},
        "max_length_q": num_queries,
        "max_length_k": {"full_attention": 1024},
    }
    queries, keys = states(1, 32, num_queries, 128), states(1, 8, num_queries, 128)
    return varlen_attention(memory, 0, (queries, keys, keys), 0.1, batch), batch


@pytest.mark.parametrize("num_keys", [0, 1000])
def test_nothing_is_read_back_on_a_gpu(on_the_device: Any, num_keys: int) -> None:
    """So that it can be captured in a CUDA graph: shapes alone decide what is launched."""
    with on_the_device:
        out, _ = called_on_the_device(num_keys=num_keys)
    assert out.shape == (1, 64, 32, 128)


@pytest.mark.parametrize("read_back", ["tolist", "item", "numpy", "cpu", "nonzero", "__bool__"])
def test_a_value_that_is_read_back_is_noticed(on_the_device: Any, read_back: str) -> None:
    """The test before this one fails for whoever looks at a length in the attention, in whichever way."""
    with on_the_device:
        _, batch = called_on_the_device()
        with pytest.raises(Exception):  # noqa: B017 - PyTorch has an error of its own for each
            getattr(batch["cu_seq_lens_q"].max(), read_back)()


def test_a_card_without_flash_attention_keeps_the_stock_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single precision, a card before Ampere, ROCm, heads too large, PyTorch 2.10: its FlashAttention is not enough."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from scheduler.integrations import transformers_varlen
    from scheduler.integrations.transformers_varlen import TokenRows, can_run

    def found(dtype: torch.dtype = torch.bfloat16, width: int = 64, capability: tuple[int, int] = (9, 0)) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        with FakeTensorMode():
            rows = torch.empty(8, 2, width, dtype=dtype, device="cuda")
            return can_run(TokenRows([rows], [rows]))

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert found()
    assert not found(torch.float32)
    assert not found(width=320)
    assert not found(capability=(7, 5))
    with monkeypatch.context() as changed:
        changed.setattr(torch.version, "cuda", None)
        assert not found()
    monkeypatch.setattr(transformers_varlen, "PARAMETERS", {"is_causal"})
    assert not found()


def test_the_environment_can_keep_the_stock_attention(answers: Callable[..., Any], monkeypatch: Any) -> None:
    """AMIN_STOCK_ATTENTION=1 leaves the cache and the model as they are."""
    from scheduler.integrations import transformers_attention

    monkeypatch.setenv("AMIN_STOCK_ATTENTION", "1")
    monkeypatch.setattr(transformers_attention, "attend_by", None)
    assert answers(400, "pages")[0] == answers(400, "stock")[0]
