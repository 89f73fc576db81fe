"""Checkpoint folders written as GGUF: llama.cpp loads the file and says what we say of the folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from folders import CHATML, CORPUS, byte_level, edit, save_folder, save_tokenizer
from llama_oracle import llama_cpp_logits, llama_cpp_tokens
from nanollama import LLM
from nanollama.cli.main import main
from nanollama.errors import UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.model.gguf_export import opened_source
from nanollama.quant.requantize import requantize
from nanollama.text.pretokenizers import TABLE

TEXT = "Once upon a time, isn't it? héllo 1234567 times:\n\n\tx = [1, 2]"
TOY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
}


def sentencepiece() -> Tokenizer:
    """A tokenizer.json as Gemma's: byte fallback, a mark for spaces, merges in the order of scores."""
    pieces = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted({*"".join(CORPUS), "▁"} - {" ", "\n", "\t"})
    merges = []
    for left, right in [
        ("▁", "t"),
        ("h", "e"),
        ("▁t", "he"),
        ("l", "l"),
        ("▁", "o"),
        ("n", "c"),
        ("nc", "e"),
    ]:
        merges.append((left, right))
        pieces.append(left + right)
    library = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>", "<pad>")])
    return library


def llama(folder: Path) -> None:
    save_folder(folder)


def qwen2(folder: Path) -> None:
    tokenizer = byte_level(TABLE["qwen2"].patterns[0])
    tokenizer.model.ignore_merges = False
    save_tokenizer(folder, tokenizer, chat_template=CHATML)
    save(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TOY, tie_word_embeddings=True)), folder)


def gemma3(folder: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    save_tokenizer(folder, sentencepiece(), **names)
    settings = {**TOY, "sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 7}
    save(transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**settings)), folder)


def save(model: transformers.PreTrainedModel, folder: Path) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


TOYS: dict[str, Callable[[Path], None]] = {"llama": llama, "qwen2": qwen2, "gemma3": gemma3}


@pytest.fixture(scope="module", params=TOYS)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys") / request.param
    TOYS[request.param](folder)
    return folder


def written(folder: Path, target: Path, wanted: str) -> Path:
    with opened_source(folder) as source:
        requantize(source, target, wanted, on_bytes=lambda done: None)
    return target


@pytest.mark.parametrize(("wanted", "close"), [("F32", 1e-4), ("F16", 5e-3), ("Q8_0", 0.05)])
def test_llama_cpp_says_what_the_folder_says(toy: Path, wanted: str, close: float, tmp_path: Path) -> None:
    path = written(toy, tmp_path / "toy.gguf", wanted)
    with (
        LLM(str(toy), backend="torch", device="cpu") as folder,
        LLM(str(path), backend="torch", device="cpu") as file,
    ):
        ids = folder.tokenizer.encode(TEXT, add_special=True)
        assert file.tokenizer.encode(TEXT, add_special=True) == ids
        ours, expected = file.logits(ids), folder.logits(ids)
    scale = float(np.abs(expected).max())
    half = 5e-3 if toy.name == "gemma3" else 0.0  # its GELU comes from a table of half-precision numbers
    assert np.abs(ours - expected).max() < close * max(1.0, scale)
    assert llama_cpp_tokens(path, TEXT) == ids
    theirs = llama_cpp_logits(path, ids)
    assert np.abs(theirs - expected).max() < (close + half) * max(1.0, scale)


def test_what_is_known_of_the_folder_is_known_of_the_file(toy: Path, tmp_path: Path) -> None:
    path = written(toy, tmp_path / "toy.gguf", "F16")
    with GGUFFile(path) as file:
        metadata = dict(file.metadata)
    assert metadata["general.name"] == toy.name
    assert metadata["general.file_type"] == 1
    assert metadata.get("tokenizer.ggml.padding_token_id") == (None if toy.name == "llama" else 3)
    assert metadata.get("tokenizer.chat_template") == (None if toy.name == "gemma3" else CHATML)
    with (
        LLM(str(toy), backend="torch", device="cpu") as folder,
        LLM(str(path), backend="torch", device="cpu") as file,
    ):
        for name in ("bos_id", "eos_id", "stop_ids", "adds_bos", "adds_eos", "control_tokens"):
            assert getattr(file.tokenizer, name) == getattr(folder.tokenizer, name), name
        assert file.num_parameters == folder.num_parameters


def test_settings_and_further_ends_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_folder(folder)
    edit(folder / "generation_config.json", eos_token_id=[256, 5], temperature=0.5, top_k=7, do_sample=True)
    with opened_source(folder) as source:
        assert source.metadata["general.sampling.temp"] == 0.5
        assert source.metadata["general.sampling.top_k"] == 7
        assert source.metadata["tokenizer.ggml.eot_token_id"] in (5, 256)


def test_a_tokenizer_that_has_no_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_folder(folder)
    other = byte_level()
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    save_tokenizer(folder, other)
    with (
        pytest.raises(
            UnsupportedError, match="cuts text into words in a way that GGUF files have no name for"
        ),
        opened_source(folder),
    ):
        pass


def test_a_tokenizer_that_changes_text_first_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_folder(folder)
    other = byte_level()
    other.normalizer = normalizers.Lowercase()
    save_tokenizer(folder, other)
    with (
        pytest.raises(UnsupportedError, match="cuts text in a way that GGUF files can't say"),
        opened_source(folder),
    ):
        pass


def test_the_command_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, target = tmp_path / "toy", tmp_path / "toy.gguf"
    save_folder(folder)
    assert main(["quantize", str(folder), str(target), "--type", "q4_k_m"]) == 0
    captured = capsys.readouterr()
    assert f"{target}: 104 kB of weights in Q4_K_M, 509 kB before" in captured.out
    assert "no whole number of Q4_K_M blocks, and got" in captured.err
    with LLM(str(target), backend="torch", device="cpu") as llm:
        assert len(llm.generate("Once", max_tokens=2).token_ids) <= 2
