"""Our tokens are llama.cpp's on the real models: a stress corpus and random Unicode, through its own
tokenize endpoint.
"""

import http.client
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanollama.formats.gguf import GGUFFile
from nanollama.text.tokenizer import Tokenizer

Encode = Callable[[str, bool], list[int]]

STRESS = [
    " " * 100,
    "a" + " " * 63 + "b",
    "\n" * 70,
    " \n \n\t\t\n  x",
    "\r\n\r\n",
    "\t" * 40,
    "1234567890" * 5 + " 1/2 ½ ٣٤ Ⅷ 1,000.5",
    "我想在apple工作1314151天\uff5e日本語のテキスト한국어",
    "👨‍👩‍👧‍👦🏳️‍🌈👩🏽‍🚒🇩🇪🦙✅",
    "e\u0301a\u0300o\u0302 \u0301 क्षि ไทย Z̷̢a̸l̵g̶o̵",
    "\x00\x01\x07\x1b[0m\x1f\x7f\x80\x85\x9f\xad",
    "\u00a0\u2003\u2028\u2029\u200b\u200d\ufeff\ufffd\ufffe",
    "\U0010ffff\ue000\U000e0041\U0001f999\U00020000",
    "I've don't We'Ve a'lL 'RE '\u017f it''s",
    "▁▁ ▁a a▁ ▁ Ġ Ċ",
    "İı\u017fßẞŉǄﬁ",
    "<|im_start|>user\nHi<|im_end|>\n<start_of_turn>model<end_of_turn>",
    "<|im_end|><|im_end|>  <|im_end|> \n<eos>",
    "<unused3><table><td> x </td></table><|endoftext|>",
    "<|im_end", "im_end|>", "<0x41>", "<unk><bos>x",
    "!!!!!!''''''```````\"\"\"\"......??????------=======",
    "x" * 300,
    "https://example.org/a_b?c=d&e=%20#f\tdef f(x):\n\t\treturn {'a': [1, 2]}\n",
]  # fmt: skip

# Characters assigned in Python's Unicode database: llama.cpp and Oniguruma may know different later ones.
CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"]).filter(lambda c: unicodedata.category(c) != "Cn")
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=40),
    st.text(st.sampled_from("aA1 \n\t'.é中👍\u0301\u200d▁<|>"), max_size=60),
    st.lists(st.sampled_from(STRESS), max_size=4).map("".join),
)


def llama_cpp_encode(path: Path) -> Iterator[Encode]:
    """llama.cpp's tokenizer for the model file ``path``, behind its server on this machine."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 64
    params.warmup = False
    server = xllamacpp.Server(params)
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))

    def encode(text: str, parse_special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": parse_special})
        connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
        ids: list[int] = json.load(connection.getresponse())["tokens"]
        return ids

    yield encode
    connection.close()
    del server


def tokenizer_of(path: Path) -> Tokenizer:
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[tuple[Tokenizer, Encode]]:
    for encode in llama_cpp_encode(smollm2_path):
        yield tokenizer_of(smollm2_path), encode


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Iterator[tuple[Tokenizer, Encode]]:
    for encode in llama_cpp_encode(gemma3_path):
        yield tokenizer_of(gemma3_path), encode


@pytest.fixture(params=["smollm2", "gemma3"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Encode]:
    found: tuple[Tokenizer, Encode] = request.getfixturevalue(request.param)
    return found


@pytest.mark.model
@pytest.mark.parametrize("parse_special", [False, True])
def test_the_stress_corpus_has_llama_cpps_tokens(pair: tuple[Tokenizer, Encode], parse_special: bool) -> None:
    tokenizer, theirs = pair
    ours = {text: tokenizer.encode(text, parse_special=parse_special) for text in STRESS}
    assert ours == {text: theirs(text, parse_special) for text in STRESS}


@pytest.mark.model
@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, st.booleans())
@example("a\x85b", False)
def test_random_unicode_has_smollm2s_tokens_in_llama_cpp(
    smollm2: tuple[Tokenizer, Encode], text: str, parse_special: bool
) -> None:
    tokenizer, theirs = smollm2
    assert tokenizer.encode(text, parse_special=parse_special) == theirs(text, parse_special)


@pytest.mark.model
@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, st.booleans())
@example("a>▁b> c", False)
def test_random_unicode_has_gemma3s_tokens_in_llama_cpp(
    gemma3: tuple[Tokenizer, Encode], text: str, parse_special: bool
) -> None:
    tokenizer, theirs = gemma3
    assert tokenizer.encode(text, parse_special=parse_special) == theirs(text, parse_special)


@pytest.mark.model
def test_a_page_of_wikitext_has_llama_cpps_tokens(
    pair: tuple[Tokenizer, Encode], wikitext_path: Path
) -> None:
    tokenizer, theirs = pair
    text = wikitext_path.read_text("utf-8")[:100_000]
    assert tokenizer.encode(text) == theirs(text, False)
