"""Compiled steps: padded and compiled, they give what eager ones give, token for token."""

import re
import shutil

import numpy as np
import pytest

from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.engine.engine import Engine, EngineConfig
from nanollama.types import Request, SamplingParams
from toys import VOCAB, make_toy

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU: expected g++"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch, about itself
]


def backend_of(kind: str, **more: object) -> TorchBackend:
    toy = make_toy(kind)
    return TorchBackend(toy.spec, toy.tensors, device="cpu", cache_tokens=512, **{"dtype": "float32", **more})


def answers(backend: TorchBackend) -> list[list[int]]:
    """Greedy texts of two prompts that run together."""
    random = np.random.default_rng(3)
    engine = Engine(backend, EngineConfig(n_ctx=128, token_budget=64))
    try:
        running = [
            engine.submit(
                Request(
                    tuple(random.integers(0, VOCAB, n).tolist()),
                    SamplingParams(),
                    max_tokens=12,
                    stop_ids=frozenset(),
                )
            )
            for n in (10, 13)
        ]
        return [[event.token_id for event in each] for each in running]
    finally:
        engine.close()


def test_compiled_answers_equal_eager_ones_and_every_shape_is_told_once() -> None:
    notices: list[str] = []
    found = answers(backend_of("llama", compile=True, notice=notices.append))
    assert found == answers(backend_of("llama"))
    begun, done = notices[0::2], notices[1::2]
    assert len(set(begun)) == len(begun) == len(done)
    for first, then in zip(begun, done, strict=True):
        assert re.fullmatch(
            re.escape(first.removesuffix(" …")).replace("compiling", "compiled") + r" in \d+\.\d s", then
        )


def test_compiled_half_precision_with_windows_stays_near_eager() -> None:
    ids = tuple(np.random.default_rng(5).integers(0, VOCAB, 41).tolist())
    rows = {}
    for name, more in (("eager", {}), ("compiled", {"compile": True})):
        backend = backend_of("gemma3", dtype="bfloat16", **more)
        table = (3, 0)
        logits = [backend.step(ModelInput(ids[:40], (SequenceInput(40, 0, table),), (5, 39)))]
        logits.append(backend.step(ModelInput(ids[40:], (SequenceInput(1, 40, table),), (0,))))
        rows[name] = np.concatenate(logits)
    assert rows["compiled"].shape == (3, VOCAB)
    assert np.abs(rows["compiled"] - rows["eager"]).max() < 0.02 * np.abs(rows["eager"]).max()


def test_compiled_steps_make_their_copies_once_and_before_all_groups() -> None:
    """The copied block is written by one group, its source by the other."""
    ids = tuple(np.random.default_rng(6).integers(0, VOCAB, 60).tolist())
    rows = {}
    for name, more in (("eager", {}), ("compiled", {"compile": True})):
        backend = backend_of("llama", **more)
        backend.step(ModelInput(ids[:20], (SequenceInput(20, 0, (3,)),), ()))
        mixed = (SequenceInput(1, 19, (5,)), SequenceInput(20, 0, (3,)))
        rows[name] = backend.step(ModelInput((*ids[19:20], *ids[20:40]), mixed, (0, 20), ((3, 5),)))
    alone = backend_of("llama").step(ModelInput(ids[:20], (SequenceInput(20, 0, (0,)),), (19,)))
    for found in rows.values():
        assert np.abs(found[0] - alone[0]).max() < 1e-4
    assert np.abs(rows["compiled"] - rows["eager"]).max() < 1e-4
