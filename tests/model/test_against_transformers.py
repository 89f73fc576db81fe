"""Real models against transformers: greedy text of the recipe is the text transformers would choose.

transformers gets the dequantized weights and our token ids (it tokenizes this Gemma file differently). Its
choice at every position is checked in one forward pass over prompt and answer: if each of our tokens is its
argmax, both texts are equal.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nanollama import LLM, reference
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.model.checkpoint import open_gguf
from nanollama.model.spec import ModelSpec

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a land far away,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "1, 1, 2, 3, 5, 8,",
    "The three primary colours are red,",
    "Dear Sir or Madam,\n\nI am writing to",
    "¿Dónde está la biblioteca?",
]
N_NEW = 64


def hf_config(spec: ModelSpec, config_class: type, **more: object) -> object:
    a = spec.attention
    return config_class(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.mlp.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=a.num_heads,
        num_key_value_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        rms_norm_eps=spec.norm.eps,
        max_position_embeddings=spec.max_context,
        tie_word_embeddings=spec.tied_head,
        **more,
    )


def theta_of(spec: ModelSpec, layer: int) -> float:
    frequencies = spec.layers[layer].rope.frequencies
    return frequencies[1] ** (-len(frequencies))


def transformers_twin(path: Path) -> PreTrainedModel:
    """The same weights in transformers' model of the family."""
    checkpoint = open_gguf(path)
    spec = checkpoint.spec
    state = {name: torch.from_numpy(t.float32().copy()) for name, t in checkpoint.tensors.items()}
    checkpoint.close()
    full = round(theta_of(spec, 5 if spec.family == "gemma3" else 0))
    if spec.family == "llama":
        rope = {"rope_type": "default", "rope_theta": float(full)}
        model = LlamaForCausalLM(hf_config(spec, LlamaConfig, rope_parameters=rope))
    else:
        rope = {
            "full_attention": {"rope_type": "default", "rope_theta": float(full)},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
        config = hf_config(
            spec,
            Gemma3TextConfig,
            rope_parameters=rope,
            sliding_window=spec.layers[0].window,
            query_pre_attn_scalar=spec.attention.head_dim,
        )
        model = Gemma3ForCausalLM(config)
        # GGUF stores Gemma's norm weights with the "+ 1" added that transformers adds itself.
        state = {name: t - 1 if "norm" in name else t for name, t in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """One model, loaded by us and by transformers."""

    path: Path
    llm: LLM
    twin: PreTrainedModel


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    path = request.getfixturevalue(f"{request.param}_path")
    with LLM(str(path), backend="torch", device="cpu", n_ctx=1024) as llm:
        yield Pair(path, llm, transformers_twin(path))


def greedy_batch(llm: LLM, prompts: list[list[int]], n_new: int) -> list[list[int]]:
    """Greedy answers to several prompts decoded together, each in blocks of its own."""
    backend = llm.engine.backend
    per_sequence = backend.num_blocks // len(prompts)
    tables = [tuple(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(len(prompts))]
    contexts = [list(ids) for ids in prompts]
    cached = [0] * len(prompts)
    for _ in range(n_new):
        new = [ids[n:] for ids, n in zip(contexts, cached, strict=True)]
        sequences = tuple(
            SequenceInput(len(part), n, t) for part, n, t in zip(new, cached, tables, strict=True)
        )
        last_rows = tuple(itertools.accumulate(len(part) for part in new))
        batch = ModelInput(tuple(itertools.chain(*new)), sequences, tuple(row - 1 for row in last_rows))
        cached = [len(ids) for ids in contexts]
        for ids, token_id in zip(contexts, backend.step(batch).argmax(-1), strict=True):
            ids.append(int(token_id))
    return [ids[len(prompt) :] for ids, prompt in zip(contexts, prompts, strict=True)]


@pytest.mark.model
def test_greedy_text_equals_transformers(pair: Pair) -> None:
    prompts = [pair.llm.tokenizer.encode(prompt, add_special=True) for prompt in PROMPTS]
    answers = greedy_batch(pair.llm, prompts, N_NEW)
    with torch.inference_mode():
        for ids, answer in zip(prompts, answers, strict=True):
            logits = pair.twin(torch.tensor([ids + answer]), logits_to_keep=N_NEW + 1).logits[0, :-1]
            assert answer == logits.argmax(-1).tolist()


@pytest.mark.model
def test_one_prompt_through_the_api_equals_the_batch(pair: Pair) -> None:
    ids = pair.llm.tokenizer.encode(PROMPTS[0], add_special=True)
    (expected,) = greedy_batch(pair.llm, [ids], 16)
    answer = pair.llm.generate(PROMPTS[0], max_tokens=16, temperature=0, repeat_penalty=1.0)
    assert list(answer.token_ids) == expected[: len(answer.token_ids)]
    assert len(answer.token_ids) == 16 or answer.token_ids[-1] in pair.llm.tokenizer.stop_ids


@pytest.mark.model
def test_reference_recipe_and_transformers_agree_on_logits(pair: Pair) -> None:
    ids = pair.llm.tokenizer.encode("The quick brown fox jumps over the lazy dog", add_special=True)
    ours = torch.from_numpy(pair.llm.logits(ids))
    checkpoint = open_gguf(pair.path)
    params = {n: torch.from_numpy(t.float32().copy()) for n, t in checkpoint.tensors.items()}
    slow = reference.logits(checkpoint.spec, params, ids)
    checkpoint.close()
    with torch.inference_mode():
        theirs = pair.twin(torch.tensor([ids])).logits[0]
    # Relative to the size of the logits, which reach 30 (SmolLM2) and 90 (Gemma).
    tolerance = 1e-4 * max(1.0, float(slow.abs().max()) / 30)
    assert float((ours - slow).abs().max()) < tolerance
    assert float((slow - theirs).abs().max()) < tolerance


def test_stories260k_gives_its_known_continuation(stories_path: Path) -> None:
    with LLM(str(stories_path), backend="torch", device="cpu") as llm:
        text = llm.generate("Once upon a time", max_tokens=32, temperature=0, repeat_penalty=1.0).text
    assert text.startswith(", there was a little girl named Lily. She loved to play")
