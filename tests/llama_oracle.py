"""llama.cpp as an oracle: a GGUF file and token ids in, its logits and tokens out.

A test that asks it is skipped where llama-cpp-python is not installed: it compiles for eight minutes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def library() -> Any:
    """The module, or a skipped test."""
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@contextmanager
def _model(path: Path) -> Iterator[Any]:
    llama_cpp = library()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, "llama.cpp does not load the file"
    yield model
    llama_cpp.llama_model_free(model)


def llama_cpp_logits(path: Path, ids: Sequence[int]) -> np.ndarray:
    """What llama.cpp says after each token, ``[tokens, vocabulary]``; a float32 cache, no fused attention."""
    llama_cpp = library()
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    with _model(path) as model:
        context = llama_cpp.llama_init_from_model(model, settings)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token_id in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token_id, i, 1, 1
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), size)).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
    return logits


def llama_cpp_tokens(path: Path, text: str) -> list[int]:
    """The ids of a text, special tokens recognised and added as the file says."""
    llama_cpp = library()
    raw = text.encode()
    room = (llama_cpp.llama_token * (len(raw) + 8))()
    with _model(path) as model:
        vocab = llama_cpp.llama_model_get_vocab(model)
        count = llama_cpp.llama_tokenize(vocab, raw, len(raw), room, len(room), True, True)
    return list(room[:count])
