"""Models come into memory once, stay while they are held, and make room for others."""

import asyncio

import pytest

from nanollama.errors import FormatError, ModelNotFoundError
from nanollama.server import pool as pool_module
from nanollama.server.pool import ModelPool, free_memory
from nanollama.server.problems import Problem
from server.scripted import ScriptedLLM, ScriptedSource
from server.worlds import World, run

ABC = ("a", "b", "c")


def make(source=None, **options):
    source = source or ScriptedSource(ABC, size=100)
    return source, ModelPool(source, source.load, **options)


def resident(pool):
    return sorted(each.found.id for each in pool.residents())


async def touch(pool, name):
    async with pool.lease(name) as model:
        return model


def test_a_crowd_loads_a_model_once():
    async def main():
        source, pool = make()
        source.hold.clear()
        crowd = [asyncio.create_task(touch(pool, "a")) for _ in range(50)]
        await asyncio.sleep(0.05)
        source.hold.set()
        models = await asyncio.gather(*crowd)
        assert len({id(model) for model in models}) == 1
        assert source.loads == {"a": 1}
        await pool.close()
        assert models[0].closed

    run(main())


def test_one_who_gives_up_does_not_end_the_load_for_the_others():
    async def main():
        source, pool = make()
        source.hold.clear()
        first, second = (asyncio.create_task(touch(pool, "a")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        source.hold.set()
        assert isinstance(await second, ScriptedLLM)
        assert source.loads == {"a": 1}
        await pool.close()

    run(main())


def test_the_least_recently_used_makes_room():
    async def main():
        _, pool = make(max_models=2)
        for name in ("a", "b", "a", "c"):
            await touch(pool, name)
        assert resident(pool) == ["a", "c"]
        await pool.close()
        assert resident(pool) == []

    run(main())


def test_memory_pressure_makes_room_as_well():
    async def main():
        _, pool = make(free_bytes=lambda: 250 - 110 * len(pool.residents()))
        for name in ABC:
            await touch(pool, name)
        assert resident(pool) == ["b", "c"]
        await pool.close()

    run(main())


def test_what_is_held_never_makes_room():
    async def main():
        _, pool = make(max_models=1)
        async with pool.lease("a") as model:
            with pytest.raises(Problem) as refused:
                await touch(pool, "b")
            assert (refused.value.status, refused.value.code) == (503, "models_busy")
            assert not model.closed
        await pool.close()

    run(main())


def test_a_model_that_cannot_fit_is_refused_with_the_numbers():
    async def main():
        _, pool = make(ScriptedSource(("a",), size=10 << 30), free_bytes=lambda: 5 << 30)
        with pytest.raises(Problem) as refused:
            await touch(pool, "a")
        assert refused.value.code == "insufficient_memory"
        assert refused.value.retry_after
        assert "11,264 MiB" in refused.value.message
        assert "5,120 MiB" in refused.value.message

    run(main())


@pytest.mark.parametrize("keep_alive_s", [0.0, 0.05])
def test_an_idle_model_goes_after_its_time(keep_alive_s):
    async def main():
        source, pool = make(keep_alive_s=keep_alive_s)
        async with pool.lease("a") as model:
            await asyncio.sleep(keep_alive_s + 0.05)
            assert not model.closed, "it is held"
        while not model.closed:
            await asyncio.sleep(0.01)
        assert resident(pool) == []
        await touch(pool, "a")
        assert source.loads == {"a": 2}
        await pool.close()

    run(main())


def test_without_a_time_it_stays_and_so_does_the_served_model():
    async def main():
        _, pool = make(keep_alive_s=None)
        await touch(pool, "a")
        _, served = make(keep_alive_s=0.0, served="a")
        model = await touch(served, "a")
        await asyncio.sleep(0.05)
        assert resident(pool) == resident(served) == ["a"]
        assert not model.closed
        await pool.close()
        await served.close()

    run(main())


def test_a_failed_load_is_told_without_the_folder_and_not_repeated_at_once(monkeypatch):
    async def main():
        source, pool = make()
        source.errors["a"] = FormatError("/models/a.gguf is truncated")
        for _ in range(3):
            with pytest.raises(Problem) as failed:
                await touch(pool, "a")
            assert (failed.value.status, failed.value.code) == (503, "model_load_failed")
            assert "a.gguf is truncated" in failed.value.message
            assert "/models" not in failed.value.message
        assert source.loads == {"a": 1}
        monkeypatch.setattr(pool_module, "FAILURE_LASTS_S", 0.0)
        del source.errors["a"]
        await touch(pool, "a")
        await pool.close()

    run(main())


@pytest.mark.parametrize("error", [MemoryError(), OSError("/secret"), ValueError("/secret")])
def test_an_unexpected_failure_to_load_says_nothing_of_the_machine(error):
    async def main():
        source, pool = make()
        source.errors["a"] = error
        with pytest.raises(Problem) as failed:
            await touch(pool, "a")
        assert failed.value.status == 503
        assert "secret" not in failed.value.message

    run(main())


def test_an_unknown_name_loads_nothing():
    async def main():
        source, pool = make()
        with pytest.raises(ModelNotFoundError):
            await touch(pool, "d")
        assert not source.loads

    run(main())


def test_health_goes_from_loading_to_ready():
    async def main():
        source = ScriptedSource()
        source.hold.clear()
        world = World(source=source, served="scripted")
        async with world.client() as client:
            world.pool.preload()
            await asyncio.sleep(0.02)
            reply = await client.get("/health")
            assert (reply.status_code, reply.json()) == (503, {"status": "loading"})
            waiting = asyncio.create_task(
                client.post("/v1/completions", json={"model": "scripted", "prompt": "tokens=1"})
            )
            source.hold.set()
            assert (await waiting).status_code == 200
            reply = await client.get("/health")
            assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
            world.llm.engine.alive = False
            assert (await client.get("/health")).json() == {"status": "failed"}
        assert source.loads == {"scripted": 1}

    run(main())


def test_health_and_the_log_say_when_the_served_model_could_not_be_loaded(caplog):
    async def main():
        source = ScriptedSource()
        source.errors["scripted"] = FormatError("truncated")
        world = World(source=source, served="scripted")
        async with world.client() as client:
            world.pool.preload()
            while world.pool.state() == "loading":
                await asyncio.sleep(0.01)
            reply = await client.get("/health")
            assert (reply.status_code, reply.json()) == (503, {"status": "failed"})
            reply = await client.post("/v1/completions", json={"model": "scripted", "prompt": "x"})
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) > 0
        assert caplog.messages == ["The model scripted could not be loaded: truncated"]

    run(main())


def test_the_memory_of_this_machine_is_a_number():
    free = free_memory()
    assert free is None or free > 0
