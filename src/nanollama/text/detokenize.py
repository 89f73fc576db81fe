"""Incremental detokenization: token ids go in one by one, text comes out as soon as it is complete.

Invariant: the pieces joined are ``Tokenizer.decode`` of all ids, whatever they are; no piece ends within a
character.
"""

import codecs

from nanollama.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one sequence of tokens. Use a new one for each sequence.

    A character may be spread over several tokens, and is held back until its last byte is there. Bytes that
    can't become a character are shown as U+FFFD. Spaces are kept as they are: the text continues a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that became complete with this token, possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id, skip_special=self._skip_special))

    def flush(self) -> str:
        """What was held back, as U+FFFD. To be called after the last token."""
        return self._decoder.decode(b"", final=True)
