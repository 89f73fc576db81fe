"""llama.cpp through llama-cpp-python's low-level API: the peer of the benchmarks, as thin as it can be."""

import ctypes
import time

import llama_cpp as lc
import numpy as np


@lc.llama_log_callback
def _quiet(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log lines."""


class Peer:
    """One model in llama.cpp, with one context of ``n_ctx`` tokens for up to ``n_seqs`` sequences."""

    def __init__(self, path: str, n_ctx: int, threads: int, *, n_seqs: int = 1, flash: bool = True) -> None:
        lc.llama_log_set(_quiet, ctypes.c_void_p(0))
        lc.llama_backend_init()
        start = time.perf_counter()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, 2048, 512, n_seqs
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1 if flash else 0
        self.context = lc.llama_init_from_model(self.model, params)
        self.load_s = time.perf_counter() - start
        self.vocab = lc.llama_model_get_vocab(self.model)
        self.n_vocab = lc.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (lc.llama_token * (len(raw) + 8))()
        n = lc.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, False)
        return list(ids[:n])

    def step(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Decode rows of (token id, position, sequence, logits wanted)."""
        batch = lc.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token_id, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token_id, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if lc.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode the step")
        lc.llama_synchronize(self.context)
        lc.llama_batch_free(batch)

    def clear(self) -> None:
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def logits(self, ids: list[int], first_row: int) -> np.ndarray:
        """Logits ``[n - first_row, vocab]`` of a sequence from its start."""
        self.clear()
        self.step([(token_id, i, 0, i >= first_row) for i, token_id in enumerate(ids)])
        rows = lc.llama_get_logits(self.context)
        return np.ctypeslib.as_array(rows, shape=(len(ids) - first_row, self.n_vocab)).copy()

    def prefill(self, n_tokens: int, sequence: int = 0) -> None:
        for start in range(0, n_tokens, 2048):
            end = min(start + 2048, n_tokens)
            self.step([(i * 7919 % self.n_vocab, i, sequence, i == n_tokens - 1) for i in range(start, end)])

    def close(self) -> None:
        lc.llama_free(self.context)
        lc.llama_model_free(self.model)


def prefill_speed(peer: Peer, n_tokens: int) -> float:
    """Tokens a second for one prompt of ``n_tokens``."""
    peer.clear()
    start = time.perf_counter()
    peer.prefill(n_tokens)
    return n_tokens / (time.perf_counter() - start)


def decode_speed(peer: Peer, n_tokens: int, context: int, batch: int = 1) -> float:
    """Tokens a second over ``n_tokens`` steps of ``batch`` sequences that hold ``context`` tokens each."""
    peer.clear()
    for sequence in range(batch):
        peer.prefill(context, sequence)
    start = time.perf_counter()
    for i in range(n_tokens):
        peer.step([((i * 7919 + s) % peer.n_vocab, context + i, s, True) for s in range(batch)])
    return batch * n_tokens / (time.perf_counter() - start)
