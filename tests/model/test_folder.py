"""Checkpoint folders: what transformers wrote computes as in transformers, what is wrong with a folder is
said in one sentence, and nothing from a folder is ever run.
"""

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from folders import CHATML, edit, save_folder
from nanollama import LLM
from nanollama.backends.torch_backend import TorchBackend
from nanollama.cli.main import main
from nanollama.errors import FormatError, ModelNotFoundError, NanollamaError, UnsupportedError
from nanollama.model.checkpoint import open_checkpoint
from nanollama.model.folder import open_folder

INDEX = "model.safetensors.index.json"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <|im_end|> world"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, LlamaForCausalLM]]:
    """One folder with a single file and one with shards; tests that change something copy them."""
    root = tmp_path_factory.mktemp("folders")
    return {
        "single": (root / "single", save_folder(root / "single")),
        "sharded": (root / "sharded", save_folder(root / "sharded", shard="100KB")),
    }


@pytest.fixture
def single(made: dict[str, tuple[Path, LlamaForCausalLM]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["single"][0], tmp_path / "toy"))


@pytest.fixture
def sharded(made: dict[str, tuple[Path, LlamaForCausalLM]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["sharded"][0], tmp_path / "toy"))


def test_the_native_backend_computes_the_same(made: dict[str, tuple[Path, LlamaForCausalLM]]) -> None:
    folder, model = made["single"]
    with LLM(str(folder), backend="native", threads=1) as llm:
        ids = llm.tokenizer.encode("Once upon a time, there were 12 words.", add_special=True)
        with torch.inference_mode():
            theirs = model(torch.tensor([ids])).logits[0]
        assert float((torch.from_numpy(llm.logits(ids)) - theirs).abs().max()) < 1e-3


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_a_folder_computes_what_transformers_computes(
    made: dict[str, tuple[Path, LlamaForCausalLM]], kind: str
) -> None:
    folder, model = made[kind]
    assert (kind == "sharded") == (folder / INDEX).exists()
    with LLM(str(folder), backend="torch", device="cpu") as llm:
        ids = llm.tokenizer.encode("Once upon a time, there were 12 words.", add_special=True)
        assert (
            ids == AutoTokenizer.from_pretrained(folder)("Once upon a time, there were 12 words.").input_ids
        )
        ours = torch.from_numpy(llm.logits(ids))
        with torch.inference_mode():
            theirs = model(torch.tensor([ids])).logits[0]
        assert float((ours - theirs).abs().max()) < 1e-4
        assert llm.num_parameters == model.num_parameters()
        prompt = llm._chat_ids([_message(m) for m in TALK[:1]])
        assert prompt[0] == llm.tokenizer.bos_id
        answer = llm.chat(TALK[1:], max_tokens=4, temperature=0)
        assert answer.finish_reason in ("length", "stop")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_stored(single: Path, dtype: torch.dtype) -> None:
    path = single / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    checkpoint = open_checkpoint(single)
    try:
        expected = load_file(path)["model.norm.weight"].float()
        tensor = checkpoint.tensors["model.norm.weight"]
        assert tensor.fmt.name == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
        assert (torch.from_numpy(tensor.float32()) == expected).all()
    finally:
        checkpoint.close()


def test_files_may_be_links_as_in_the_cache_of_the_hub(sharded: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, file in enumerate(sharded.iterdir()):
        blob = tmp_path / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    with closing(open_folder(snapshot)) as linked, closing(open_folder(sharded)) as plain:
        assert linked.spec == plain.spec
        assert linked.tensors.keys() == plain.tensors.keys()


def test_tied_weights_and_old_buffers_are_no_parameters(single: Path) -> None:
    path = single / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path)
    edit(single / "config.json", tie_word_embeddings=True)
    checkpoint = open_folder(single)
    checkpoint.close()
    assert checkpoint.spec.tied_head
    assert "lm_head.weight" not in checkpoint.tensors


def test_settings_of_the_folder_become_ours(single: Path) -> None:
    edit(
        single / "generation_config.json",
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        repetition_penalty=1.05,
        eos_token_id=[5, 7],
    )
    checkpoint = open_folder(single)
    checkpoint.close()
    assert checkpoint.sampling == {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repeat_penalty": 1.05}
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.stop_ids == {5, 7, tokenizer.eos_id}
    assert checkpoint.chat_template == CHATML


def test_ids_beyond_the_tokenizers_are_tokens_without_text(single: Path) -> None:
    checkpoint = open_folder(single)
    checkpoint.close()
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.vocab_size == checkpoint.spec.vocab_size == 512
    assert tokenizer.token_bytes(511) == b""


def _message(turn: dict[str, str]) -> object:
    from nanollama.types import Message

    return Message(role=turn["role"], content=turn["content"])


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def config(**changes: object) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "config.json", **changes)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: change_tensors(folder, change)


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    return lambda folder: change_index(folder, change)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(S'touch ran'\ntR.")


def only(*names: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for file in folder.iterdir():
            if file.name not in names:
                file.unlink()

    return change


NORM = "model.norm.weight"
SINGLE: dict[str, tuple[Callable[[Path], object], type[NanollamaError], str]] = {
    "no config.json": (lambda f: (f / "config.json").unlink(), FormatError, "no config.json, so it is no"),
    "only a GGUF file": (
        lambda f: (only()(f), (f / "m.gguf").write_bytes(b"GGUF")),
        FormatError,
        "to run m.gguf, give its own path",
    ),
    "a config that is no JSON": (written("config.json", b"{"), FormatError, "config.json is not valid JSON"),
    "a config that is a list": (written("config.json", b"[]"), FormatError, "JSON object is expected"),
    "a config with a key twice": (
        written("config.json", b'{"model_type":"llama","model_type":"x"}'),
        FormatError,
        "occurs twice",
    ),
    "a config without end": (written("config.json", b" " * (5 << 20)), FormatError, "more than"),
    "a nested config": (written("config.json", b"[" * 100_000), FormatError, "nested too deeply"),
    "no model type": (config(model_type=...), FormatError, "model_type in config.json is missing"),
    "an unknown architecture": (config(model_type="mamba9"), UnsupportedError, "'mamba9'.*llama"),
    "an architecture of its own code": (
        config(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
        UnsupportedError,
        "never run",
    ),
    "zero heads": (config(num_attention_heads=0), FormatError, "num_attention_heads in config.json is 0"),
    "negative layers": (config(num_hidden_layers=-1), FormatError, "num_hidden_layers"),
    "heads that are a text": (config(num_attention_heads="4"), FormatError, "num_attention_heads"),
    "a fractional size": (config(hidden_size=64.5), FormatError, "hidden_size"),
    "heads that don't divide": (config(num_attention_heads=5), FormatError, "heads"),
    "a quantized checkpoint": (
        config(quantization_config={"quant_method": "strange"}),
        UnsupportedError,
        "quantized by strange",
    ),
    "a quantization without a name": (config(quantization_config={}), FormatError, "quant_method"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), FormatError, "no weights"),
    "a pickle only": (pickled, UnsupportedError, "pytorch_model.bin, a format that can carry code"),
    "weights of another name": (
        lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
        FormatError,
        "neither model.safetensors nor",
    ),
    "a pickle under the name of safetensors": (
        written("model.safetensors", b"\x80\x02}q\x00."),
        FormatError,
        "pickle, which is never loaded",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
        FormatError,
        "cut short",
    ),
    "a git-lfs pointer": (
        written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        FormatError,
        "git lfs pull",
    ),
    "a broken link": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("gone")),
        FormatError,
        "model.safetensors is missing",
    ),
    "a missing tensor": (tensors(lambda t: t.pop(NORM)), FormatError, "no tensor for model.norm.weight"),
    "a tensor too many": (
        tensors(lambda t: t.update(extra=torch.ones(3))),
        FormatError,
        "has 1 tensor that the model does not use, the first extra",
    ),
    "a wrong shape": (
        tensors(lambda t: t.update({NORM: torch.ones(65)})),
        FormatError,
        r"model.norm.weight has shape \[65\]; expected \[64\]",
    ),
    "whole numbers for weights": (
        tensors(lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)})),
        UnsupportedError,
        "data type I32",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), FormatError, "no tokenizer.json and no"),
    "another tokenizer": (
        lambda f: (f / "tokenizer.json").rename(f / "tekken.json"),
        UnsupportedError,
        "only tekken.json",
    ),
    "a tokenizer of another model": (config(vocab_size=100), FormatError, "tokens|shape"),
    "a generation config of texts": (
        lambda f: edit(f / "generation_config.json", temperature="hot"),
        FormatError,
        "generation_config.json: temperature",
    ),
    "an end beyond the vocabulary": (
        lambda f: edit(f / "generation_config.json", eos_token_id=[1, 5000]),
        FormatError,
        "eos_token_id is 5000",
    ),
}
SHARDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (
        lambda f: next(f.glob("*-00002-of-*.safetensors")).unlink(),
        "00002-of-.* is missing from toy",
    ),
    "an index pointing outside": (
        index(lambda m: m.update({NORM: "../model.safetensors"})),
        "'../model.safetensors'; expected the plain name",
    ),
    "an index with an absolute path": (index(lambda m: m.update({NORM: "/etc/x.safetensors"})), "plain name"),
    "an index pointing into a folder": (index(lambda m: m.update({NORM: "a/b.safetensors"})), "plain name"),
    "an index pointing to a pickle": (index(lambda m: m.update({NORM: "model.bin"})), "plain name"),
    "an index of numbers": (index(lambda m: m.update({NORM: 1})), "plain name"),
    "an index without a map": (written(INDEX, b"{}"), "weight_map"),
    "an index that is no JSON": (written(INDEX, b"no"), "not valid JSON"),
    "a tensor only in the index": (
        index(lambda m: m.update({"extra": m[NORM]})),
        "tensor 'extra' in .*, which lacks it",
    ),
    "a tensor only in a file": (index(lambda m: m.pop(NORM)), "'model.norm.weight' is in a file, but not in"),
}


def doubled(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    moved = load_file(first)
    save_file(load_file(second) | {next(iter(moved)): next(iter(moved.values()))}, second)


SHARDED["a tensor in two files"] = (doubled, "is in two files")


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path, type[NanollamaError], str], None]:
    """Checks that a folder is refused by the Python API and on the command line."""

    def refused(folder: Path, error: type[NanollamaError], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            open_and_load(folder)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        assert main(["run", str(folder), "hi", "--backend", "torch", "--device", "cpu"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("nanollama: error: ")
        assert printed.err.count("\n") == 1
        assert "\n" not in str(caught.value)

    return refused


def open_and_load(folder: Path) -> None:
    checkpoint = open_folder(folder)
    try:
        checkpoint.tokenizer()
        TorchBackend(checkpoint.spec, checkpoint.tensors, device="cpu", dtype="float32", cache_tokens=32)
    finally:
        checkpoint.close()


@pytest.mark.parametrize("case", SINGLE)
def test_a_malformed_folder_is_refused_with_one_sentence(single: Path, case: str, refused) -> None:
    change, error, message = SINGLE[case]
    change(single)
    refused(single, error, message)


@pytest.mark.parametrize("case", SHARDED)
def test_shards_that_do_not_fit_together_are_refused(sharded: Path, case: str, refused) -> None:
    change, message = SHARDED[case]
    change(sharded)
    refused(sharded, FormatError, message)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        open_folder(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(FormatError, match="is a file"):
        open_folder(tmp_path / "file")


def test_nothing_in_the_folder_is_run(single: Path, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    code = f"open({str(canary)!r}, 'w').write('ran')\n"
    for name in ("modeling_toy.py", "configuration_toy.py", "tokenization_toy.py", "sitecustomize.py"):
        (single / name).write_text(code)
    (single / "pytorch_model.bin").write_bytes(b"\x80\x02cbuiltins\nexec\n(V" + code.encode() + b"\ntR.")
    auto_map = {"AutoConfig": "configuration_toy.Toy", "AutoModelForCausalLM": "modeling_toy.Toy"}
    edit(single / "config.json", auto_map=auto_map, trust_remote_code=True)
    edit(single / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_toy.Toy", None]})
    modules = set(sys.modules)
    with LLM(str(single), backend="torch", device="cpu") as llm:
        llm.generate("Hello", max_tokens=2)
    assert not canary.exists()
    assert not {name for name in set(sys.modules) - modules if "toy" in name}


def test_reading_a_closed_folder_is_an_error(single: Path) -> None:
    checkpoint = open_folder(single)
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensors[NORM].float32()
