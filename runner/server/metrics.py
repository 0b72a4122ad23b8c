"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..request import Request
from ..scheduler import Scheduler

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The numbers of one server; those of its scheduler are read when they are asked for."""

    def __init__(self, scheduler: Scheduler | None) -> None:
        self.registry = CollectorRegistry()
        if scheduler is not None:
            self.registry.register(_OfScheduler(scheduler))  # type: ignore[arg-type]
        self.responses = Counter(
            "systolic_responses", "HTTP responses.", ("path", "status"), registry=self.registry
        )
        self._first_token = Histogram(
            "systolic_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._per_token = Histogram(
            "systolic_token_seconds",
            "Between a request's tokens, on average.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def observe(self, request: Request, ended: float) -> None:
        """Counts the times of a request that is over (``time.perf_counter``)."""
        if request.first_token is None:
            return
        self._first_token.observe(request.first_token - request.submitted)
        more = len(request.tokens) - 1
        if more > 0:
            self._per_token.observe((ended - request.first_token) / more)

    def text(self) -> bytes:
        """Everything, in Prometheus's text form."""
        return generate_latest(self.registry)


class _OfScheduler:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        scheduler, statistics = self._scheduler, self._scheduler.statistics
        gauges = (
            ("systolic_requests_running", "Rows in use.", scheduler.running),
            ("systolic_requests_waiting", "Requests that wait for a row.", scheduler.waiting),
            ("systolic_prefix_bytes", "Bytes of states kept for texts to come.", scheduler.prefix_bytes),
        )
        counters = (
            ("systolic_steps", "Calls of a program.", statistics.steps),
            ("systolic_tokens", "Tokens made.", statistics.tokens),
            ("systolic_prompt_positions", "Positions of prompts read.", statistics.prompt_positions),
            (
                "systolic_reused_positions",
                "Positions of prompts that were known.",
                statistics.reused_positions,
            ),
        )
        for name, meaning, value in gauges:
            yield GaugeMetricFamily(name, meaning, value)
        for name, meaning, value in counters:
            yield CounterMetricFamily(name, meaning, value)
        finished = CounterMetricFamily("systolic_requests", "Requests that are over.", labels=("reason",))
        for reason, count in tuple(statistics.finished.items()):
            finished.add_metric((reason,), count)
        yield finished
