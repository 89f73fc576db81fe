"""The tokenizer of a model: text goes in, token ids come out, and back.

Invariants: text becomes a control token only with ``parse_special`` and outside the prompt's literal spans;
encoding takes near-linear time in the length of the text, whatever the text is.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollama.errors import UsageError
from nanollama.text.segmenters import SPACE, Segmenter, build_segmenter
from nanollama.text.special import SpecialMatcher
from nanollama.text.vocab import TokenType, Vocabulary, vocabulary_from_gguf
from nanollama.types import Prompt

if TYPE_CHECKING:
    from nanollama.text.tokenizer_settings import TokenizerSettings

_SURROGATE = re.compile("[\ud800-\udfff]")
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_UNPRINTABLE = [byte for byte in range(256) if byte not in _PRINTABLE]
# GPT-2 writes each byte as a printable character: itself if it is one, else the next from U+0100 on.
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + n): byte for n, byte in enumerate(_UNPRINTABLE)
}


class Tokenizer:
    """Encodes and decodes the text of one model. Safe to use from several threads.

    ``stop_ids``: every token that ends a generation. ``bos_text`` and ``eos_text`` are '' where there is no
    such token. ``control_tokens``: text to id of the tokens that steer the model and are not shown as text.
    """

    def __init__(self, vocabulary: Vocabulary, segmenter: Segmenter) -> None:
        special = vocabulary.special
        self.vocab_size: int = len(vocabulary.tokens)
        self.bos_id: int | None = special.bos
        self.eos_id: int | None = special.eos
        self.stop_ids: frozenset[int] = special.stop
        self.bos_text: str = "" if special.bos is None else vocabulary.tokens[special.bos]
        self.eos_text: str = "" if special.eos is None else vocabulary.tokens[special.eos]
        self.adds_bos: bool = special.adds_bos
        self.adds_eos: bool = special.adds_eos
        self.control_tokens: Mapping[str, int] = vocabulary.control
        self.vocabulary = vocabulary
        self._segment = segmenter
        self._matcher = SpecialMatcher(vocabulary.control, vocabulary.user_defined, vocabulary.flags)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """From the key/values of a GGUF file.

        Raises:
            FormatError: a key is missing or malformed; the message names it.
            UnsupportedError: the tokenizer is of a kind that is not read.
        """
        vocabulary = vocabulary_from_gguf(metadata)
        return cls(vocabulary, build_segmenter(vocabulary))

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        settings: "TokenizerSettings | None" = None,
        *,
        vocab_size: int | None = None,
        stop_ids: Iterable[int] = (),
    ) -> "Tokenizer":
        """From a model folder: its tokenizer.json, else its SentencePiece tokenizer.model.

        ``vocab_size`` is the number of ids that the model knows, ``stop_ids`` are further ones that end a
        generation.

        Raises:
            FormatError: a file is malformed, or there is none; the message names it.
            UnsupportedError: the tokenizer is of a kind that is not read.
        """
        from nanollama.text.tokenizer_folder import read_tokenizer_folder
        from nanollama.text.tokenizer_settings import read_settings

        settings = settings or read_settings(folder)
        return cls(*read_tokenizer_folder(folder, settings, vocab_size, frozenset(stop_ids)))

    def encode(
        self, prompt: str | Prompt, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of a text.

        ``parse_special`` recognises control tokens, but for those that touch a literal span of the prompt.
        ``add_special`` adds BOS and EOS as the vocabulary asks, unless they are there already. A lone
        surrogate, which is no character, counts as U+FFFD.
        """
        if isinstance(prompt, str):
            prompt = Prompt(prompt)
        text = _SURROGATE.sub("\ufffd", prompt.text)
        ids: list[int] = []
        for index, part in enumerate(self._matcher.split(text, prompt.literal, parse_special)):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._segment(part, start=index == 0)
        if not add_special:
            return ids
        if self.adds_bos and self.bos_id is not None and not prompt.adds_bos and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if self.adds_eos and self.eos_id is not None and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id)
        return ids

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The UTF-8 bytes a token stands for, perhaps part of a character. Control tokens are b'' or, not
        skipped, their text.

        Raises:
            UsageError: the id is outside the vocabulary.
        """
        found = self._bytes.get(token_id)
        if found is None:
            if not 0 <= token_id < self.vocab_size:
                raise UsageError(
                    f"there is no token {token_id}; the vocabulary has the ids 0 to {self.vocab_size - 1}"
                )
            found = self._bytes[token_id] = self._piece_bytes(token_id)
        if skip_special and self.vocabulary.tokens[token_id] in self.control_tokens:
            return b""
        return found

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, strip_prefix: bool = False) -> str:
        """The text of tokens, with U+FFFD for bytes that are no character.

        ``strip_prefix``: the ids are a whole text, not the continuation of one, so the space that the
        vocabulary puts before every text is taken off again.
        """
        raw = b"".join(self.token_bytes(token_id, skip_special=skip_special) for token_id in ids)
        text = raw.decode("utf-8", "replace")
        prefixed = self.vocabulary.space_prefix or self.vocabulary.kind == "wordpiece"
        return text[1:] if strip_prefix and prefixed and text.startswith(" ") else text

    def _piece_bytes(self, token_id: int) -> bytes:
        text, kind = self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
        if kind == TokenType.UNUSED:
            return b""
        if kind == TokenType.BYTE:
            return bytes((int(text[3:5], 16),))
        if text in self.control_tokens:
            return text.encode("utf-8", "surrogateescape")
        if self.vocabulary.kind != "bpe":
            return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
        if kind == TokenType.USER_DEFINED or not all(character in _BYTE_OF for character in text):
            return text.encode("utf-8", "surrogateescape")
        return bytes(map(_BYTE_OF.__getitem__, text))
