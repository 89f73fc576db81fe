"""Unigram tokenizers of a tokenizer.json have the library's tokens, and control tokens stay out of text."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from folders import save_folder
from nanollama.errors import FormatError, UnsupportedError
from nanollama.model.gguf_export import opened_source
from nanollama.text.tokenizer import Tokenizer
from nanollama.text.tokenizer_json import read_tokenizer_json
from nanollama.text.tokenizer_settings import TokenizerSettings

BYTES = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
WORDS = [
    *(("▁", -2.0), ("a", -2.5), ("b", -2.5), ("c", -3.0), ("é", -4.0)),
    *(("ab", -5.0), ("ba", -5.0), ("▁a", -4.5), ("▁ab", -7.5), ("abc", -8.0), ("bc", -5.5)),  # many ties
    *(("▁▁", -4.0), ("aa", -5.0), ("aaa", -7.5), ("<s", -3.0), ("1", -3.0), ("12", -6.0)),
]
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
PARTS = [
    "a",
    "b",
    "c",
    "ab",
    "abc",
    "aaaa",
    " ",
    "  ",
    "é",
    "e\u0301",
    "\ufb01",
    "<s>",
    "</s>",
    "<unk>",
    "<s",
]
PARTS += ["🦙", "▁", "\n", "\t", "1", "12", "x", "日本", "\u200b", "<0x0A>", "<kept>", "\0"]


def library(kind: str) -> Library:
    """As T5's (no bytes, every word after a space), as XLM-R's, and as a conversion of a Llama."""
    pieces = [(text, 0.0) for text in SPECIAL] + (BYTES if kind == "llama" else []) + WORDS
    made = Library(models.Unigram(pieces, SPECIAL.index("<unk>"), byte_fallback=kind == "llama"))
    if kind == "t5":
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
    elif kind == "xlm-r":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    made.add_tokens([AddedToken("<kept>", normalized=False)])
    return made


def saved(made: Library, folder: Path) -> Tokenizer:
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("kind", ["t5", "xlm-r", "llama"])
def test_ten_thousand_random_texts_have_the_librarys_tokens(tmp_path: Path, kind: str) -> None:
    made = library(kind)
    ours = saved(made, tmp_path)
    chance = random.Random(kind)
    for _ in range(10_000):
        text = "".join(chance.choices(PARTS, k=chance.randrange(12)))
        assert ours.encode(text, parse_special=True) == made.encode(text, add_special_tokens=False).ids, text
    assert ours.encode("ab", add_special=True) == made.encode("ab").ids


@pytest.mark.parametrize("kind", ["t5", "xlm-r", "llama"])
def test_control_text_stays_text_unless_parsed(tmp_path: Path, kind: str) -> None:
    ours = saved(library(kind), tmp_path)
    for text in ("<s>", "a</s>b", "<pad>", "<unk>", "x <s> <s>"):
        found = set(ours.encode(text))
        assert not found & {0, 1, 3}
        # What is unknown has the unknown token, which decodes to nothing; bytes leave nothing unknown.
        assert (SPECIAL.index("<unk>") in found) == (kind != "llama")
    assert 3 in ours.encode("<s>", parse_special=True)


def test_bytes_bring_any_text_back(tmp_path: Path) -> None:
    ours = saved(library("llama"), tmp_path)
    for text in ("a b  c", "🦙 日本\n\0", "<s> é"):
        assert ours.decode(ours.encode(text)) == text


def changed(folder: Path, **changes: Any) -> Path:
    spec = json.loads(library("llama").to_str())
    spec["model"] |= changes
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**spec, "model": {k: v for k, v in spec["model"].items() if v is not ...}}))
    return path


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"unk_id": ...}, UnsupportedError, r"model\.unk_id in tokenizer\.json is missing"),
        ({"unk_id": -1}, FormatError, "unk_id .* is -1; expected 0 to"),
        ({"unk_id": 10**9}, FormatError, "unk_id .* is 1000000000; expected 0 to"),
        ({"unk_id": True}, FormatError, "unk_id .* is True"),
        ({"vocab": []}, FormatError, r"vocab .* is \[\]; expected a list of pieces"),
        ({"vocab": {"a": 1}}, FormatError, "vocab .* is .*; expected a list of pieces"),
        ({"vocab": [["a", 1.0], ["b"]]}, FormatError, r"vocab\[1\] .* is \['b'\]; expected a piece and"),
        ({"vocab": [["", 1.0]]}, FormatError, r"vocab\[0\]"),
        ({"vocab": [["a", "x"]]}, FormatError, r"vocab\[0\]"),
        ({"vocab": [["a", True]]}, FormatError, r"vocab\[0\]"),
        ({"vocab": [["a", -1e300]]}, FormatError, r"vocab\[0\]"),
        ({"vocab": [["a", 0], ["a", 1]], "unk_id": 0}, FormatError, "'a' .* occurs twice"),
        ({"byte_fallback": "yes"}, FormatError, "byte_fallback .* is 'yes'"),
    ],
)  # fmt: skip
def test_a_malformed_model_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = changed(tmp_path, **changes)
    with pytest.raises(error, match=message):
        read_tokenizer_json(path, TokenizerSettings())


def test_the_lowest_score_counts_whosever_it_is(tmp_path: Path) -> None:
    """The price of what is unknown follows from it: here a control token's."""
    spec = json.loads(library("xlm-r").to_str())
    spec["model"]["vocab"][0][1] = -50.0
    made = Library.from_str(json.dumps(spec))
    ours = saved(made, tmp_path)
    for text in ("xa", "axxb", "ab x ab"):
        assert ours.encode(text) == made.encode(text, add_special_tokens=False).ids


def test_a_conversion_to_gguf_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    save_folder(folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    library("llama").save(str(folder / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="toy has a Unigram tokenizer"), opened_source(folder):
        pass
