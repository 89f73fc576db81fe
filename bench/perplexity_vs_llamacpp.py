"""Perplexity of one model file on one text, ours and llama.cpp's, over the same windows.

    python bench/perplexity_vs_llamacpp.py MODEL.gguf TEXT [--n-ctx 512] [--max-windows 40] [--device cpu]

Needs llama-cpp-python (a benchmark dependency, not installed by the scripts). Both score the same token ids by
llama-perplexity's convention; ours come from our tokenizer, and the script says whether llama.cpp's differ.
"""

import argparse
import ctypes
import json
import math

import llama_cpp
import numpy as np

from nanollama import LLM
from nanollama.perplexity import negative_log_likelihood, perplexity


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, user: ctypes.c_void_p) -> None:
    """Drop llama.cpp's log lines."""


class Peer:
    """llama.cpp with one sequence of ``n_ctx`` tokens."""

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (llama_cpp.llama_token * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, False)
        return list(ids[:n])

    def logits(self, ids: list[int], first_row: int) -> np.ndarray:
        """Logits ``[n - first_row, vocab]`` of a window."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token_id in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token_id, i, 1, 0
            batch.logits[i] = i >= first_row
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode the window")
        n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        rows = llama_cpp.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(rows, shape=(len(ids) - first_row, n_vocab)).copy()
        llama_cpp.llama_batch_free(batch)
        return logits


def main() -> None:
    """Measure both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--max-windows", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    with LLM(args.model, device=args.device) as llm:
        ours = perplexity(llm, text, n_ctx=args.n_ctx, max_windows=args.max_windows)
        ids = llm.tokenizer.encode(text, add_special=True)
        bos = llm.tokenizer.bos_id if llm.tokenizer.adds_bos else None
    peer = Peer(args.model, args.n_ctx, args.threads)
    total, first = 0.0, args.n_ctx // 2
    for w in range(ours.windows):
        window = ids[w * args.n_ctx : (w + 1) * args.n_ctx]
        if bos is not None:
            window[0] = bos
        total += negative_log_likelihood(peer.logits(window, first)[:-1], window[first + 1 :])
    theirs = math.exp(total / ours.tokens)
    print(
        json.dumps(
            {
                "model": args.model.rsplit("/", 1)[-1],
                "windows": ours.windows,
                "tokens": ours.tokens,
                "perplexity_ours": round(ours.perplexity, 4),
                "perplexity_llamacpp": round(theirs, 4),
                "difference_percent": round(100 * (ours.perplexity / theirs - 1), 3),
                "same_tokens": peer.tokenize(text) == ids,
            }
        )
    )


if __name__ == "__main__":
    main()
