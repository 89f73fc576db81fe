"""The tokenizer of a model folder: the ids of transformers' AutoTokenizer, for each kind of folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer

from folders import CHATML, CORPUS, byte_level, edit, save_tokenizer
from nanollama.errors import FormatError, UnsupportedError
from nanollama.text.pretokenizers import TABLE
from nanollama.text.template import ChatTemplate
from nanollama.text.tokenizer import Tokenizer
from nanollama.text.tokenizer_settings import read_settings
from nanollama.types import Message

TEXTS = [
    "",
    " ",
    "Hello world",
    " hello",
    "hello  world   1234567",
    "isn't it? I'LL say: he'd",
    "héllo wörld, 한국어 и русский 🦙🦙",
    "def main():\n    return 'x'\n\n\n\t\tpass\r\n",
    "a" * 200,
    "trailing spaces   ",
    "\n\n\n",
    "<|im_start|>user\nhi<|im_end|>",
]
GPT2_DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def llama_like(*, metaspace: bool) -> Library:
    """What a Llama tokenizer looks like: byte fallback, no spaces in pieces but a mark for them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "he", "ll", "hell", "hello", "▁hello", "▁w", "or", "▁▁"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w"), ("o", "r")]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [*merges, ("▁", "▁")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    library = Library(model)
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


def digits_alone() -> Library:
    library = byte_level()
    library.pre_tokenizer = GPT2_DIGITS
    return library


KINDS = {
    "llama 3": lambda: byte_level(),
    "qwen": lambda: byte_level(TABLE["qwen2"].patterns[0]),
    "gpt-4o": lambda: byte_level(TABLE["gpt-4o"].patterns[0]),
    "smollm": digits_alone,
    "llama 2": lambda: llama_like(metaspace=False),
    "llama 2 with metaspace": lambda: llama_like(metaspace=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"} if "2" in kind else {}
    save_tokenizer(tmp_path, KINDS[kind](), **tokens)
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text, add_special=True, parse_special=True)
        assert ids == theirs(text).input_ids, text
        if "2" not in kind:
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_id == theirs.eos_token_id


def test_further_tokens_come_from_the_small_files(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    size = AutoTokenizer.from_pretrained(tmp_path).vocab_size + 4
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    edit(
        tmp_path / "tokenizer_config.json",
        added_tokens_decoder={str(size): {"content": "<|tool|>", "special": True, **flags}},
    )
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<think>": size + 1, "<|im_end|>": 0}))
    ours = Tokenizer.from_folder(tmp_path)
    ids = ours.encode("a<|tool|>b<think>", parse_special=True)
    assert ids[1] == size
    assert ids[-1] == size + 1
    assert ours.control_tokens["<|tool|>"] == size
    assert "<think>" not in ours.control_tokens


@pytest.mark.parametrize(
    ("config", "fallback", "expected"),
    [
        ({}, {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}, ("<|begin|>", "<|im_end|>", True, False)),
        ({"bos_token": None, "eos_token": {"content": "<|pad|>"}}, {}, ("<|begin|>", "<|pad|>", True, False)),
        ({"bos_token": "<|pad|>"}, {"bos_token": "<|begin|>"}, ("<|pad|>", "", False, False)),
        ({"add_bos_token": False}, {}, ("<|begin|>", "", False, False)),
        ({"add_eos_token": True}, {"eos_token": "<|pad|>"}, ("<|begin|>", "<|pad|>", True, True)),
        ({"add_bos_token": None}, {}, ("<|begin|>", "", True, False)),
    ],
)  # fmt: skip
def test_the_ends_of_a_text_are_the_first_that_a_file_names(
    tmp_path: Path, config: dict[str, Any], fallback: dict[str, Any], expected: tuple[str, str, bool, bool]
) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path / "tokenizer_config.json", **config)
    edit(tmp_path / "special_tokens_map.json", **fallback)
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.bos_text, ours.eos_text, ours.adds_bos, ours.adds_eos) == expected


TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "Hello\n\n <world>"},
    {"role": "assistant", "content": "  Hi. "},
    {"role": "user", "content": "And now?"},
]
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}\n"
)


def as_text(folder: Path, template: str) -> None:
    edit(folder / "tokenizer_config.json", chat_template=template)


def as_list(folder: Path, template: str) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    edit(folder / "tokenizer_config.json", chat_template=named)


def as_file(folder: Path, template: str) -> None:
    as_text(folder, "not this one")
    (folder / "chat_template.jinja").write_text(template)


def as_files(folder: Path, template: str) -> None:
    as_file(folder, template)
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool_use.jinja").write_text("no")


@pytest.mark.parametrize("template", [CHATML, TRIMMED])
@pytest.mark.parametrize("way", [as_text, as_list, as_file, as_files])
def test_a_conversation_is_written_as_transformers_writes_it(tmp_path: Path, way: Any, template: str) -> None:
    save_tokenizer(tmp_path)
    way(tmp_path, template)
    source = read_settings(tmp_path).chat_template
    assert source is not None
    ours = Tokenizer.from_folder(tmp_path)
    rendered = ChatTemplate(source, bos_token=ours.bos_text, eos_token=ours.eos_text).render(
        [Message(role=turn["role"], content=turn["content"]) for turn in TALK]
    )
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert rendered.text == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)


def test_one_named_template_is_the_one_and_several_need_a_default(tmp_path: Path) -> None:
    assert read_settings(tmp_path).chat_template is None
    edit(tmp_path / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "x"}])
    assert read_settings(tmp_path).chat_template == "x"
    both = [{"name": "rag", "template": "x"}, {"name": "tools", "template": "y"}]
    edit(tmp_path / "tokenizer_config.json", chat_template=both)
    with pytest.raises(FormatError, match="rag, tools and none is named default"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token .* is 3"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token .* is 'yes'"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template .* is 5"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "chat_template"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder .* is \\[\\]"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "a content and an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": ""}}}, "a content and an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "a", "special": 1}}}, "flags"),
        ("added_tokens.json", {"a": "1"}, "a content and an id"),
        ("special_tokens_map.json", {"eos_token": ["x"]}, "eos_token"),
    ],
)  # fmt: skip
def test_settings_of_another_type_are_refused(
    tmp_path: Path, name: str, content: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(FormatError, match=message):
        read_settings(tmp_path)


@pytest.mark.parametrize("pattern", ["(a+)+b", r"(\s*)*x", r"\p{L}+|((.*)*)*", "", "a" * 5000])
def test_a_strange_expression_is_not_run(tmp_path: Path, pattern: str) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UnsupportedError, match="regular expression"):
        Tokenizer.from_folder(tmp_path)


def test_a_strange_expression_of_the_normalizer_is_not_run_either(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    replacing = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}
    edit(tmp_path / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [replacing]})
    with pytest.raises(UnsupportedError, match="regular expression"):
        Tokenizer.from_folder(tmp_path)


def test_an_expression_may_hold_its_line_ends_as_themselves(tmp_path: Path) -> None:
    byte_level(TABLE["deepseek-v3"].patterns[-1].replace(r"\r", "\r").replace(r"\n", "\n")).save(
        str(tmp_path / "tokenizer.json")
    )
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids or "<|" in text


def test_tokens_beyond_the_model_are_left_out(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=theirs.pad_token_id)
    assert ours.vocab_size == theirs.pad_token_id
    assert "<|pad|>" not in ours.control_tokens
    with pytest.raises(FormatError, match="do not belong together"):
        Tokenizer.from_folder(tmp_path, vocab_size=100)


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model trained as Llama's was: BPE with byte fallback and no normalization."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "corpus.txt").write_text("\n".join(line for text in CORPUS for line in text.splitlines()) * 4)
    train(folder, "tokenizer", model_type="bpe")
    return folder


def train(folder: Path, name: str, **settings: Any) -> None:
    settings = {
        "vocab_size": 360,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "user_defined_symbols": ["<tool>"],
        "minloglevel": 2,
        "hard_vocab_limit": False,
    } | settings
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / name), **settings
    )


def test_a_sentencepiece_model_gives_the_librarys_ids(spm: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    ours = Tokenizer.from_folder(spm)
    assert (ours.bos_id, ours.eos_id, ours.adds_bos, ours.adds_eos) == (1, 2, True, False)
    assert ours.vocab_size == library.vocab_size()
    for text in TEXTS[2:]:
        assert ours.encode(text) == library.encode(text), text
        assert ours.decode(ours.encode(text), strip_prefix=True) == text
    assert library.piece_to_id("<tool>") in ours.encode("x<tool>y")


@pytest.mark.parametrize(("legacy", "after"), [(None, "▁x"), (True, "▁x"), (False, "x")])
def test_only_a_legacy_sentencepiece_model_puts_a_space_after_a_special_token(
    spm: Path, tmp_path: Path, legacy: bool | None, after: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((spm / "tokenizer.model").read_bytes())
    edit(tmp_path / "tokenizer_config.json", legacy=legacy)
    library = sentencepiece.SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    ids = Tokenizer.from_folder(tmp_path).encode("x</s>x", parse_special=True)
    before = library.encode("x")
    assert ids[: len(before) + 1] == [*before, 2]
    assert "".join(library.id_to_piece(ids[len(before) + 1 :])) == after


def test_a_sentencepiece_model_takes_further_tokens(spm: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((spm / "tokenizer.model").read_bytes())
    base = Tokenizer.from_folder(tmp_path).vocab_size
    edit(tmp_path / "added_tokens.json", **{"<|im_end|>": base, "<|pad|>": base + 1})
    edit(tmp_path / "special_tokens_map.json", eos_token="<|im_end|>")
    edit(tmp_path / "tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=base + 10, stop_ids=[2])
    assert ours.encode("hi", add_special=True)[-1] == base == ours.eos_id
    assert not ours.adds_bos
    assert ours.stop_ids >= {2, base}
    assert ours.vocab_size == base + 10
    edit(tmp_path / "added_tokens.json", late=base + 5)
    with pytest.raises(FormatError, match="is the next one"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unigram"}, "unigram algorithm"),
        ({"model_type": "char", "byte_fallback": False, "user_defined_symbols": []}, "char algorithm"),
        ({"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"model_type": "bpe", "remove_extra_whitespaces": True}, "normalizes text"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "behind words"),
    ],
)
def test_other_sentencepiece_models_are_refused_by_name(
    spm: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "corpus.txt").write_bytes((spm / "corpus.txt").read_bytes())
    train(tmp_path, "tokenizer", **settings)
    with pytest.raises(UnsupportedError, match=message):
        Tokenizer.from_folder(tmp_path)
