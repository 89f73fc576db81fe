"""Token ids to final text, piece by piece: no half characters, and nothing of a stop string.

Text that might be the beginning of a stop string is held back until it is decided.
"""

from collections.abc import Sequence

from nanollama.text.detokenize import Detokenizer
from nanollama.text.tokenizer import Tokenizer


class TextStream:
    """Turns the tokens of one answer into text. ``stopped`` becomes true when a stop string has appeared.

    ``decoded`` counts the characters so far, also those that are held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = [s for s in stop if s]
        self._held = ""
        self.stopped = False
        self.decoded = 0

    def push(self, token_id: int) -> str:
        """The text that became final with this token."""
        return self._release(self._detokenizer.push(token_id), is_last=False)

    def flush(self) -> str:
        """The text that was still held back, at the end of the answer."""
        return self._release(self._detokenizer.flush(), is_last=True)

    def _release(self, text: str, *, is_last: bool) -> str:
        if self.stopped:
            return ""
        self.decoded += len(text)
        if not self._stop:
            return text
        self._held += text
        found = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            final, self._held = self._held[: min(found)[0]], ""
            return final
        keep = 0 if is_last else self._possible_stop()
        cut = len(self._held) - keep
        final, self._held = self._held[:cut], self._held[cut:]
        return final

    def _possible_stop(self) -> int:
        """The length of the longest end of the held text that some stop string begins with."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(s.startswith(self._held[-size:]) for s in self._stop):
                return size
        return 0
