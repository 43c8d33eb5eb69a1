"""Snapshots of all replicas in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serving.histogram import exposed

KIND = "text/plain; version=0.0.4; charset=utf-8"
_ABOUT = {
    "pare_requests_total": ("counter", "Requests answered, by status."),
    "pare_inputs_total": ("counter", "Inputs (rows) of inference requests."),
    "pare_request_duration_seconds": ("histogram", "From the first byte read to the last written, inference only."),
    "pare_batches_requests_total": ("counter", "Inference requests by the rows of the batch that they ran in."),
    "pare_cache_hits_total": ("counter", "Answers from the result cache."),
    "pare_cache_misses_total": ("counter", "Answers that the result cache did not hold."),
    "pare_cache_evictions_total": ("counter", "Answers that left the result cache for others."),
    "pare_cache_bytes": ("gauge", "Bytes in the result cache."),
    "pare_waiting_bytes": ("gauge", "Bytes of inputs that wait for the model or run."),
    "pare_version_switches_total": ("counter", "Changes of version since the replica began."),
    "pare_model_info": ("gauge", "1, with the version that the replica serves."),
    "pare_uptime_seconds": ("gauge", "Seconds since the replica began."),
}


def text(name: str, replicas: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    lines: dict[str, list[str]] = {metric: [] for metric in _ABOUT}
    for replica, found in sorted(replicas.items()):
        for metric, line in _lines(f'model="{_quoted(name)}",replica="{_quoted(replica)}"', found):
            lines[metric].append(line)
    out = []
    for metric, (kind, about) in _ABOUT.items():
        out += [f"# HELP {metric} {about}", f"# TYPE {metric} {kind}", *lines[metric]]
    return "\n".join(out) + "\n"


def _lines(labels: str, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for status, count in found["requests"].items():
        yield "pare_requests_total", f'pare_requests_total{{{labels},status="{status}"}} {count}'
    for line in exposed("pare_request_duration_seconds", labels, found["duration"]):
        yield "pare_request_duration_seconds", line
    for rows, count in found["batch_rows"].items():
        yield "pare_batches_requests_total", f'pare_batches_requests_total{{{labels},rows="{rows}"}} {count}'
    cache = found["cache"]
    values = {
        "pare_inputs_total": found["rows"],
        "pare_cache_hits_total": cache["hits"],
        "pare_cache_misses_total": cache["misses"],
        "pare_cache_evictions_total": cache["evictions"],
        "pare_cache_bytes": cache["bytes"],
        "pare_waiting_bytes": found["waiting_bytes"],
        "pare_version_switches_total": found["switches"],
        "pare_uptime_seconds": round(found["up_s"], 1),
    }
    for metric, value in values.items():
        yield metric, f"{metric}{{{labels}}} {value}"
    versions = f'version="{_quoted(found["version"])}",sha256="{found["sha256"][:12]}"'
    yield "pare_model_info", f"pare_model_info{{{labels},{versions}}} 1"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
