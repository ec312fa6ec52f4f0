"""vLLM's worker that also reads a probe: forecasts of running requests from the served model's own states.

    vllm serve MODEL --scheduler-cls pipelines.vllm_scheduler.PredictingScheduler
        --worker-cls pipelines.probe.vllm_worker.ProbingWorker
        --additional-config '{"amin": {"predictor": "serving", "probe": "probe"}}'

The model hands out the states of a layer as it does for speculative decoding with EAGLE-3: as a further output of the
forward pass, so that they are there under torch.compile and in CUDA graphs. Without a probe it is vLLM's worker.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.platforms import current_platform
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.kv_cache_interface import is_full_attention_spec
from vllm.v1.outputs import AsyncModelRunnerOutput

from pipelines.probe.vllm_passes import PassStates, Reading
from pipelines.probe.vllm_probe import FIELD, probe_of, require_engine, require_served
from predictor.errors import InputError
from predictor.probe.network import ProbeNetwork
from predictor.probe.probe import Probe
from scheduler.integrations.vllm_renewals import REPORT
from scheduler.integrations.vllm_settings import Settings
from scheduler.integrations.vllm_states import BlockStates

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as VllmWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as VllmWorker


class ProbingWorker(VllmWorker):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """vLLM's own worker; rank 0 keeps states and reads the probe, all ranks compute the same."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        """Build vLLM's worker.

        Raises:
            InputError: There is no such probe, or states cannot be read in this engine.
        """
        self._settings = Settings.read(vllm_config.additional_config)
        self._probe: Probe | None = probe_of(self._settings)
        self._states: PassStates | None = None
        if self._probe is not None:
            require_engine(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, and have it hand out the probe's layer.

        Raises:
            InputError: The probe is of another model, layer or template, or the model hands out no states.
        """
        if self._probe is None:
            super().load_model(*args, **kwargs)
            return
        config, layer = self.vllm_config, self._probe.layer
        tokenizer = cached_tokenizer_from_config(config.model_config)
        require_served(self._probe, Path(self._settings.prediction["probe"]), config, tokenizer)
        # What vLLM has compiled before is found by a hash of this: another layer is another graph.
        config.additional_config = {**config.additional_config, "amin_layer": layer}
        super().load_model(*args, **kwargs)
        model = self.model_runner.get_model()
        if not supports_eagle3(model):
            raise InputError(
                f"{FIELD}: {type(model).__name__} hands out no states in vLLM (SupportsEagle3); leave it out"
            )
        model.set_aux_hidden_state_layers((layer,))
        self.model_runner.use_aux_hidden_state_outputs = True

    def determine_available_memory(self) -> int:
        """Return the bytes for the KV cache, less what the sums of the states in its blocks take."""
        available: int = super().determine_available_memory()
        if self._probe is None:
            return available
        block = sum(spec.page_size_bytes for spec in self.get_kv_cache_spec().values())
        return int(available * block // (block + 4 * self._probe.source.hidden_size))

    def compile_or_warm_up_model(self) -> Any:
        """Make ready, then begin to keep states."""
        times = super().compile_or_warm_up_model()
        if self._probe is not None and self.rank % self.parallel_config.tensor_parallel_size == 0:
            self._states = self._make_states(self._probe)
        return times

    def _make_states(self, probe: Probe) -> PassStates:
        cache, source = self.model_runner.kv_cache_config, probe.source
        if len(cache.kv_cache_groups) != 1 or not is_full_attention_spec(cache.kv_cache_groups[0].kv_cache_spec):
            raise InputError(f"{FIELD}: works with one group of KV caches of full attention alone; leave it out")
        size = cache.kv_cache_groups[0].kv_cache_spec.block_size
        like = torch.empty(0, dtype=self.model_config.dtype, device=self.device)
        states = BlockStates(cache.num_blocks, size, source.hidden_size, source.window, like)
        network = probe.network.to(self.device)

        def logits(read: Tensor, counts: Tensor) -> Tensor:
            return _logits(network, read, counts)

        return PassStates(states, logits)

    @torch.inference_mode()
    def execute_model(self, scheduler_output: Any) -> Any:
        """Run an iteration's forward pass, and keep the states that it gave."""
        output = super().execute_model(scheduler_output)
        if self._states is not None:
            runner = self.model_runner
            state = runner.execute_model_state
            if state is None or not state.aux_hidden_states:  # nothing was computed
                self._states.after_pass(scheduler_output, (), None)
            else:
                batch = state.input_batch if hasattr(state, "input_batch") else runner.input_batch
                self._states.after_pass(scheduler_output, list(batch.req_ids), state.aux_hidden_states[0])
        return output

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        """Return vLLM's output of an iteration, with what the probe said of the requests that were due."""
        output = super().sample_tokens(grammar_output)
        reading = None if self._states is None else self._states.take()
        if reading is None or output is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _WithReport(output, reading)
        setattr(output, REPORT, reading.report())
        return output


class _WithReport(AsyncModelRunnerOutput):  # type: ignore[misc]
    """An output that is fetched later, with a report that comes then."""

    def __init__(self, output: Any, reading: Reading) -> None:
        self._output, self._reading = output, reading

    def get_output(self) -> Any:
        """Return vLLM's output with the report."""
        output = self._output.get_output()
        setattr(output, REPORT, self._reading.report())
        return output


def _logits(network: ProbeNetwork, states: Tensor, counts: Tensor) -> Tensor:
    weight = network.hidden.weight
    logits: Tensor = network(states.to(weight.dtype), counts.to(weight.dtype))
    return logits
