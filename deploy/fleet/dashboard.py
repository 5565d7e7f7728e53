"""What to watch: a dashboard for Grafana and alerting rules for Prometheus, over metrics that Ray and Serve export."""

import json
from typing import Any

_RATE = "5m"
_ERRORS = f"sum(rate(ray_serve_num_http_error_requests_total[{_RATE}]))"
_REQUESTS = f"sum(rate(ray_serve_num_http_requests_total[{_RATE}]))"
PANELS: tuple[tuple[str, str, str, str], ...] = (
    ("Requests a second", _REQUESTS, "reqps", "all"),
    ("Share of requests with an error", f"{_ERRORS} / {_REQUESTS}", "percentunit", "errors"),
    ("Latency of answers, 95 %",
     f"histogram_quantile(0.95, sum by (le) (rate(ray_serve_http_request_latency_ms_bucket[{_RATE}])))", "ms", "p95"),
    ("Requests in hand", "sum(ray_serve_num_ongoing_http_requests)", "short", "all"),
    ("Answers in a replica's hands, of each deployment", "sum by (deployment) (ray_serve_replica_processing_queries)",
     "short", "{{deployment}}"),
    ("Answers that wait for a replica", "sum by (deployment) (ray_serve_deployment_queued_queries)", "short",
     "{{deployment}}"),
    ("Healthy replicas", "sum by (deployment) (ray_serve_deployment_replica_healthy)", "short", "{{deployment}}"),
    ("Errors in a deployment, a second",
     f"sum by (deployment) (rate(ray_serve_deployment_error_counter_total[{_RATE}]))", "short", "{{deployment}}"),
    ("CPU of a node", "avg by (instance) (ray_node_cpu_utilization)", "percent", "{{instance}}"),
    ("Memory of a node", "max by (instance) (ray_node_mem_used / ray_node_mem_total)", "percentunit", "{{instance}}"),
    ("GPU of a node", "avg by (instance) (ray_node_gpus_utilization)", "percent", "{{instance}}"),
    ("Free disk of a node", "min by (instance) (ray_node_disk_free)", "bytes", "{{instance}}"),
    ("Trainings: seconds that workers wait for reports",
     f"sum by (ray_train_run_name) (rate(ray_train_report_total_blocked_time_s[{_RATE}]))", "short",
     "{{ray_train_run_name}}"),
    ("Workers that ended unexpectedly", f"sum(increase(ray_node_manager_unexpected_worker_failure_total[{_RATE}]))",
     "short", "all"),
)  # fmt: skip
"""Title, query, unit, legend."""
ALERTS: tuple[tuple[str, str, str, str], ...] = (
    ("KauliNoHealthyReplica", "sum by (deployment) (ray_serve_deployment_replica_healthy) == 0", "2m",
     "{{ $labels.deployment }} has no healthy replica"),
    ("KauliErrors", f"{_ERRORS} / {_REQUESTS} > 0.02", "5m", "more than 2 % of requests end with an error"),
    ("KauliQueue", "sum by (deployment) (ray_serve_deployment_queued_queries) > 16", "5m",
     "answers of {{ $labels.deployment }} wait: more replicas, or a larger batch"),
    ("KauliNodeMemory", "ray_node_mem_used / ray_node_mem_total > 0.92", "5m",
     "{{ $labels.instance }} is nearly out of memory: Ray ends processes from 95 % on"),
    ("KauliDisk", "ray_node_disk_free < 5e9", "5m", "{{ $labels.instance }} has less than 5 GB free"),
    ("KauliNodeGone", 'up{job="ray"} == 0', "2m", "{{ $labels.instance }} does not answer"),
)  # fmt: skip
"""Name, condition, how long it must hold, what it says."""


def dashboard() -> str:
    """The JSON of the dashboard."""
    panels = [
        {
            "id": number,
            "type": "timeseries",
            "title": title,
            "datasource": {"type": "prometheus"},
            "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": [{"refId": "A", "expr": query, "legendFormat": legend}],
        }
        for number, (title, query, unit, legend) in enumerate(PANELS)
    ]
    found = {
        "uid": "kauli", "title": "Kauli", "schemaVersion": 41, "refresh": "30s", "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"}, "panels": panels,
    }  # fmt: skip
    return json.dumps(found, indent=1) + "\n"


def alerts() -> dict[str, Any]:
    """A file of rules for Prometheus."""
    rules = [
        {"alert": name, "expr": condition, "for": duration, "annotations": {"summary": summary}}
        for name, condition, duration, summary in ALERTS
    ]
    return {"groups": [{"name": "kauli", "rules": rules}]}
