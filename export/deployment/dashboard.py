"""What Prometheus is asked about servers, for scaling and for a Grafana dashboard of what matters while they run.

The names are those of Triton's metrics.
"""

from __future__ import annotations

import json
from typing import Any

from affserve.export.contract import CLIP_ENCODER
from affserve.export.deployment.container import NAME

# Mean wait of a request for the encoder at which there should be another server: about what a chunk of 32 frames takes
# on two cores, and far more than it takes on a GPU.
QUEUE_THRESHOLD_US = 200_000
HERE = 'namespace="$namespace"'
ENCODER = f'model="{CLIP_ENCODER.name}"'
SUCCESS, COUNT = "nv_inference_request_success", "nv_inference_count"


def _rate(metric: str, selector: str, by: str = "") -> str:
    """Return a query for a counter's growth per second, summed over what `by` does not name."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{{{selector}}}[2m]))"


def _per(one: str, metric: str, selector: str, by: str = "") -> str:
    """Return a query for how much a counter grows with another one; 0 where nothing happens."""
    return f"{_rate(metric, selector, by)} / clamp_min({_rate(one, selector, by)}, 0.001)"


def queue_time_us(namespace: str) -> str:
    """Return the mean time that a request waits for the encoder, over all servers of a namespace."""
    return _per(SUCCESS, "nv_inference_queue_duration_us", f'namespace="{namespace}",{ENCODER}')


# Title, unit, and what is asked by the name of its lines.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Requests per second", "reqps", {"{{model}}": _rate(SUCCESS, HERE, "model")}),
    ("Frames per second", "cps", {"{{pod}}": _rate(COUNT, f"{HERE},{ENCODER}", "pod")}),
    ("Mean wait in the queue", "µs", {"{{model}}": _per(SUCCESS, "nv_inference_queue_duration_us", HERE, "model")}),
    ("Mean computing", "µs", {"{{model}}": _per(SUCCESS, "nv_inference_compute_infer_duration_us", HERE, "model")}),
    ("Frames in a batch", "short", {"{{pod}}": _per("nv_inference_exec_count", COUNT, f"{HERE},{ENCODER}", "pod")}),
    ("Waiting requests", "short", {"{{model}}": f"sum by (model) (nv_inference_pending_request_count{{{HERE}}})"}),
    ("Errors per second", "reqps", {"{{model}}": _rate("nv_inference_request_failure", HERE, "model")}),
    ("GPU utilization", "percentunit", {"{{gpu_uuid}}": f"nv_gpu_utilization{{{HERE}}}"}),
    ("GPU memory", "bytes", {"{{gpu_uuid}}": f"nv_gpu_memory_used_bytes{{{HERE}}}"}),
    ("GPU power", "watt", {"{{gpu_uuid}}": f"nv_gpu_power_usage{{{HERE}}}"}),
)


def grafana_dashboard(namespace: str) -> str:
    """Return the dashboard as JSON, to be imported; namespace: the one that is chosen at first."""
    source = {"type": "prometheus", "uid": "${source}"}
    chosen = {"text": namespace, "value": namespace}
    choice = {"datasource": source, "query": f"label_values({SUCCESS}, namespace)", "current": chosen, "refresh": 2}
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {"name": "namespace", "type": "query", **choice},
    ]
    dashboard = {
        "uid": NAME,
        "title": NAME,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": [{**_panel(number, *panel), "datasource": source} for number, panel in enumerate(PANELS)],
    }
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _panel(number: int, title: str, unit: str, lines: dict[str, str]) -> dict[str, Any]:
    row, column = divmod(number, 2)
    asked = enumerate(lines.items())
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "gridPos": {"x": 12 * column, "y": 8 * row, "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [{"refId": f"{n}", "expr": query, "legendFormat": legend} for n, (legend, query) in asked],
    }
