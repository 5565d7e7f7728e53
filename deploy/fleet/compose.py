"""Docker compose: head and service, workers, an S3-like store, Prometheus and Grafana."""

from typing import Any

import yaml

from kauli.deploy.fleet.config import Fleet, Resources
from kauli.deploy.fleet.pods import HOME, METRICS_PORT
from kauli.deploy.fleet.serve_config import PORT

BUCKET = "kauli"
_STORE_PORT = 8333
_IMAGES = {
    "seaweedfs": "chrislusf/seaweedfs:4.48", "prometheus": "prom/prometheus:v3.13.3",
    "grafana": "grafana/grafana:13.2.3",
}  # fmt: skip
"""SeaweedFS refuses the second of two writes at once with `If-None-Match` (since 4.18): the registry needs it."""
_S3_KEYS = """\
{"identities": [{"name": "kauli", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "${AWS_ACCESS_KEY_ID:?}", "secretKey": "${AWS_SECRET_ACCESS_KEY:?}"}]}]}
"""
_SOURCES = """\
apiVersion: 1
datasources:
- {name: Prometheus, type: prometheus, access: proxy, url: "http://prometheus:9090", isDefault: true}
"""
_DASHBOARDS = """\
apiVersion: 1
providers:
- {name: Kauli, type: file, options: {path: /etc/kauli/dashboards}}
"""


def compose(fleet: Fleet) -> dict[str, Any]:
    """The compose project; keys come from the environment or from a file `.env` beside it, never from here."""
    group = next(iter(fleet.workers.values()))
    settings = "/etc/kauli/service.yaml"
    head = [
        "ray start --head --port=6379 --num-cpus=0 --dashboard-host=0.0.0.0 --disable-usage-stats",
        f"--metrics-export-port={METRICS_PORT}",
        f"&& exec kauli serve --address head:6379 --host 0.0.0.0 --config {settings}",
    ]
    worker = ["ray", "start", "--address=head:6379", "--block", f"--metrics-export-port={METRICS_PORT}"]
    worker.append(f"--num-cpus={group.cpus}")
    node = f"http://127.0.0.1:{_NODE_PORT}/api/healthz"
    ready = {"condition": "service_completed_successfully"}
    return {
        "name": fleet.name,
        "services": {
            "store": {
                "image": _IMAGES["seaweedfs"],
                "command": [
                    "server", "-dir=/data", "-ip=store", "-s3", f"-s3.port={_STORE_PORT}", "-s3.config=/etc/s3.json"
                ],
                "configs": [{"source": "s3", "target": "/etc/s3.json"}],
                "volumes": ["store:/data"],
                "healthcheck": _check(f"wget -q -O /dev/null http://127.0.0.1:{_STORE_PORT}/healthz", 10),
                "restart": "unless-stopped",
            },
            "bucket": {
                **_node(fleet, group, gpus=False),
                "command": ["python", "-c", _MAKE_BUCKET],
                "depends_on": {"store": {"condition": "service_healthy"}},
                "healthcheck": {"disable": True},
            },
            "bases": {
                **_node(fleet, group, gpus=False),
                "command": ["kauli", "fetch", *fleet.bases],
                "healthcheck": {"disable": True},
            },
            "head": {
                **_node(fleet, fleet.head, gpus=False),
                "command": ["sh", "-c", " ".join(head)],
                "configs": [{"source": "service", "target": settings}],
                "depends_on": {"bases": ready, "bucket": ready},
                # On the machine alone: a TLS proxy before it is the operator's
                "ports": [f"127.0.0.1:{PORT}:{PORT}"],
                # The service waits for a worker, and may load bases for minutes
                "healthcheck": {
                    **_check(f"wget -q -O /dev/null http://127.0.0.1:{PORT}/health", 30), "start_period": "10m"
                },
                "stop_grace_period": "60s",
                "restart": "unless-stopped",
            },
            "worker": {
                **_node(fleet, group, gpus=bool(group.gpus)),
                "command": worker,
                "depends_on": {"bases": ready, "bucket": ready, "head": {"condition": "service_started"}},
                "healthcheck": {**_check(f"wget -q -O /dev/null {node}", 30), "start_period": "2m"},
                "stop_grace_period": "60s",
                "restart": "unless-stopped",
            },
            "prometheus": {
                "image": _IMAGES["prometheus"],
                "volumes": [
                    "./prometheus.yaml:/etc/prometheus/prometheus.yml:ro",
                    "../observability/alerts.yaml:/etc/prometheus/alerts.yaml:ro",
                    "prometheus:/prometheus",
                ],
                "ports": ["127.0.0.1:9090:9090"],
                "restart": "unless-stopped",
            },
            "grafana": {
                "image": _IMAGES["grafana"],
                "environment": {"GF_SECURITY_ADMIN_PASSWORD": "${GRAFANA_PASSWORD:?choose one}"},
                "configs": [
                    {"source": "sources", "target": "/etc/grafana/provisioning/datasources/kauli.yaml"},
                    {"source": "dashboards", "target": "/etc/grafana/provisioning/dashboards/kauli.yaml"},
                ],
                "volumes": ["../observability/dashboard.json:/etc/kauli/dashboards/kauli.json:ro"],
                "ports": ["127.0.0.1:3000:3000"],
                "restart": "unless-stopped",
            },
        },
        "configs": {
            "s3": {"content": _S3_KEYS},
            "service": {"content": yaml.safe_dump({"bases": list(fleet.bases), **fleet.service}, sort_keys=False)},
            "sources": {"content": _SOURCES},
            "dashboards": {"content": _DASHBOARDS},
        },
        "volumes": {"home": {}, "store": {}, "prometheus": {}},
    }  # fmt: skip


def prometheus() -> dict[str, Any]:
    """What Prometheus reads: every container of a service is one address of its name."""
    names = [{"names": [name], "type": "A", "port": METRICS_PORT, "refresh_interval": "10s"} for name in _RAY_NODES]
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "ray", "dns_sd_configs": names}],
    }


_RAY_NODES = ("head", "worker")
_NODE_PORT = 52365
_MAKE_BUCKET = f"import s3fs; s3fs.S3FileSystem().makedirs('{BUCKET}', exist_ok=True)"


def _node(fleet: Fleet, size: Resources, *, gpus: bool) -> dict[str, Any]:
    """What all containers of our image have."""
    endpoint = f"http://store:{_STORE_PORT}"
    needed = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "KAULI_API_KEYS", "RAY_AUTH_TOKEN")
    found: dict[str, Any] = {
        "image": fleet.gpu_image if size.gpus else fleet.image,
        "environment": {
            "KAULI_HOME": HOME,
            "KAULI_STORAGE": f"s3://{BUCKET}/store",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ENDPOINT": endpoint,
            "RAY_AUTH_MODE": "token",
            "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
            **{name: f"${{{name}:?}}" for name in needed},
            "KAULI_ADMIN_KEYS": "${KAULI_ADMIN_KEYS:-}",
        },
        "volumes": [f"home:{HOME}"],
        "shm_size": f"{max(1, size.memory_gib // 4)}gb",
        "mem_limit": f"{size.memory_gib}g",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    if gpus:
        device = {"driver": "nvidia", "count": size.gpus, "capabilities": ["gpu"]}
        found["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return found


def _check(command: str, seconds: int) -> dict[str, Any]:
    return {"test": ["CMD-SHELL", command], "interval": f"{seconds}s", "timeout": "30s", "retries": 5}
