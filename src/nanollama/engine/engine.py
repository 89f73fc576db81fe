"""The engine: requests in from any thread, TokenEvents out; the one crossing between threads.

One thread owns the scheduler, the blocks and the backend. Callers leave messages in an inbox; the thread
reads them between steps, so an abort frees its slot and blocks within one step. An error in one request ends
that request, one in a step ends the requests of that step, and if the thread itself dies every caller is told
and a new thread takes over.
"""

import itertools
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.ops import Backend, ModelInput, SequenceInput
from nanollama.engine.blocks import BlockManager
from nanollama.engine.generation import Generation, Reader, Waker
from nanollama.engine.runner import Runner, Sampled
from nanollama.engine.scheduler import Scheduler, SchedulerConfig, StepPlan
from nanollama.engine.sequence import Sequence
from nanollama.errors import BackendError, NanollamaError, OverloadedError, UsageError
from nanollama.types import FinishReason, Request, TokenEvent

CLOSED = "the model has been closed; load it again"


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of an engine. ``n_ctx`` bounds one sequence, ``max_queue`` the waiting ones (``None``: not).

    ``token_budget`` are the tokens of a step, ``None`` for as many as the backend computes fastest.
    ``root`` names the model and adapter: cached blocks are shared only under the same root.
    """

    n_ctx: int
    max_sequences: int = 64
    token_budget: int | None = None
    max_queue: int | None = None
    root: bytes = b""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A look at the engine between two steps."""

    running: int
    waiting: int
    blocks_used: int
    blocks_total: int
    preemptions: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    alive: bool


class Engine:
    """Runs many requests together on one backend. Safe to use from any thread."""

    def __init__(self, backend: Backend, config: EngineConfig) -> None:
        self.backend = backend
        self.config = config
        self.n_ctx = config.n_ctx
        self._ids = itertools.count()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._generations: dict[int, Generation] = {}
        self._when_idle: deque[Callable[[], None]] = deque()  # what wants the backend for itself
        self._reset()
        self._thread = self._started()

    def submit(self, request: Request) -> Generation:
        """Queue a request; its events come out of the Generation.

        Raises:
            ContextOverflowError: the prompt leaves no room for a single token, or never fits the cache.
            OverloadedError: too many requests wait already.
            BackendError: the engine has been closed.
        """
        if self._stopping:
            raise BackendError(CLOSED)
        self._scheduler.check_fits(len(request.prompt_ids))
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self.backend.spec.vocab_size:
            raise UsageError(
                f"the prompt has token ids outside the vocabulary of {self.backend.spec.vocab_size} tokens"
            )
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        generation = Generation(next(self._ids), request, self._abort)
        sequence = Sequence(generation.id, request, arrival=time.monotonic(), seed=seed)
        with self._wake:
            self._check_room()
            self._generations[generation.id] = generation
            self._inbox.append(lambda: self._add(sequence))
            self._wake.notify()
        return generation

    def score(self, token_ids: SequenceOf[int], first_row: int = 0) -> NDArray[np.float32]:
        """Logits ``[n - first_row, vocab]`` after each token from ``first_row`` on, from an empty cache.

        Waits until no request runs; what was cached is dropped.
        """
        if not 1 <= len(token_ids) <= self.n_ctx:
            raise UsageError(f"{len(token_ids)} token ids were given; expected 1 to {self.n_ctx}")
        from concurrent.futures import Future

        result: Future[NDArray[np.float32]] = Future()

        def work() -> None:
            try:
                result.set_result(self._score(token_ids, first_row))
            except BaseException as error:
                result.set_exception(error)

        with self._wake:
            if self._stopping:
                raise BackendError(CLOSED)
            self._when_idle.append(work)
            self._wake.notify()
        return result.result()

    def stats(self) -> EngineStats:
        """How busy the engine is."""
        stats = self._scheduler.stats
        return EngineStats(
            running=stats.n_running,
            waiting=stats.n_waiting,
            blocks_used=stats.blocks_used,
            blocks_total=self.backend.num_blocks,
            preemptions=stats.n_preemptions,
            prefix_hit_tokens=stats.tokens_found,
            prefix_query_tokens=stats.tokens_looked_up,
            alive=self._thread.is_alive(),
        )

    def close(self) -> None:
        """End all requests and the thread; the backend is closed by whoever opened it."""
        self._stopping = True
        self._tell(lambda: None)
        self._thread.join()
        while self._when_idle:
            self._when_idle.popleft()()
        self._fail_all(BackendError("the model was closed while it answered"))

    def _reset(self) -> None:
        blocks = BlockManager(self.backend.num_blocks, self.backend.block_tokens, self.config.root)
        sequences = min(self.config.max_sequences, self.backend.max_sequences)
        # At least half of a step is left for prompts when all sequences that decode have a row in it.
        wanted = self.config.token_budget or max(self.backend.step_rows, 2 * sequences)
        budget = min(wanted, self.backend.max_rows)
        limits = SchedulerConfig(
            max_sequences=min(sequences, budget),
            token_budget=budget,
            n_ctx=self.config.n_ctx,
        )
        self._scheduler = Scheduler(limits, blocks)
        self._runner = Runner(self.backend)
        self._waker = Waker()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="engine", daemon=True)
        thread.start()
        return thread

    def _tell(self, message: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(message)
            self._wake.notify()

    def _work(self) -> None:
        # Ctrl+C must reach the main thread: a signal that the system hands to another one does not wake it.
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH}
        )
        try:
            while not self._stopping:
                self._read_inbox()
                if self._scheduler.has_work:
                    self._step()
        except BaseException as error:
            # Nothing here can be trusted any more: tell everybody, and start afresh with an empty cache.
            self._fail_all(BackendError(f"the engine failed: {error}; the request was lost, send it again"))
            self._reset()
            if not self._stopping:
                self._thread = self._started()

    def _read_inbox(self) -> None:
        """Do what callers asked for; wait for something to do if there is nothing."""
        with self._wake:
            while not (self._inbox or self._scheduler.has_work or self._when_idle or self._stopping):
                self._wake.wait()
            messages = list(self._inbox)
            self._inbox.clear()
        for message in messages:
            message()
        while self._when_idle and not self._generations:
            self._when_idle.popleft()()

    def _check_room(self) -> None:
        """Refuse a request too many. Counted here: the scheduler hears of it only after the step."""
        if self.config.max_queue is None:
            return
        if len(self._generations) >= self._scheduler.config.max_sequences + self.config.max_queue:
            raise OverloadedError(
                f"{len(self._generations)} requests are running or waiting, which is all that are taken "
                "at once; try again later"
            )

    def _add(self, sequence: Sequence) -> None:
        if sequence.id not in self._generations:
            return  # aborted, or lost with the thread, before anything ran
        try:
            self._scheduler.add(sequence)
        except NanollamaError as error:
            self._end(sequence.id, error)

    def _abort(self, request_id: int) -> None:
        def work() -> None:
            if request_id in self._generations:
                self._scheduler.abort(request_id)
                self._end(request_id, None)

        self._tell(work)

    def _step(self) -> None:
        plan = self._scheduler.plan()
        self._mark_started(plan)
        if any(scheduled.n_new > 1 for scheduled in plan.scheduled):
            self._waker.wake_all()  # a prompt's step may take long
        try:
            sampled = self._runner.run(plan)
        except Exception as error:
            for scheduled in plan.scheduled:
                self._scheduler.abort(scheduled.sequence.id)
                self._end(scheduled.sequence.id, BackendError(f"the step of this request failed: {error}"))
            return
        tokens = {request_id: result.token_id for request_id, result in sampled.items()}
        for request_id, result in sampled.items():
            if result.error is not None:
                self._scheduler.abort(request_id)
                self._end(request_id, result.error)
        self._scheduler.complete(plan, tokens)
        self._deliver(plan, sampled)

    def _mark_started(self, plan: StepPlan) -> None:
        """Note when requests leave the queue; one that was preempted left it before."""
        now = time.perf_counter()
        for scheduled in plan.scheduled:
            generation = self._generations.get(scheduled.sequence.id)
            if generation is not None and generation.started is None:
                generation.started = now

    def _deliver(self, plan: StepPlan, sampled: Mapping[int, Sampled]) -> None:
        waiting: list[Reader] = []
        is_urgent = False
        for scheduled in plan.scheduled:
            s = scheduled.sequence
            generation = self._generations.get(s.id)
            if generation is None:
                continue
            result = sampled.get(s.id)
            generation.state = "decode" if s.n_generated else "prefill"
            generation.done_tokens = s.n_cached
            if result is None:
                continue
            finish = self._finish_reason(s, result.token_id)
            first = s.n_generated == 1
            event = TokenEvent(
                result.token_id,
                finish,
                cached_tokens=s.n_reused if first else 0,
                logprob=result.logprob,
                prompt_logprobs=self._runner.take_prompt_logprobs(s) if first else (),
            )
            if finish is not None:
                self._scheduler.finish(s)
                del self._generations[s.id]
            waiting += generation.leave(event)
            is_urgent = is_urgent or first or finish is not None
        self._waker.keep(waiting, is_urgent=is_urgent)

    def _finish_reason(self, s: Sequence, token_id: int) -> FinishReason | None:
        if token_id in s.request.stop_ids and s.n_generated > s.request.min_tokens:
            return "stop"
        if s.n_generated >= s.request.max_tokens or s.n_tokens >= self._scheduler.n_ctx:
            return "length"
        return None

    def _end(self, request_id: int, error: NanollamaError | None) -> None:
        self._runner.forget(request_id)
        generation = self._generations.pop(request_id, None)
        if generation is not None:
            generation.put(error)

    def _fail_all(self, error: NanollamaError) -> None:
        for request_id in list(self._generations):
            self._end(request_id, error)

    def _score(self, token_ids: SequenceOf[int], first_row: int) -> NDArray[np.float32]:
        self._scheduler.blocks.clear()
        chunk, rows = self._scheduler.config.token_budget, []
        for start in range(0, len(token_ids), chunk):
            part = tuple(token_ids[start : start + chunk])
            blocks = -(-(start + len(part)) // self.backend.block_tokens)
            sequence = SequenceInput(len(part), start, tuple(range(blocks)))
            wanted = tuple(range(max(0, first_row - start), len(part)))
            rows.append(self.backend.step(ModelInput(part, (sequence,), wanted)).copy())
        return np.concatenate(rows)
