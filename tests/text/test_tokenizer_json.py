"""The tokenizer from a Hugging Face tokenizer.json: equal to the one from GGUF, and to the library's own
reading.
"""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from nanollama.errors import FormatError, NanollamaError, UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.text.pretokenizers import TABLE
from nanollama.text.tokenizer import Tokenizer
from nanollama.types import Prompt

CALM = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def byte_level_library(vocab_dir: Path, name: str = "gpt-2") -> Library:
    with GGUFFile(vocab_dir / f"ggml-vocab-{name}.gguf") as file:
        tokens = file.metadata["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]
    library = Library(models.BPE({text: index for index, text in enumerate(tokens)}, merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in TABLE[name].patterns]
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>"])
    return library


def sentencepiece_library(*, metaspace: bool) -> Library:
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "a",
        "b",
        "▁a",
        "ab",
        "▁▁",
    ]
    merges = [("▁", "a"), ("a", "b"), ("▁", "▁")]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    library = Library(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    return library


def saved(library: Library, folder: Path, config: dict[str, Any] | None = None) -> Tokenizer:
    path = folder / "tokenizer.json"
    library.save(str(path))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_folder(path.parent)


@pytest.mark.parametrize("name", ["gpt-2", "deepseek-coder"])
def test_a_file_gives_the_tokens_that_gguf_gives(vocab_dir: Path, tmp_path: Path, name: str) -> None:
    with GGUFFile(vocab_dir / f"ggml-vocab-{name}.gguf") as file:
        from_gguf = Tokenizer.from_gguf(file.metadata)
    from_file = saved(byte_level_library(vocab_dir, name), tmp_path)
    for text in (
        Path(f"{vocab_dir}/ggml-vocab-{name}.gguf.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    ):
        ids = from_gguf.encode(text)
        assert from_file.encode(text) == ids
        assert from_file.decode(ids) == from_gguf.decode(ids)


@pytest.mark.parametrize("metaspace", [False, True])
def test_random_text_has_the_librarys_tokens(tmp_path: Path, metaspace: bool) -> None:
    library = sentencepiece_library(metaspace=metaspace)
    ours = saved(library, tmp_path)

    @CALM
    @given(st.lists(st.sampled_from(["a", "b", " ", "  ", "é", "<s>", "</s>", "🦙", "▁", "\n"]), max_size=12))
    def check(pieces: list[str]) -> None:
        text = "".join(pieces)
        assert ours.encode(text, parse_special=True) == library.encode(text, add_special_tokens=False).ids

    check()


def test_bos_comes_from_the_post_processor_or_the_configuration(tmp_path: Path) -> None:
    library = sentencepiece_library(metaspace=False)
    ours = saved(library, tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.adds_eos) == (1, None, True, False)
    assert ours.encode("a b", add_special=True) == library.encode("a b").ids
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "add_bos_token": False,
        "add_eos_token": True,
    }
    ours = saved(library, tmp_path, config)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.adds_eos) == (1, 2, False, True)
    assert ours.stop_ids == {2}
    assert ours.encode("a", add_special=True)[-1] == 2


def test_control_text_stays_text_unless_parsed(vocab_dir: Path, tmp_path: Path) -> None:
    ours = saved(byte_level_library(vocab_dir), tmp_path)
    assert 50256 not in ours.encode("a<|endoftext|>b")
    assert ours.encode("a<|endoftext|>b", parse_special=True)[1] == 50256
    prompt = Prompt("<|endoftext|><|endoftext|>", ((13, 26),))
    assert ours.encode(prompt, parse_special=True).count(50256) == 1
    assert ours.stop_ids == {50256}
    assert ours.token_bytes(50256) == b""


def test_merges_that_make_a_control_token_are_left_out(tmp_path: Path) -> None:
    vocab = {text: index for index, text in enumerate(["a", "b", "c", "ab", "abc", "bc"])}
    library = Library(models.BPE(vocab, [("a", "b"), ("ab", "c"), ("b", "c")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.add_special_tokens(["abc"])
    ours = saved(library, tmp_path)
    assert ours.encode("abc") == [vocab["ab"], vocab["c"]]
    assert ours.encode("bc") == [vocab["bc"]]
    assert ours.encode("abc", parse_special=True) == [vocab["abc"]]


def test_flags_of_added_tokens_are_honoured(vocab_dir: Path, tmp_path: Path) -> None:
    library = byte_level_library(vocab_dir)
    library.add_special_tokens([AddedToken("<left>", lstrip=True, normalized=False)])
    library.add_special_tokens([AddedToken("<right>", rstrip=True, normalized=False)])
    library.add_tokens([AddedToken("word", single_word=True, normalized=False)])
    ours = saved(library, tmp_path)
    for text in (
        "a <left> b",
        "a <right> b",
        "<right> <left>",
        "word words a word",
        "sword",
        "a  <left>  <right>  b",
    ):
        assert ours.encode(text, parse_special=True) == library.encode(text, add_special_tokens=False).ids, (
            text
        )
    assert ours.encode("a word") == library.encode("a word", add_special_tokens=False).ids


def test_wordpiece_equals_the_librarys_and_ggufs(vocab_dir: Path, tmp_path: Path) -> None:
    with GGUFFile(vocab_dir / "ggml-vocab-bert-bge.gguf") as file:
        from_gguf = Tokenizer.from_gguf(file.metadata)
        pieces = file.metadata["tokenizer.ggml.tokens"]
    spelling = {text: index for index, text in enumerate(pieces)}
    vocab = {
        text if text.startswith("[") and text.endswith("]") and len(text) > 2 else
        text.removeprefix("▁") if text.startswith("▁") else f"##{text}": index
        for text, index in spelling.items()
    }  # fmt: skip
    library = Library(models.WordPiece(vocab, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    library.add_special_tokens(["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    ours = saved(library, tmp_path)
    for text in ("Hello, wörld!", "embeddings", "我想 apple", "naïve [CLS] x", "한국어", "a" * 150):
        assert ours.encode(text, add_special=True) == from_gguf.encode(text, add_special=True), text
        ids = ours.encode(text, add_special=True, parse_special=True)
        assert ids == library.encode(text).ids
        assert ours.decode(ids) == from_gguf.decode(ids)


def bpe(vocab: dict[str, int], merges: list[Any]) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges}}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": None}, FormatError, "model in tokenizer.json is None; expected an object"),
        ({"model": {"type": "Unigram", "vocab": []}}, FormatError, "expected a list of pieces"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, UnsupportedError, "is 'WordLevel'"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, FormatError, "is empty"),
        ({"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}, FormatError, "is 1099511627776"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, FormatError, "id of 'a' .* is -1"),
        ({"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}, "merges": []}}, FormatError, "share the id 1"),
        ({"model": {"type": "BPE", "vocab": {"a": 300}, "merges": ["a q"]}}, FormatError, "cannot be read"),
        (bpe({"a": 300, "q": 301}, ["a q"]), FormatError, "make a third"),
        (bpe({"a": 300}, [["a"]]), FormatError, "make a third"),
        (bpe({"a": 300}, [3]), FormatError, "cannot be read"),
        (bpe({"a": 300}, [[["a"], "a"]]), FormatError, "cannot be read"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A"}}, FormatError, "cannot be read"),
        ({"pre_tokenizer": {"type": "Nothing"}}, FormatError, "cannot be read"),
        ({"added_tokens": [{"id": 3}]}, FormatError, "a content and an id are expected"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    library = sentencepiece_library(metaspace=False)
    spec = json.loads(library.to_str()) | change
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(error, match=message):
        Tokenizer.from_folder(path.parent)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"tokenizer.json"):
        Tokenizer.from_folder(path.parent)


def test_a_token_that_the_configuration_names_must_be_in_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="eos_token is '<nowhere>'"):
        saved(sentencepiece_library(metaspace=False), tmp_path, {"eos_token": "<nowhere>"})


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Container and key of every node of a JSON value, the 256 byte pieces left out."""
    if isinstance(value, dict):
        pairs = [(value, key) for key in value if not key.startswith("<0x")]
    elif isinstance(value, list):
        pairs = [(value, index) for index in range(len(value))]
    else:
        return []
    return pairs + [pair for container, key in pairs for pair in nodes(container[key])]


@pytest.mark.parametrize("metaspace", [False, True])
def test_a_file_with_any_value_exchanged_is_read_or_refused(tmp_path: Path, metaspace: bool) -> None:
    whole = sentencepiece_library(metaspace=metaspace).to_str()
    chance = random.Random(7)
    path = tmp_path / "tokenizer.json"
    strange = (None, True, -1, 3, 2**70, 1.5, "", "a", "▁" * 3, [], ["a"], [[]], {}, {"type": "Split"})
    for _ in range(700):
        spec = json.loads(whole)
        for _ in range(chance.choice((1, 1, 2))):
            container, key = chance.choice(nodes(spec))
            if chance.random() < 0.2:
                del container[key]
            else:
                container[key] = copy.deepcopy(chance.choice(strange))
        path.write_text(json.dumps(spec))
        try:
            Tokenizer.from_folder(path.parent).encode("ab a <s> é", add_special=True, parse_special=True)
        except NanollamaError:
            continue
