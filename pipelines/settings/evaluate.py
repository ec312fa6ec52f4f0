"""What `amin evaluate` is asked."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pipelines.settings.option import Metavar
from pipelines.settings.sampling import Sampling
from pipelines.settings.server import Servers
from predictor.errors import InputError
from predictor.ranges import LARGEST, Count, Probability, Range, Seed, check_ranges

SERVED_MODEL = "smollm2"
OF_OUR_ENGINE = (
    "predictor", "predictor_model", "policies", "predict_timeout", "kv_blocks", "block_size", "max_batch_tokens", "tau",
    "probe", "renew_every", "look_ahead",
    "scheduling", "eviction", "decoding", "sweep", "device", "trust_remote_code",
)  # fmt: skip
"""Settings that mean nothing to a server that runs elsewhere."""


@dataclass(frozen=True, slots=True)
class EvaluateSettings:
    """Settings of `amin evaluate`; lengths in tokens.

    Examples:
      amin evaluate --predictor serving --prompts records.parquet --split test --out evaluation
      amin evaluate ... --arrivals poisson:2 --sweep --out evaluation     # open loop, and a map of the gain over fcfs
      amin evaluate ... --probe probe --out evaluation                    # forecasts renewed from the model's states
      amin evaluate ... --out evaluation --resume                         # continue, or add policies and seeds
      amin evaluate --endpoint http://A:8000/v1 --endpoint-b http://B:8000/v1 --prompts records.parquet --out servers
    With --endpoint running servers are measured from outside, and no predictor or model is needed.
    """

    prompts: Path
    """JSONL or parquet with prompts, or records."""
    out: Path
    """Folder for results.json, requests.parquet, report.html, cost_model.json, workload.jsonl and the runs."""
    predictor: Path | None = None
    """Run folder or export; needed unless --endpoint is given."""
    served_model: str = SERVED_MODEL
    """Folder, GGUF file or hub name of a causal language model; smollm2 is the one that the set-up installs. With
    --endpoint its name on the server; by default the one that the server has."""
    servers: Servers = field(default_factory=Servers)
    """Running servers, measured from outside"""
    predictor_model: str | None = None
    """Served model to predict for, of those that the predictor knows; average stands for another. Default: the
    predictor's own."""
    model: str | None = None
    """Served model whose rows of --prompts are read, where they name several."""
    split: str | None = None
    """Only the prompts of this split."""
    limit: Count | None = None
    """Only the first so many prompts."""
    policies: Annotated[str, Metavar("NAME,...|all")] = (
        "fcfs,engine-fifo,fcfs-reserve,amax,amin,amin-survival,hindsight"
    )
    """Policies; engine-fifo is the engine's own scheduler without our loop."""
    arrivals: Annotated[str, Metavar("HOW")] = "all-at-once"
    """All-at-once, poisson:RATE, gamma:RATE:CV (requests per second), or FILE with a time a line."""
    predict_timeout: Annotated[float, Range(0, 1e9, (True, False))] = 50.0
    """Milliseconds from its arrival on that a request waits for its prediction before the marginal bound stands in;
    all-at-once: no limit."""
    warm_up: Annotated[float, Range(0, 0.5)] = 0.1
    """Share of the requests, the first to arrive, left out of the figures; all-at-once: none."""
    kv_blocks: Count | None = None
    """Size of the KV cache; default: 15 percent of what all requests hold at their peak."""
    block_size: Annotated[int, Range(4, LARGEST)] = 16
    """Tokens per block."""
    max_new_tokens: Count = 512
    """Cap of an answer."""
    max_batch_tokens: Count = 512
    """Most tokens of one iteration; longer prefills are split."""
    probe: Path | None = None
    """Folder of a probe of this served model: forecasts of running requests are renewed from the model's own states."""
    renew_every: Count = 16
    """With --probe: tokens from one renewal of all running requests to the next."""
    look_ahead: Count | None = None
    """With --probe: prompt tokens of waiting requests that an iteration reads for their states, within
    --max-batch-tokens; by default none."""
    tau: Probability | None = None
    """Probability that an answer is shorter than its bound; default: what --scheduling says, otherwise 0.1."""
    scheduling: Path | None = None
    """What amin tune wrote, or its folder: the levels that policies are built with."""
    eviction: Literal["restart", "resume"] = "resume"
    """Whether evicted requests keep their tokens."""
    decoding: Literal["forced", "greedy", "sample"] = "forced"
    """Forced: every policy generates the lengths of one reference draw (the records' first, or made first; with --probe
    its tokens, made first); greedy:
    likeliest tokens in single precision, checked to be the same under every policy; sample: free, lengths differ."""
    sampling: Sampling = field(default_factory=Sampling)
    seeds: Count = 5
    """Runs per policy; they differ in order, arrivals and ties."""
    seed: Seed = 0
    """First seed."""
    sweep: bool = False
    """Also a map of the gain over fcfs by KV cache and arrival rate: simulated with the fitted cost model, a few cells
    measured."""
    device: Literal["cpu", "cuda"] | None = None
    """Where to compute; default: cuda where there is one."""
    trust_remote_code: bool = False
    """Run Python code that the served model brings; read it first."""
    force: bool = False
    """Replace the evaluation that is there."""
    resume: bool = False
    """Continue what an interruption left in --out, or add policies and seeds."""

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range, or an option that does not apply."""
        check_ranges(self)
        if self.servers.endpoint is None:
            _refuse_given(self.servers, [each.name for each in fields(self.servers)], "only with --endpoint")
            if self.predictor is None:
                raise InputError("--predictor is missing")
            if self.probe is None:
                _refuse_given(self, ["renew_every", "look_ahead"], "is for a probe")
            else:
                _refuse_given(self, ["sweep"], "not with --probe, whose forecasts its map does not have")
        else:
            _refuse_given(self, OF_OUR_ENGINE, "not with --endpoint, where the server's own settings hold")


def _refuse_given(settings: Any, names: Sequence[str], why: str) -> None:
    """Raise InputError for the first of these settings that is not as by default."""
    for each in fields(settings):
        if each.name in names and each.default is not MISSING and getattr(settings, each.name) != each.default:
            raise InputError(f"--{each.name.replace('_', '-')}: {why}; leave it out")
