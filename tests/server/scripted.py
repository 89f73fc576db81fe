"""A model that does what its prompt says, so that tests decide what happens and when.

The last message (or the prompt) may hold words like ``tokens=40``: ``tokens`` to generate before the turn
ends, ``delay`` in seconds before each, ``fail`` or ``crash`` or ``hang`` at the token of that number,
``prefill`` seconds before the first. Each token is one letter, ``abc...``; token ids are bytes.
"""

import asyncio
import re
import threading
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

from nanollama.errors import (
    BackendError,
    ContextOverflowError,
    ModelNotFoundError,
    NanollamaError,
    UsageError,
)
from nanollama.server.source import Found
from nanollama.types import Completion, Logprob, TextEvent, Timings

END = 256
MAX_CONTEXT = 4000
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ByteTokenizer:
    """One token a byte, and one that ends the turn."""

    stop_ids = frozenset({END})
    vocab_size = 257

    def encode(self, text, *, add_special=False, parse_special=False):
        return [*text.encode()]

    def token_bytes(self, token_id, *, skip_special=True):
        if not 0 <= token_id <= END:
            raise UsageError(f"there is no token {token_id}; the vocabulary has the ids 0 to {END}")
        if token_id == END:
            return b"" if skip_special else b"<end>"
        return bytes([token_id])

    def decode(self, ids, *, skip_special=True, strip_prefix=False):
        return b"".join(self.token_bytes(each, skip_special=skip_special) for each in ids).decode(
            "utf-8", "replace"
        )


@dataclass(frozen=True)
class Stats:
    running: int
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 100
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    alive: bool = True


class ScriptedEngine:
    def __init__(self):
        self.open = set()
        self.alive = True
        self.peak = 0

    def stats(self):
        return Stats(running=len(self.open), blocks_used=len(self.open), alive=self.alive)


class ScriptedAnswer:
    """One choice. It counts as running from its start until it ends or is aborted."""

    def __init__(self, engine, prompt_ids, script, options, dropped):
        self.prompt_ids = tuple(prompt_ids)
        self.dropped_messages = dropped
        self.dropped_tokens = dropped * 10
        self.made = 0
        self._engine = engine
        self._script = script
        self._options = options
        self._aborted = threading.Event()
        engine.open.add(self)
        engine.peak = max(engine.peak, len(engine.open))

    @property
    def progress(self):
        return ("decode", self.made, 100) if self.made else ("prefill", 3, len(self.prompt_ids))

    def abort(self):
        self._aborted.set()
        self._engine.open.discard(self)

    def listen(self, put):
        self._task = asyncio.create_task(self._put_all(put))

    async def _put_all(self, put):
        event = None
        try:
            async for event in self._events():
                put(event)
            if event is None or event.completion is None:
                raise NanollamaError("the answer was aborted")
        except Exception as error:
            put(error)

    async def _wait(self, seconds):
        """Like the engine's own crossing, it notices an abort at once or nearly so."""
        left = seconds
        while left > 0 and not self._aborted.is_set():
            await asyncio.sleep(min(left, 0.01))
            left -= 0.01

    async def _events(self):
        script, options = self._script, self._options
        limit = options["max_tokens"] or 1000
        wanted = min(limit, int(script.get("tokens", 5)))
        await self._wait(float(script.get("prefill", 0)))
        letters = []
        try:
            for at in range(wanted):
                if script.get("fail") == str(at):
                    raise BackendError("the step failed: out of blocks")
                if script.get("crash") == str(at):
                    raise RuntimeError("secret /home/user/path 0x7f00")
                await self._wait(3600 if script.get("hang") == str(at) else float(script.get("delay", 0)))
                if self._aborted.is_set():
                    return
                if at % 16 == 15:
                    await asyncio.sleep(0)  # nothing may keep the loop to itself
                letter = LETTERS[at % 26]
                letters.append(letter)
                self.made = at + 1
                yield self._event(letter, at, letters, wanted, limit)
        finally:
            self._engine.open.discard(self)

    def _event(self, letter, at, letters, wanted, limit):
        logprobs, prompt_logprobs = (), ()
        if self._options["logprobs"] is not None:
            logprobs = (self._logprob(ord(letter), self._options["logprobs"]),)
        if at == 0 and self._options["prompt_logprobs"] is not None:
            prompt_logprobs = tuple(
                self._logprob(each, self._options["prompt_logprobs"]) for each in self.prompt_ids[1:]
            )
        if at + 1 < wanted:
            return TextEvent(letter, None, logprobs, prompt_logprobs)
        stopped, text = wanted < limit, "".join(letters)
        ids = tuple(map(ord, text)) + ((END,) if stopped else ())
        if stopped and logprobs:
            logprobs += (Logprob(END, -0.5),)
        timings = Timings(len(self.prompt_ids), 0.01, len(ids) - 1, 0.01, cached_tokens=2)
        finish = "stop" if stopped else "length"
        completion = Completion(
            text, ids, finish, len(self.prompt_ids), timings, self.dropped_messages, self.dropped_tokens
        )
        return TextEvent(letter, completion, logprobs, prompt_logprobs)

    def _logprob(self, token_id, alternatives):
        others = tuple((LETTERS.encode()[n], -0.5 - n) for n in range(alternatives))
        return Logprob(token_id, -0.25, others)


class ScriptedLLM:
    """Stands where ``LLM`` does."""

    has_template = True
    own_settings: ClassVar = {"temperature": 0.3}
    device = "cpu"

    def __init__(self, name="scripted", n_ctx=2000):
        self.name = name
        self.n_ctx = n_ctx
        self.spec = SimpleNamespace(max_context=MAX_CONTEXT)
        self.tokenizer = ByteTokenizer()
        self.engine = ScriptedEngine()
        self.calls = []
        self.closed = False

    def start(
        self, prompt, *, n=1, logprobs=None, prompt_logprobs=None, context_policy="drop_oldest", **options
    ):
        assert not self.closed, "a closed model was used"
        options |= {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
        self.calls.append({"prompt": prompt, "n": n, "context_policy": context_policy, **options})
        text = prompt if isinstance(prompt, str) else ""
        ids, dropped = self._ids(prompt, context_policy)
        if not isinstance(prompt, str) and not isinstance(prompt[0], int):
            text = prompt[-1]["content"]
        if "refuse" in text:
            raise UsageError("the template refused the messages")
        if "break" in text:
            raise RuntimeError("secret /home/user/path 0x7f00")
        script = dict(re.findall(r"(\w+)=(\S+)", text))
        return [ScriptedAnswer(self.engine, ids, script, options, dropped) for _ in range(n)]

    def _ids(self, prompt, policy):
        if isinstance(prompt, str):
            turns = [self.tokenizer.encode(prompt)]
        elif isinstance(prompt[0], int):
            turns = [prompt]
        else:
            turns = [self.tokenizer.encode(each["content"]) for each in prompt]
        dropped = 0
        while sum(map(len, turns)) > self.n_ctx:
            if policy == "error" or len(turns) == 1:
                length = sum(map(len, turns))
                raise ContextOverflowError(
                    f"The conversation takes {length} tokens, {self.n_ctx} are available."
                )
            turns, dropped = turns[1:], dropped + 1
        return [token for turn in turns for token in turn], dropped

    def close(self):
        self.closed = True


def digest_of(name):
    return sha256(name.encode()).hexdigest()


class ScriptedSource:
    """A store of scripted models; ``loads`` counts, ``load`` may be told to be slow or to fail."""

    def __init__(self, names=("scripted",), size=1000):
        self.found = {
            name: Found(name, name, Path(f"/models/{name}"), size, 1.7e9, digest_of(name)) for name in names
        }
        self.loads = Counter()
        self.models = {}
        self.errors = {}
        self.delay_s = 0.0
        self.hold = threading.Event()
        self.hold.set()

    def find(self, name):
        if name not in self.found:
            raise ModelNotFoundError(f"There is no model {name!r} on this machine.")
        return self.found[name]

    def list(self):
        return list(self.found.values())

    def load(self, found, n_ctx=None):
        self.loads[found.id] += 1
        assert self.hold.wait(10)
        if found.id in self.errors:
            raise self.errors[found.id]
        if n_ctx is not None and n_ctx > MAX_CONTEXT:
            raise UsageError(
                f"the context window asked for is {n_ctx} tokens; this model takes 8 to {MAX_CONTEXT}"
            )
        model = self.models[found.id] = ScriptedLLM(found.id, max(n_ctx or 0, 2000))
        return model
