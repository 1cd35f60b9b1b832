"""Metrics in Prometheus's format, collected when they are asked for.

Hot code only adds to plain ints of its own; a source reads them when somebody scrapes. So counting costs an addition,
and nothing at all is set up unless the server was given a port for metrics.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from perdure.telemetry.samples import Source


class Metrics(Collector):
    """/metrics over HTTP, on a thread of its own: the source only reads."""

    def __init__(self, source: Source, host: str, port: int) -> None:
        """port: 0 takes a free one. Raises OSError when the address cannot be bound."""
        self._source = source
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as e:
            raise OSError(e.errno, f"cannot listen on {host}:{port} for metrics: {e.strerror}") from None
        self.host = host
        self.port = int(self._server.server_port)

    def describe(self) -> list[Metric]:
        return []  # so that registering does not collect

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in self._source():
            family = families.get(sample.name)
            if family is None:
                kind = CounterMetricFamily if sample.counter else GaugeMetricFamily
                family = families[sample.name] = kind(
                    f"perdure_{sample.name}", sample.help, labels=tuple(sample.labels)
                )
            family.add_metric(tuple(sample.labels.values()), sample.value)
        yield from families.values()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
