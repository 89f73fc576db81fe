"""What /metrics says, and that no client can make it say more and more."""

import random
import string

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.worlds import World, run


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def requests_of(found):
    return {
        (key[1][1], key[2][1]): value for key, value in found.items() if key[0] == "nanollama_requests_total"
    }


def test_requests_tokens_and_times_are_counted():
    async def main():
        world = World()
        async with world.client() as client:
            for prompt in ("tokens=4", "tokens=4", "fail=0", "refuse"):
                body = {"model": "scripted", "prompt": prompt, "n": 2}
                await client.post("/v1/completions", json=body)
            await client.post("/v1/chat/completions", json={"model": "none"})
            await client.get("/v1/models/nothing")
            return (await client.get("/metrics")).text

    found = samples(run(main()))
    assert requests_of(found) == {
        ("/v1/completions", "ok"): 2,
        ("/v1/completions", "error"): 1,
        ("/v1/completions", "invalid"): 1,
        ("/v1/chat/completions", "invalid"): 1,
        ("/v1/models", "not_found"): 1,
    }
    assert found["nanollama_tokens_total", ("kind", "generated")] == 20
    assert found["nanollama_tokens_total", ("kind", "prompt")] == 32
    assert found["nanollama_time_to_first_token_seconds_count",] == 2
    assert found["nanollama_queue_seconds_count",] == 4
    assert found["nanollama_time_per_token_seconds_count",] == 4
    assert found["nanollama_running", ("model", "scripted")] == 0
    assert found["nanollama_engine_up", ("model", "scripted")] == 1


def test_ten_thousand_strange_requests_add_no_series():
    chance = random.Random(3)

    def word():
        return "".join(chance.choices(string.ascii_letters, k=8))

    async def main():
        world = World()
        async with world.client() as client:
            await client.get("/metrics")
            for _ in range(500):
                await client.request(word().upper(), f"/{word()}/{word()}", headers={"x-" + word(): word()})
            for _ in range(200):
                body = {"model": word(), "prompt": "x", "user": word()}
                await client.post("/v1/completions", json=body)
            for _ in range(9300):
                world.services.metrics.ended(f"/{word()}", "invalid")
            return (await client.get("/metrics")).text

    found = samples(run(main()))
    assert len(found) < 200
    counted = requests_of(found)
    assert counted["other", "invalid"] == 9300
    assert counted["other", "not_found"] == 500
    assert counted["/v1/completions", "not_found"] == 200


def test_the_text_is_prometheus_own():
    async def main():
        async with World().client() as client:
            return await client.get("/metrics")

    reply = run(main())
    assert isinstance(reply, httpx.Response)
    assert reply.headers["content-type"].startswith("text/plain")
    assert samples(reply.text)
