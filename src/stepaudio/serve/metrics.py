"""Prometheus metrics, in a registry of the server's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stepaudio.serve.limits import Slots

SECONDS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 60, 300)


class Metrics:
    """What the server counts. `route` is the path template of a route, never a path that a client made up."""

    def __init__(self, slots: Slots) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "stepaudio_requests", "Requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self.cancelled = Counter(
            "stepaudio_cancelled", "Requests whose client left before the answer.", ("route",), registry=self.registry
        )
        self.seconds = Histogram(
            "stepaudio_request_seconds", "Request to last byte.", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.first_byte_seconds = Histogram(
            "stepaudio_first_byte_seconds",
            "Request to first byte of the answer's body.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.audio_seconds = Counter(
            "stepaudio_audio_seconds", "Seconds of audio heard (in) and spoken (out).", ("way",), registry=self.registry
        )
        for name, help_text, read in (
            ("stepaudio_slots", "Slots for model work.", lambda: slots.size),
            ("stepaudio_slots_busy", "Slots taken.", lambda: slots.busy),
            ("stepaudio_queue_waiting", "Requests that wait for a slot.", lambda: slots.waiting),
        ):
            Gauge(name, help_text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """The text exposition of everything counted so far."""
        return generate_latest(self.registry)
