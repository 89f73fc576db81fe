"""Matrices that wait to be packed: done beside the caller, or at once when many wait."""

import threading
from typing import Any, cast

import numpy as np
import pytest

from nanollama.backends.native import repack
from nanollama.backends.native.repack import RepackQueue
from nanollama.backends.native.tape import Pool


class ScriptedPool:
    """Takes the place of the kernels' pool: notes the targets of each call, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.error = error

    def retile(self, matrices: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append((threading.current_thread().name, [matrix.out for matrix in matrices]))


def fill(queue: RepackQueue, targets: list[int], released: list[int]) -> None:
    for target in targets:
        source = np.zeros((8, 18), dtype=np.uint8)
        queue.add(
            source,
            target,
            ggml_type=2,
            rows=8,
            columns=32,
            release=lambda target=target: released.append(target),
        )


def test_what_was_queued_is_packed_in_one_call_on_another_thread() -> None:
    pool, released = ScriptedPool(), list[int]()
    queue = RepackQueue(cast(Pool, pool))
    fill(queue, [64, 128], released)
    assert pool.calls == []
    queue.start()
    queue.wait()
    assert pool.calls == [("nanollama-repack", [64, 128])]
    assert released == [64, 128]


def test_a_queue_that_holds_much_is_worked_off_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repack, "MAX_WAITING_BYTES", 200)
    pool, released = ScriptedPool(), list[int]()
    queue = RepackQueue(cast(Pool, pool))
    fill(queue, [64, 128, 192], released)
    assert pool.calls == [(threading.current_thread().name, [64, 128])]
    assert released == [64, 128]
    queue.start()
    queue.wait()
    assert pool.calls[1] == ("nanollama-repack", [192])


def test_an_error_is_raised_to_whoever_waits_and_not_to_who_only_joins() -> None:
    queue = RepackQueue(cast(Pool, ScriptedPool(MemoryError("none left"))))
    fill(queue, [64], [])
    queue.start()
    queue.join()
    for _ in range(2):
        with pytest.raises(MemoryError, match="none left"):
            queue.wait()
