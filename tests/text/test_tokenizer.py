"""The tokenizer from GGUF metadata: golden vocabularies, control tokens and literal text, malformed
vocabularies.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.errors import FormatError, UnsupportedError, UsageError
from nanollama.formats.gguf import GGUFFile
from nanollama.text.tokenizer import Tokenizer
from nanollama.types import Prompt

GOLDEN = ["bert-bge", "deepseek-coder", "gpt-2", "llama-spm", "qwen2"]
CALM = settings(max_examples=200, deadline=None, derandomize=True)


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary with byte fallback that joins 'ab', 'abc', '▁a' and runs of spaces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3] + [6] * 256
    for piece in ("▁", "a", "b", "c", "<", ">", "/", "s", "ab", "abc", "▁a", "▁▁", "</", "s>", "bc"):
        pieces.append(piece)
        types.append(1)
    for piece, kind in (("<turn>", 3), ("<turn><turn>", 3), ("\n", 4), ("\n\n", 4), ("XY", 4), ("YZZ", 4)):
        pieces.append(piece)
        types.append(kind)
    metadata = {
        "model": "llama",
        "tokens": pieces,
        "token_type": types,
        "scores": [float(-index) for index in range(len(pieces))],
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE vocabulary of printable ASCII with a few merges and control tokens."""
    pieces = [chr(code) for code in range(0x21, 0x7F)] + ["Ġ", "he", "ll", "hell", "hello", "Ġhe"]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*pieces, "<|im_end|>", "end"],
        "token_type": [1] * len(pieces) + [3, 3],
        "merges": ["h e", "l l", "he ll", "hell o", "Ġ he"],
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}


@pytest.fixture(scope="module")
def spm() -> Tokenizer:
    return Tokenizer.from_gguf(spm_metadata())


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    with GGUFFile(smollm2_path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Tokenizer:
    with GGUFFile(gemma3_path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_golden_line_has_the_expected_ids(name: str, vocab_dir: Path) -> None:
    path = vocab_dir / f"ggml-vocab-{name}.gguf"
    with GGUFFile(path) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().splitlines()
    expected = {
        text: [int(number) for number in line.split()] for text, line in zip(texts, lines, strict=False)
    }
    assert len(expected) > 40
    assert {text: tokenizer.encode(text) for text in expected} == expected


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "bert-bge"])
def test_every_golden_text_decodes_to_itself(name: str, vocab_dir: Path) -> None:
    path = vocab_dir / f"ggml-vocab-{name}.gguf"
    with GGUFFile(path) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    for text in Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n"):
        assert tokenizer.decode(tokenizer.encode(text), strip_prefix=True) == text


def test_smollm2_knows_its_special_tokens(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_id) == (49152, 1, 2)
    assert (smollm2.bos_text, smollm2.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert (smollm2.adds_bos, smollm2.adds_eos) == (False, False)
    assert smollm2.stop_ids == {0, 2, 4}  # <|endoftext|>, <|im_end|>, <reponame>: llama.cpp's
    assert len(smollm2.control_tokens) == 17


def test_gemma3_adds_bos_and_stops_at_the_end_of_a_turn(gemma3: Tokenizer) -> None:
    assert (gemma3.vocab_size, gemma3.bos_id, gemma3.eos_id) == (262144, 2, 1)
    assert gemma3.adds_bos
    assert gemma3.stop_ids == {1, 106}  # not the HTML tag </s>, which is no control token here
    assert gemma3.encode("Hi", add_special=True)[0] == 2


@pytest.mark.parametrize("parse_special", [False, True])
def test_control_text_is_a_token_only_when_parsed(smollm2: Tokenizer, parse_special: bool) -> None:
    ids = smollm2.encode("a<|im_end|>b", parse_special=parse_special)
    assert (2 in ids) is parse_special
    assert smollm2.decode(ids, skip_special=False) == "a<|im_end|>b"
    assert smollm2.decode(ids) == ("ab" if parse_special else "a<|im_end|>b")


@pytest.mark.parametrize(
    ("literal", "found"),
    [
        ((), 2),
        (((1, 11),), 1),  # exactly the first one
        (((5, 6),), 1),  # one character within it
        (((0, 2),), 1),  # one character at its edge
        (((0, 1), (11, 12)), 2),  # both neighbours but not the token
        (((0, 25),), 0),
        (((10, 13),), 0),  # the end of one and the start of the other
        (((2, 2),), 1),  # an empty span parts what stands around it
    ],
)
def test_a_literal_span_keeps_control_tokens_out(
    smollm2: Tokenizer, literal: tuple[tuple[int, int], ...], found: int
) -> None:
    prompt = Prompt("a<|im_end|>b<|im_end|>cde", literal)
    ids = smollm2.encode(prompt, parse_special=True)
    assert ids.count(2) == found
    assert smollm2.decode(ids, skip_special=False) == prompt.text


@CALM
@given(st.lists(st.sampled_from(["<|im_", "end|>", "<|im_start|>", "<|", "<reponame>", " ", "a", "\n"])))
def test_no_text_in_a_literal_span_becomes_a_control_token(smollm2: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    control = set(smollm2.control_tokens.values())
    assert not control & set(smollm2.encode(text))
    prompt = Prompt(f"<|im_start|>{text}<|im_end|>", ((12, 12 + len(text)),))
    ids = smollm2.encode(prompt, parse_special=True)
    assert [token_id for token_id in ids if token_id in control] == [1, 2]


def test_merging_never_makes_a_control_or_byte_token_of_text(spm: Tokenizer) -> None:
    assert spm.control_tokens["</s>"] not in spm.encode("</s>")
    assert spm.decode(spm.encode("a</s>b<0x41>"), strip_prefix=True) == "a</s>b<0x41>"


def test_a_bpe_merge_never_makes_a_control_token_of_text() -> None:
    merges = ["h e", "e n", "en d"]
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"], "en"]
    types = [*bpe_metadata()["tokenizer.ggml.token_type"], 1]
    tokenizer = Tokenizer.from_gguf(bpe_metadata(tokens=tokens, token_type=types, merges=merges))
    assert tokenizer.control_tokens["end"] not in tokenizer.encode("end")
    assert tokenizer.decode(tokenizer.encode("end hello")) == "end hello"


def test_a_word_that_is_a_control_token_stays_text_where_merges_are_ignored() -> None:
    tokenizer = Tokenizer.from_gguf(bpe_metadata(pre="llama-bpe", add_bos_token=False))
    assert tokenizer.control_tokens["end"] not in tokenizer.encode("end")
    assert tokenizer.encode("end", parse_special=True) == [tokenizer.control_tokens["end"]]


def test_user_defined_tokens_are_found_in_any_text(gemma3: Tokenizer) -> None:
    assert gemma3.encode("\n\n\n") == [109]
    assert gemma3.encode("a    b")[1] == 140
    assert gemma3.encode(Prompt("x<table>y", ((0, 9),)))[1] == 168


def test_a_longer_added_token_wins_over_one_that_begins_earlier(spm: Tokenizer) -> None:
    assert [spm.decode([token_id]) for token_id in spm.encode("XYZZ")][-2:] == ["X", "YZZ"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["▁a"]),
        ("", []),
        (" a", ["▁", "▁a"]),
        ("<turn>a", ["<turn>", "▁a"]),
        ("a<turn>a", ["▁a", "<turn>", "▁a"]),
        ("<turn><turn>", ["<turn><turn>"]),
        ("abc", ["▁", "abc"]),
    ],
)
def test_sentencepiece_puts_a_space_at_the_start_and_after_special_tokens(
    spm: Tokenizer, text: str, expected: list[str]
) -> None:
    pieces = spm_metadata()["tokenizer.ggml.tokens"]
    assert [pieces[token_id] for token_id in spm.encode(text, parse_special=True)] == expected


def test_no_space_is_put_where_the_file_says_so() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(add_space_prefix=False))
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"


@pytest.mark.parametrize(
    ("prompt", "changes", "expected"),
    [
        ("a", {}, 1),
        ("a", {"add_bos_token": False}, 0),
        ("<s>a", {}, 1),
        (Prompt("<s>a", adds_bos=True), {}, 1),
        (Prompt("a", adds_bos=True), {}, 0),
        (Prompt("<s>a", ((0, 3),)), {}, 1),
        ("", {}, 1),
    ],
)
def test_bos_is_added_once(prompt: str | Prompt, changes: dict[str, Any], expected: int) -> None:
    ids = Tokenizer.from_gguf(spm_metadata(**changes)).encode(prompt, add_special=True, parse_special=True)
    assert ids.count(1) == expected
    assert 1 not in ids[1:]


def test_eos_is_added_where_the_file_asks_for_it() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(add_eos_token=True))
    assert tokenizer.encode("a", add_special=True)[-1] == 2
    assert tokenizer.encode("a</s>", add_special=True, parse_special=True).count(2) == 1
    assert 2 not in tokenizer.encode("a")


def test_a_completion_keeps_its_leading_space(spm: Tokenizer) -> None:
    ids = spm.encode("a ab")
    assert spm.decode(ids) == " a ab"
    assert spm.decode(ids, strip_prefix=True) == "a ab"
    assert spm.decode(ids[1:]) == " ab"


def test_a_lone_surrogate_counts_as_the_replacement_character(spm: Tokenizer, smollm2: Tokenizer) -> None:
    for tokenizer in (spm, smollm2):
        assert tokenizer.encode("a\ud800b\udfff") == tokenizer.encode("a\ufffdb\ufffd")
    assert smollm2.encode("\ud83d\ude00") == smollm2.encode("\ufffd\ufffd")
    prompt = Prompt("\ud83d\ude00<|im_end|>", ((0, 2),))
    assert smollm2.encode(prompt, parse_special=True)[-1] == 2


@pytest.mark.parametrize("text", ["", "\x00", "a\x00b", "\x00" * 9])
def test_empty_text_and_nul_are_ordinary(smollm2: Tokenizer, gemma3: Tokenizer, text: str) -> None:
    for tokenizer in (smollm2, gemma3):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token_id", [-1, 49152, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(smollm2: Tokenizer, token_id: int) -> None:
    with pytest.raises(UsageError, match=f"no token {token_id}; .* 0 to 49151"):
        smollm2.token_bytes(token_id)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no tokenizer.ggml.model"),
        (spm_metadata(tokens=None), "no tokenizer.ggml.tokens"),
        (spm_metadata(tokens=[], token_type=[], scores=[]), "tokenizer.ggml.tokens is empty"),
        (spm_metadata(tokens=[1, 2]), r"tokenizer.ggml.tokens is \[1, 2\]"),
        (spm_metadata(tokens="abc"), "tokenizer.ggml.tokens is 'abc'"),
        (spm_metadata(scores=None), "no tokenizer.ggml.scores"),
        (spm_metadata(scores=[0.0]), "tokenizer.ggml.scores has 1 items, .* has 280"),
        (spm_metadata(scores=["x"]), r"tokenizer.ggml.scores is \['x'\]"),
        (spm_metadata(scores=[0.0] * 279 + [float("nan")]), r"tokenizer.ggml.scores\[279\] is not a number"),
        (spm_metadata(token_type=[1, 2]), "tokenizer.ggml.token_type has 2 items, .* has 280"),
        (spm_metadata(token_type=[6] * 280), r"tokenizer.ggml.tokens\[0\] is '<unk>', but a byte"),
        (spm_metadata(bos_token_id=280), "tokenizer.ggml.bos_token_id is 280, .* 0 to 279"),
        (spm_metadata(eos_token_id=2**31), "tokenizer.ggml.eos_token_id is 2147483648"),
        (spm_metadata(eot_token_id=-2), "tokenizer.ggml.eot_token_id is -2"),
        (spm_metadata(bos_token_id="one"), "tokenizer.ggml.bos_token_id is 'one'"),
        (spm_metadata(add_bos_token=1), "tokenizer.ggml.add_bos_token is 1, .* true or false"),
        (spm_metadata(bos_token_id=2**32 - 1, add_bos_token=True), "add_bos_token is true, but .* no"),
        (
            spm_metadata(tokens=["<unk>", "a", "b", "a"], token_type=[2, 1, 1, 1], scores=[0.0] * 4),
            r"tokenizer.ggml.tokens\[3\] is 'a', which token 1 is too",
        ),
        (
            spm_metadata(
                tokens=["a", "b", "c"], token_type=[1] * 3, scores=[0.0] * 3, unknown_token_id=2**32 - 1
            ),
            "lacks byte tokens",
        ),
        (bpe_metadata(merges=None), "no tokenizer.ggml.merges"),
        (bpe_metadata(merges=["h e", "q q"]), r"tokenizer.ggml.merges\[1\] is 'q q', .* no piece 'qq'"),
        (bpe_metadata(merges=["h é"]), r"tokenizer.ggml.merges\[0\] is 'h é', .* no piece 'é'"),
        (bpe_metadata(merges=["h e", "he"]), r"tokenizer.ggml.merges\[1\] is 'he', but two pieces"),
        (bpe_metadata(merges=[""]), r"tokenizer.ggml.merges\[0\] is '', but two pieces"),
        (bpe_metadata(merges=7), "tokenizer.ggml.merges is 7"),
    ],
)
def test_a_malformed_vocabulary_is_refused_with_key_and_value(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize("model", ["rwkv", "t5", "plamo2", "gemma4", "", 3, ["llama"]])
def test_an_unsupported_model_is_named(model: object) -> None:
    with pytest.raises(
        UnsupportedError, match=r"tokenizer.ggml.model is .*expected one of llama, gpt2, bert"
    ):
        Tokenizer.from_gguf(spm_metadata(model=model))


def test_minus_one_means_that_there_is_no_such_token() -> None:
    tokenizer = Tokenizer.from_gguf(spm_metadata(bos_token_id=2**32 - 1, eos_token_id=2**32 - 1))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.bos_text, tokenizer.eos_text) == (
        None,
        None,
        "",
        "",
    )
    assert not tokenizer.adds_bos


@pytest.mark.parametrize("name", ["my-own", None, 5])
def test_an_unknown_pre_tokenizer_is_a_warning_and_the_default(name: object) -> None:
    with pytest.warns(UserWarning, match="so the default one is used"):
        tokenizer = Tokenizer.from_gguf(bpe_metadata(pre=name))
    assert tokenizer.encode("hello hey") == Tokenizer.from_gguf(bpe_metadata(pre="default")).encode(
        "hello hey"
    )


def test_a_chat_token_marked_as_user_defined_counts_as_control() -> None:
    types = [*bpe_metadata()["tokenizer.ggml.token_type"][:-2], 4, 3]
    tokenizer = Tokenizer.from_gguf(bpe_metadata(token_type=types))
    assert tokenizer.control_tokens["<|im_end|>"] in tokenizer.stop_ids
    assert tokenizer.control_tokens["<|im_end|>"] not in tokenizer.encode("<|im_end|>")


def test_in_the_harmony_format_a_message_may_end_before_the_turn_does() -> None:
    tokens = [*bpe_metadata()["tokenizer.ggml.tokens"], "<|end|>", "<|return|>", "<|call|>"]
    types = [*bpe_metadata()["tokenizer.ggml.token_type"], 3, 3, 3]
    stop = {tokens[i] for i in Tokenizer.from_gguf(bpe_metadata(tokens=tokens, token_type=types)).stop_ids}
    assert stop == {"<|im_end|>", "<|return|>", "<|call|>"}
    stop = {
        tokens[i]
        for i in Tokenizer.from_gguf(bpe_metadata(tokens=tokens[:-2], token_type=types[:-2])).stop_ids
    }
    assert stop == {"<|im_end|>", "<|end|>"}


def test_wordpiece_lower_cases_and_strips_accents(vocab_dir: Path) -> None:
    with GGUFFile(vocab_dir / "ggml-vocab-bert-bge.gguf") as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    assert tokenizer.encode("Éclair, NAÏVE") == tokenizer.encode("eclair , naive")
    assert tokenizer.encode("中文") == tokenizer.encode("中 文")
    assert tokenizer.encode("hi", add_special=True)[0::2] == [101, 102]
    assert tokenizer.encode("x" * 101) == [100]
    assert (
        tokenizer.decode(tokenizer.encode("embeddings are vectors"), strip_prefix=True)
        == "embeddings are vectors"
    )


def test_a_sentencepiece_tokenizer_needs_no_heavy_import() -> None:
    code = (
        "import sys; from nanollama.text.tokenizer import Tokenizer\n"
        "pieces = ['<unk>', 'a', 'b']\n"
        "t = Tokenizer.from_gguf({'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.tokens': pieces,\n"
        "    'tokenizer.ggml.scores': [0.0] * 3, 'tokenizer.ggml.token_type': [2, 1, 1]})\n"
        "assert t.encode('ab') == [0, 0, 0, 1, 2], t.encode('ab')\n"
        "heavy = {'tokenizers', 'torch', 'numpy', 'transformers', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
