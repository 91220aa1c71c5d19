"""Spans a second of our exporter, beside the SDK's console exporter that writes to a file.

    python stress/comparisons/span_export.py [COUNT]

The spans are those of agents: a root with seven calls of models and tools, exported in the batches of the SDK's
BatchSpanProcessor (512). Ours are committed and can be queried by type, tag, time and parent.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH = 512


def made_spans(count: int) -> list[Any]:
    """Finished spans, in the order in which a processor hands them out."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("agent")
    chat = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m1",
        "gen_ai.usage.input_tokens": 812,
        "gen_ai.usage.output_tokens": 96,
    }
    tool = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "gen_ai.tool.call.arguments": '{"q": "tea"}',
    }
    for _ in range(count // 8):
        with tracer.start_as_current_span(
            "invoke_agent", attributes={"gen_ai.operation.name": "invoke_agent"}
        ):
            for number in range(7):
                tracer.start_span(
                    "chat" if number % 2 else "search", attributes=chat if number % 2 else tool
                ).end()
    return list(memory.get_finished_spans())


def rate(exporter: Any, spans: list[Any]) -> float:
    """Spans a second."""
    begin = time.perf_counter()
    for first in range(0, len(spans), BATCH):
        result = exporter.export(spans[first : first + BATCH])
        assert result.name == "SUCCESS"
    return len(spans) / (time.perf_counter() - begin)


def main() -> None:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    import occamdb
    from occamdb.plugins.opentelemetry import OccamSpanExporter

    spans = made_spans(int(sys.argv[1]) if len(sys.argv) > 1 else 16_384)
    with tempfile.TemporaryDirectory() as directory, occamdb.open(Path(directory) / "db") as db:
        rate(OccamSpanExporter(db, name="warm"), spans[:BATCH])
        ours = rate(OccamSpanExporter(db), spans)
        print(f"OccamSpanExporter            {ours:9,.0f} spans/s")
        with open(Path(directory) / "spans.json", "w", encoding="utf-8") as file:
            theirs = rate(ConsoleSpanExporter(out=file), spans)
        print(f"ConsoleSpanExporter to a file{theirs:9,.0f} spans/s")
        print(f"ratio                        x {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
