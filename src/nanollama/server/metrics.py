"""What is counted, in Prometheus' form: events of requests in, the text of ``/metrics`` out.

Labels come from fixed lists and from the models in memory, so that no client can make their number grow.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nanollama.types import Completion

if TYPE_CHECKING:
    from nanollama.server.pool import Resident

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

OUTCOMES = {400: "invalid", 401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "too_large"} | {
    429: "overloaded",
    503: "unavailable",
}
"""Status -> outcome; other 4xx are ``invalid``, other 5xx are ``error``."""

ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize"}
    | {"/", "/health", "/version", "/metrics"}
    | {
        "/api/" + name
        for name in ("generate", "chat", "embed", "embeddings", "tags", "show", "ps", "version")
    }
    | {"/api/" + name for name in ("pull", "push", "create", "copy", "delete", "blobs")}
)
PREFIXES = ("/v1/models/", "/api/blobs/")
"""Paths that end in a name or digest count as one endpoint."""


class Metrics:
    """The counters of one server."""

    def __init__(self, residents: Callable[[], "Sequence[Resident]"]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(residents))
        self.requests = Counter(
            "nanollama_requests",
            "Requests by how they ended.",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.queue_s = self._seconds(
            "nanollama_queue_seconds", "From the engine's taking a request to its first step."
        )
        self.first_s = self._seconds(
            "nanollama_time_to_first_token_seconds", "From arrival to the first text."
        )
        self.token_s = Histogram(
            "nanollama_time_per_token_seconds",
            "Decoding time of one token.",
            registry=self.registry,
            buckets=TOKEN_SECONDS,
        )
        self.tokens = Counter(
            "nanollama_tokens", "Tokens of finished answers.", ["kind"], registry=self.registry
        )

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=SECONDS)

    def ended(self, path: str, outcome: str) -> None:
        """One request ended."""
        endpoint = next((prefix.rstrip("/") for prefix in PREFIXES if path.startswith(prefix)), path)
        self.requests.labels(endpoint if endpoint in ENDPOINTS else "other", outcome).inc()

    def answered(self, completion: Completion) -> None:
        """One answer is complete."""
        timings = completion.timings
        self.queue_s.observe(timings.queue_s)
        self.tokens.labels("prompt").inc(completion.prompt_tokens)
        self.tokens.labels("cached").inc(timings.cached_tokens)
        self.tokens.labels("generated").inc(len(completion.token_ids))
        if timings.decode_tokens:
            self.token_s.observe(timings.decode_s / timings.decode_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def outcome_of(status: int) -> str:
    """A status as one of few words."""
    if status < 400:
        return "ok"
    return OUTCOMES.get(status, "invalid" if status < 500 else "error")


class EngineCollector(Collector):
    """The engines' own numbers, read when they are asked for."""

    def __init__(self, residents: Callable[[], "Sequence[Resident]"]) -> None:
        self._residents = residents

    def collect(self) -> Iterator[Metric]:
        gauges = {
            name: GaugeMetricFamily(f"nanollama_{name}", text, labels=["model"])
            for name, text in (
                ("running", "Answers that are being generated."),
                ("waiting", "Answers that wait for their turn."),
                ("cache_used_ratio", "Share of the cache's blocks in use."),
                ("engine_up", "Whether the engine's thread lives."),
            )
        }
        counters = {
            name: CounterMetricFamily(f"nanollama_{name}", text, labels=["model"])
            for name, text in (
                ("preemptions", "Answers that gave their blocks to others."),
                ("prefix_hit_tokens", "Prompt tokens found in the cache."),
                ("prefix_query_tokens", "Prompt tokens looked up in the cache."),
            )
        }
        # A model that is being loaded anew is there twice; its label can be only once.
        newest = {each.found.id: each for each in reversed(self._residents())}
        for resident in newest.values():
            stats, label = resident.llm.engine.stats(), [resident.found.id]
            gauges["running"].add_metric(label, stats.running)
            gauges["waiting"].add_metric(label, stats.waiting)
            gauges["cache_used_ratio"].add_metric(label, stats.blocks_used / max(1, stats.blocks_total))
            gauges["engine_up"].add_metric(label, stats.alive)
            counters["preemptions"].add_metric(label, stats.preemptions)
            counters["prefix_hit_tokens"].add_metric(label, stats.prefix_hit_tokens)
            counters["prefix_query_tokens"].add_metric(label, stats.prefix_query_tokens)
        yield from gauges.values()
        yield from counters.values()
