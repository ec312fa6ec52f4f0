"""A probe in vLLM: the states that its worker reads are those of a plain pass, and nothing else changes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="make test-vllm has an environment with vLLM")

from pipelines.probe.renewed_bounds import RenewedBounds
from pipelines.probe.vllm_probe import WORKER, probe_of
from pipelines.served_model.hidden_states import template_digest
from pipelines.served_model.weights_digest import folder_digest
from pipelines.vllm_scheduler import PredictingScheduler
from predictor.bounds.bins import LengthBins
from predictor.errors import InputError
from predictor.probe.calibration import Scores, StageCalibration
from predictor.probe.network import ProbeNetwork, ProbeShape
from predictor.probe.probe import Probe
from predictor.probe.states import StateSource
from scheduler.errors import InputError as SchedulerInputError
from scheduler.integrations.vllm import PREDICTING
from scheduler.integrations.vllm_renewals import DUE, REPORT, StatesReport
from scheduler.integrations.vllm_settings import Settings
from scheduler.renewals import Renewal

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's, not ours

ROOT = Path(__file__).parents[4]
EVERY, CAP, HIDDEN, MAX_MODEL_LEN = 4, 40, 64, 256


@pytest.fixture(scope="module")
def make_probe(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a random probe of the first layer of the random model, its source changed as given."""
    import torch
    from transformers import AutoTokenizer

    template = template_digest(AutoTokenizer.from_pretrained(tiny_model))
    source = StateSource("tiny", folder_digest(tiny_model), template, (1,), HIDDEN)

    def make(*, bias: float | None = None, **changes: Any) -> Path:
        torch.manual_seed(0)
        bins = LengthBins.log_spaced(64, 12)
        network = ProbeNetwork(ProbeShape(HIDDEN, bins.num_bins, 16)).eval()
        torch.nn.init.normal_(network.hazard.weight, std=0.5)
        if bias is not None:
            torch.nn.init.constant_(network.hazard.bias, bias)
        rng = np.random.default_rng(0)
        prompt, out = np.arange(200), np.repeat([0, 8], 100)
        calibration = StageCalibration.fit(Scores(prompt, prompt * 0, out, rng.random(200), prompt + 1, prompt < 0))
        folder = tmp_path_factory.mktemp("probe")
        Probe(network, bins, replace(source, **changes), calibration).save(folder)
        return folder

    return make


class Served:
    """vLLM's engine in this process."""

    def __init__(self, model: Path, probe: Path | None, settings: dict[str, Any], options: dict[str, Any]) -> None:
        from vllm import LLM

        amin = {"predictor": str(ROOT / "checkpoints/length-predictor-small"), "model": "average", "timeout": 30.0}
        if probe is not None:
            amin |= {"probe": str(probe), "renew_every": EVERY}
        given = {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": MAX_MODEL_LEN,
            "block_size": 32,
            "max_num_batched_tokens": 48,
            "max_num_seqs": 8,
            "num_gpu_blocks_override": 14,
            "scheduler_cls": PREDICTING,
            "worker_cls": WORKER,
            "additional_config": {"amin": amin | settings},
            "disable_log_stats": True,
        }
        self.llm = LLM(str(model), **(given | options))
        core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler, self.executor = core.scheduler, core.model_executor
        self.renewals: list[tuple[str, Renewal]] = []
        runner = self.scheduler.governor.runner
        renew = runner.policy.renew

        def watched(index: int, renewal: Renewal) -> None:
            self.renewals.append((runner.request(index).request_id.split("-")[0], renewal))
            renew(index, renewal)

        runner.policy.renew = watched

    @property
    def states(self) -> Any:
        """What the worker keeps, where it is in this process."""
        return self.executor.driver_worker.worker._states._states

    def generate(self, prompts: Sequence[list[int]], max_tokens: int = CAP) -> list[list[int]]:
        """Return the greedy answers."""
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture
def serve(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """A function that starts an engine; all are taken down again."""
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    started: list[Served] = []

    def start(probe: Path | None = None, *, vllm: dict[str, Any] | None = None, **settings: Any) -> Served:
        cleanup_dist_env_and_memory()
        started.append(Served(tiny_model, probe, settings, vllm or {}))
        return started[-1]

    yield start
    for each in started:
        each.llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def check(
    tiny_model: Path,
) -> Callable[[Path, Sequence[tuple[str, Renewal]], dict[str, tuple[list[int], list[int]]]], None]:
    """A function that compares renewals with what the probe says of plain passes over prompts and answers, by name."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)

    def read(prompt: list[int], answer: list[int], out: int) -> np.ndarray:
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *answer[:out]]])
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[1][0].numpy()
        first = max(len(prompt) - 1, len(states) - 16)
        return np.stack([states[-1], states[first:].mean(0), states[: len(prompt)].mean(0)])[None]

    def compare(
        folder: Path, renewals: Sequence[tuple[str, Renewal]], texts: dict[str, tuple[list[int], list[int]]]
    ) -> None:
        plainly = RenewedBounds(Probe.load(folder), 0.1)
        for name, renewal in renewals:
            prompt, answer = texts[name]
            out = renewal.num_generated - 1
            (again,) = plainly.renew(read(prompt, answer, out), [out], [len(prompt)], [None])
            assert again is not None
            np.testing.assert_allclose(renewal.forecast.survival, again.forecast.survival, atol=1e-3)

    return compare


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Twelve prompts of 3 to 139 tokens; most begin alike, over two blocks."""
    rng = np.random.default_rng(0)
    common = rng.integers(5, 900, 70).tolist()
    sizes = rng.integers(3, 70, 12)
    return [[*(common if i % 3 else []), *rng.integers(5, 900, int(size)).tolist()] for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("policy", "caching"), [("amin", False), ("amin-survival", True)], ids=["amin", "survival with prefix caching"]
)
def test_the_policy_gets_what_a_plain_pass_would_give(
    serve: Callable[..., Served],
    make_probe: Callable[..., Path],
    check: Callable[..., None],
    prompts: list[list[int]],
    policy: str,
    caching: bool,
) -> None:
    """With prompts in chunks, after evictions, where blocks are found again; tokens are those without a probe."""
    options = {"enable_prefix_caching": caching}
    low = {"policy": policy, "tau": 0.02}  # bounds so low that too many are admitted
    expected = serve(None, vllm=options, **low).generate(prompts)
    folder = make_probe()
    served = serve(folder, vllm=options, **low)
    turns = [[*p, *a, 7, 8, 9] for p, a in zip(prompts, expected, strict=True) if len(p) + 2 * CAP < MAX_MODEL_LEN - 3]
    for asked in (prompts, turns):  # the second finds blocks with answers of the first
        served.renewals.clear()
        tokens = served.generate(asked)
        assert asked is turns or tokens == expected
        names = sorted({name for name, _ in served.renewals}, key=int)
        assert len(names) == len(asked)
        check(folder, served.renewals[::2], dict(zip(names, zip(asked, tokens, strict=True), strict=True)))
    metrics = served.scheduler.metrics
    assert metrics.evictions > 0
    assert metrics.failures == metrics.states_failed == metrics.unrenewed == 0
    assert 0 < metrics.renewal_seconds < 60
    if caching:
        assert served.scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block


def test_with_tensor_parallelism_rank_0_reads_the_probe(
    serve: Callable[..., Served], make_probe: Callable[..., Path], check: Callable[..., None], prompts: list[list[int]]
) -> None:
    """Two workers in processes of their own."""
    folder = make_probe()
    served = serve(folder, vllm={"tensor_parallel_size": 2, "distributed_executor_backend": "mp"})
    tokens = served.generate(prompts[:3], 6)
    names = sorted({name for name, _ in served.renewals}, key=int)
    check(folder, served.renewals, dict(zip(names, zip(prompts, tokens, strict=False), strict=True)))
    assert len(served.renewals) >= 3
    assert served.scheduler.metrics.failures == 0


def test_an_aborted_request_leaves_no_state(
    serve: Callable[..., Served], make_probe: Callable[..., Path], prompts: list[list[int]]
) -> None:
    """Running or waiting; the worker is told with the next pass."""
    from vllm import SamplingParams

    served = serve(make_probe())
    engine = served.llm.llm_engine
    for i, prompt in enumerate(prompts):
        settings = SamplingParams(temperature=0, max_tokens=CAP, ignore_eos=True)
        engine.add_request(f"a{i}", {"prompt_token_ids": prompt}, settings)
    for _ in range(12):
        engine.step()
    assert served.states.num_kept > 0
    engine.abort_request([f"a{i}" for i in range(len(prompts))])
    served.generate(prompts[:1], 3)
    served.generate(prompts[1:2], 3)
    assert served.states.num_kept <= 1
    assert served.scheduler.metrics.failures == 0


def test_a_state_that_is_no_number_is_counted_and_leaves_the_forecast(
    serve: Callable[..., Served], make_probe: Callable[..., Path], prompts: list[list[int]]
) -> None:
    """No renewal reaches the policy, and every answer is whole."""
    served = serve(make_probe(bias=float("nan")))
    assert all(len(answer) == CAP for answer in served.generate(prompts))
    assert not served.renewals
    metrics = served.scheduler.metrics
    assert metrics.states_failed >= len(prompts)
    assert metrics.unrenewed == len(prompts)
    assert metrics.failures == 0


def test_a_failure_in_the_worker_ends_the_renewals_alone(
    serve: Callable[..., Served],
    make_probe: Callable[..., Path],
    prompts: list[list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged once with the traceback; the policy goes on, and so does vLLM."""
    served = serve(make_probe())
    states = served.states
    note, count = states.note, 0

    def fail_later(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise KeyError("a fault")
        note(*arguments)

    states.note = fail_later
    with caplog.at_level(logging.ERROR):
        assert all(len(answer) == CAP for answer in served.generate(prompts))
    assert count == 21
    assert len([record for record in caplog.records if record.exc_info is not None]) == 1
    metrics = served.scheduler.metrics
    assert metrics.failures == 1
    assert metrics.left_to_vllm == 0
    assert served.renewals


@pytest.mark.parametrize("depth", [1, 2])
def test_renewals_of_iterations_in_flight_come_late_and_fit(
    make_engine: Callable[..., Any], make_probe: Callable[..., Path], depth: int
) -> None:
    """With a made-up model: a report is of the iteration before the last; the policy and vLLM stay in step."""
    predictor = str(ROOT / "checkpoints/length-predictor-small")
    settings = {"predictor": predictor, "model": "average", "timeout": 30.0, "probe": str(make_probe())}
    engine = make_engine(14, depth, PredictingScheduler, vllm={"worker_cls": WORKER}, renew_every=3, **settings)
    scheduler = engine.scheduler
    update, rng = scheduler.update_from_output, np.random.default_rng(0)
    given = []

    def reporting(output: Any, answer: Any) -> Any:
        due: dict[str, int] = getattr(output, DUE, {})
        counts = [int(scheduler.requests[n].num_output_tokens) if n in scheduler.requests else 0 for n in due]
        if due:
            logits = rng.normal(size=(len(due), 12)).astype(np.float32)
            setattr(answer, REPORT, StatesReport(tuple(due.values()), tuple(counts), logits, 0.001))
        return update(output, answer)

    scheduler.update_from_output = reporting
    runner = scheduler.governor.runner
    renew = runner.policy.renew

    def watched(index: int, renewal: Renewal) -> None:
        given.append(runner.running.num_generated(index) - renewal.num_generated)
        renew(index, renewal)

    runner.policy.renew = watched
    engine.add_random(60, np.random.default_rng(0))
    engine.run(check=True)
    engine.check_tokens(engine.requests)
    assert set(given) == {depth - 1}
    assert scheduler.metrics.evictions > 0
    assert scheduler.metrics.failures == 0
    assert not scheduler.renewals._never


@pytest.mark.parametrize("change", [{"revision": "r2"}, {"template": "t2"}, {"layers": (9,)}], ids=str)
def test_another_probe_is_refused_in_a_line(
    serve: Callable[..., Served], make_probe: Callable[..., Path], change: dict[str, Any]
) -> None:
    """Before the model is loaded; the line names what differs."""
    with pytest.raises(InputError, match=next(iter(change))) as error:
        serve(make_probe(**change))
    assert "\n" not in str(error.value)


def test_settings_that_do_not_go_with_a_probe_are_refused(
    make_engine: Callable[..., Any], make_probe: Callable[..., Path], tmp_path: Path
) -> None:
    """The worker of vLLM itself, no probe in the folder, a policy that reads nothing, numbers out of range."""
    predictor = str(ROOT / "checkpoints/length-predictor-small")
    given = {"predictor": predictor, "model": "average", "probe": str(make_probe())}
    ours = {"worker_cls": WORKER}
    for wrong, message in (
        ({"vllm": None}, f"add --worker-cls {WORKER}"),
        ({"probe": str(tmp_path)}, "no probe that can be read"),
        ({"policy": "fcfs"}, "the policy 'fcfs' reads no predictions"),
        ({"renew_every": 0}, "renew_every: 0, must be an integer >= 1"),
        ({"tau": 0.0001}, "tau"),
    ):
        with pytest.raises((InputError, SchedulerInputError), match=message):
            make_engine(10, kind=PredictingScheduler, **({"vllm": ours} | given | wrong))
    without = {key: value for key, value in given.items() if key != "probe"}
    with pytest.raises(SchedulerInputError, match="renew_every: without a probe"):
        make_engine(10, kind=PredictingScheduler, vllm=ours, renew_every=8, **without)


def test_in_its_shadow_and_turned_off_the_worker_is_vllms_own(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing of the probe is read, so that a broken one does not stand in the way."""
    settings = {"predictor": str(ROOT / "checkpoints/length-predictor-small"), "model": "average", "shadow": True}
    engine = make_engine(10, kind=PredictingScheduler, probe=str(tmp_path), **settings)
    assert engine.scheduler.renewals is None
    monkeypatch.setenv("AMIN_DISABLE", "1")
    assert probe_of(Settings.read({"amin": {"probe": str(tmp_path)}})) is None
