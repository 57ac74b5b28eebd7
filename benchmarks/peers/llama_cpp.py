"""Our engine and llama.cpp, run through the same tests."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np

from gecko_mlc.runtime.devices import host
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.measure import bench
from peers.llama_gguf import Llama

# What llama.cpp takes in one call.
BATCH = 2048


class Test(NamedTuple):
    """Prefill or decode of `count` tokens from `start` on."""

    kind: str
    start: int
    count: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.count} from {self.start}"


class Gecko:
    """Our engine, slot 0."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._saved: dict[str, np.ndarray] = {}

    def begin(self, tokens: Sequence[int]) -> None:
        """Be where `tokens` were consumed: none, or the same ones each time."""
        engine = self.engine
        engine.reset(0)
        if not tokens:
            return
        if not self._saved:
            engine.extend(0, tokens)
            self._saved = {spec.name: engine.read(spec.name, 0) for spec in engine.metadata.state}
        for name, value in self._saved.items():
            engine.write(name, 0, value)
        engine.positions[0] = len(tokens)

    def seconds(self, kind: str, tokens: Sequence[int]) -> float:
        """What a test with these tokens takes."""
        return bench.time_test(self.engine, kind, [tokens])

    def measurement(self, test: Test, runs: Sequence[bench.Run]) -> bench.Measurement:
        """Runs of a test, summed up."""
        return bench.summarize(self.engine.metadata, test.kind, test.count, test.start, runs)


class LlamaCpp:
    """llama.cpp with its defaults but for the number of threads, the methods as of `Gecko`.

    Its own clock times it, inside `llama_decode`: neither Python nor sampling counts. Raises `RuntimeError` where
    llama.cpp fails, or counts another model than `llama`.
    """

    def __init__(self, llama: Llama, scheme: str, path: Path, context: int) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        llama_cpp.llama_backend_init()
        self.llama, self.scheme = llama, scheme
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        found = llama_cpp.llama_model_n_params(self._model), llama_cpp.llama_model_size(self._model)
        expected = llama.num_parameters(), llama.nbytes(scheme)
        if found != expected:
            raise RuntimeError(f"{path}: llama.cpp counts {found} parameters and bytes, expected {expected}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.no_perf = context, BATCH, False
        parameters.n_threads = parameters.n_threads_batch = host.usable_cores()
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._saved: ctypes.Array[ctypes.c_uint8] | None = None

    def begin(self, tokens: Sequence[int]) -> None:
        context = self._context
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        if not tokens:
            return
        if self._saved is None:
            for start in range(0, len(tokens), BATCH):
                self._decode(tokens[start : start + BATCH])
            self._saved = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size(context, 0))()
            llama_cpp.llama_state_seq_get_data(context, self._saved, len(self._saved), 0)
        else:
            llama_cpp.llama_state_seq_set_data(context, self._saved, len(self._saved), 0)

    def seconds(self, kind: str, tokens: Sequence[int]) -> float:
        llama_cpp.llama_perf_context_reset(self._context)
        for batch in [tokens] if kind == "prefill" else [[token] for token in tokens]:
            self._decode(batch)
        spent = llama_cpp.llama_perf_context(self._context)
        return float(spent.t_p_eval_ms + spent.t_eval_ms) / 1e3

    def measurement(self, test: Test, runs: Sequence[bench.Run]) -> bench.Measurement:
        if test.kind == "prefill":
            work = self.llama.prefill_flop(test.count)
        else:
            work = sum(self.llama.decode_bytes(self.scheme, test.start + i) for i in range(test.count))
        return bench.measurement(test.kind, test.count, test.start, work, runs, of_bytes=self.scheme.startswith("Q"))

    def close(self) -> None:
        """Give its memory back."""
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _decode(self, tokens: Sequence[int]) -> None:
        """Logits after the last of at most `BATCH` tokens."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if status := llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(ids, len(ids))):
            raise RuntimeError(f"llama_decode failed: {status}")
        llama_cpp.llama_synchronize(self._context)


def build() -> dict[str, str]:
    """llama.cpp's version and the instructions it was built for."""
    return {
        "version": llama_cpp.__version__,
        "system_info": llama_cpp.llama_print_system_info().decode().strip(" |\n"),
    }
