"""Toy checkpoint folders, written by transformers as publishers write theirs."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nanollama.text.pretokenizers import TABLE

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 1234567890 times, isn't it?",
    "Once upon a time there was a model that knew few words: hello world, héllo wörld.",
    "def main():\n    return 'hello'  # and spaces\n\n\t\tx = [1, 2, 3]",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|begin|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def byte_level(pattern: str = TABLE["llama3"].patterns[0], size: int = 400) -> Tokenizer:
    """A byte-level BPE trained on a few sentences; BOS is put before a text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS * 3,
        trainers.BpeTrainer(
            vocab_size=size - len(SPECIAL), initial_alphabet=alphabet, special_tokens=[], show_progress=False
        ),
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer | None = None, **settings: Any) -> None:
    """Save a tokenizer with its settings as transformers does."""
    settings = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"} | settings
    PreTrainedTokenizerFast(tokenizer_object=tokenizer or byte_level(), **settings).save_pretrained(folder)


def llama_config(**more: Any) -> LlamaConfig:
    settings = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**(settings | more))


def save_model(folder: Path, config: LlamaConfig | None = None, *, shard: str = "5GB") -> LlamaForCausalLM:
    """Save a model with seeded random weights, in files of at most ``shard``."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config or llama_config()).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def save_folder(folder: Path, *, shard: str = "5GB", **settings: Any) -> LlamaForCausalLM:
    """A whole folder: model, tokenizer and chat template."""
    tokenizer = byte_level()
    save_tokenizer(folder, tokenizer, chat_template=CHATML, **settings)
    ids = {
        "bos_token_id": tokenizer.token_to_id("<|begin|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    return save_model(folder, llama_config(**ids), shard=shard)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; ``...`` removes one."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content = {key: value for key, value in (content | changes).items() if value is not ...}
    path.write_text(json.dumps(content), "utf-8")
