"""An alarm rings when its time is over, and setting it again costs no timer."""

import asyncio

import pytest

from nanollama.server.alarm import Alarm
from server.worlds import run


def test_it_rings_once_when_its_time_is_over():
    async def main():
        rung = []
        alarm = Alarm(lambda: rung.append(1))
        alarm.set(0.01)
        await asyncio.sleep(0.1)
        assert rung == [1]
        alarm.set(0.01)
        await asyncio.sleep(0.1)
        assert rung == [1, 1]

    run(main())


@pytest.mark.parametrize("end", ["clear", "close"])
def test_it_does_not_ring_when_the_wait_has_ended(end):
    async def main():
        rung = []
        alarm = Alarm(lambda: rung.append(1))
        alarm.set(0.01)
        getattr(alarm, end)()
        await asyncio.sleep(0.1)
        assert not rung
        alarm.set(0.01)
        await asyncio.sleep(0.1)
        assert rung == [1]

    run(main())


def test_a_timer_that_fires_too_early_waits_on():
    async def main():
        loop, rung = asyncio.get_running_loop(), []
        alarm = Alarm(lambda: rung.append(loop.time()))
        start = loop.time()
        alarm.set(0.05)
        await asyncio.sleep(0.03)
        alarm.set(0.3)
        await asyncio.sleep(0.1)
        assert not rung
        await asyncio.sleep(0.5)
        assert len(rung) == 1
        assert rung[0] - start >= 0.3

    run(main())


def test_a_shorter_time_counts_at_once():
    async def main():
        rung = asyncio.Event()
        alarm = Alarm(rung.set)
        alarm.set(3600)
        alarm.set(0.01)
        await asyncio.wait_for(rung.wait(), 5)

    run(main())


def test_setting_it_a_thousand_times_takes_one_timer(monkeypatch):
    async def main():
        loop, timers = asyncio.get_running_loop(), []
        call_at = loop.call_at
        monkeypatch.setattr(loop, "call_at", lambda *args: timers.append(args) or call_at(*args))
        alarm = Alarm(lambda: None)
        for _ in range(1000):
            alarm.set(3600)
            alarm.clear()
        alarm.close()
        assert len(timers) == 1

    run(main())
