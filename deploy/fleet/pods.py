"""The pods of Ray's nodes: image, resources, volumes, environment, probes; for the service and for training alike."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from kauli.deploy.fleet.config import Fleet, Group, Resources

HOME, STORE = "/var/lib/kauli", "/var/lib/kauli-store"
USER = 1000
"""The image's user, who owns the volumes too."""
METRICS_PORT = 8080
_RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}


def labels(fleet: Fleet, role: str) -> dict[str, str]:
    """The labels by which policies find pods; `role` is service, training or submitter."""
    # Not app.kubernetes.io/...: KubeRay's own services find their pods by these
    return {"kauli/fleet": fleet.name, "kauli/role": role}


def cluster_spec(fleet: Fleet, role: str, groups: Mapping[str, Group]) -> dict[str, Any]:
    """The specification of a RayCluster: a head that computes nothing, and groups of workers that Ray scales."""
    spec: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", "secretName": f"{fleet.name}-ray"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "securityContext": guarded(),
            "resources": {
                "requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"},
            },
        },
        "headGroupSpec": {
            # Without CPUs of its own, so that no replica and no training ends with a busy head
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(fleet, role, fleet.head, head=True),
        },
        "workerGroupSpecs": [
            {
                "groupName": name,
                "replicas": group.nodes[0],
                "minReplicas": group.nodes[0],
                "maxReplicas": group.nodes[1],
                "idleTimeoutSeconds": group.idle_s,
                "rayStartParams": {},
                "template": _pod(fleet, role, group, head=False),
            }
            for name, group in groups.items()
        ],
    }  # fmt: skip
    if fleet.redis and role == "service":
        password = {"name": f"{fleet.name}-redis", "key": "password"}
        spec["gcsFaultToleranceOptions"] = {
            "redisAddress": fleet.redis, "redisPassword": {"valueFrom": {"secretKeyRef": password}}
        }  # fmt: skip
    return spec


def environment(fleet: Fleet, role: str) -> list[dict[str, Any]]:
    """What every process of ours needs: places, keys by reference, an object store by reference."""
    plain = {"KAULI_HOME": HOME, "KAULI_STORAGE": fleet.storage, "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"}
    if fleet.storage_endpoint:
        # The first is read by s3fs, the second by LanceDB, which keeps the memories
        plain |= {"AWS_ENDPOINT_URL": fleet.storage_endpoint, "AWS_ENDPOINT": fleet.storage_endpoint}
    secret: dict[str, tuple[str, str]] = {}
    if role == "service":
        secret |= {"KAULI_API_KEYS": ("keys", "api-keys"), "KAULI_ADMIN_KEYS": ("keys", "admin-keys")}
    if fleet.on_object_store:
        secret |= {
            "AWS_ACCESS_KEY_ID": ("storage", "access-key-id"),
            "AWS_SECRET_ACCESS_KEY": ("storage", "secret-access-key"),
        }
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": f"{fleet.name}-{which}", "key": key}}}
            for name, (which, key) in secret.items()
        ),
    ]


def ray_token(fleet: Fleet) -> list[dict[str, Any]]:
    """The environment of a pod outside the clusters that speaks to them; KubeRay gives it to Ray's own pods."""
    token = {"secretKeyRef": {"name": f"{fleet.name}-ray", "key": "auth_token"}}
    return [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": token}]


def guarded() -> dict[str, Any]:
    """The security context of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def guarded_pod() -> dict[str, Any]:
    """The security context of a pod."""
    ids = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def _pod(fleet: Fleet, role: str, size: Resources, *, head: bool) -> dict[str, Any]:
    image = fleet.gpu_image if size.gpus else fleet.image
    mounts = [{"name": "home", "mountPath": HOME}, {"name": "shm", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [
        {"name": "home", "persistentVolumeClaim": {"claimName": f"{fleet.name}-home"}},
        # Ray's object store; a container has 64 MiB of it otherwise
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, size.memory_gib // 4)}Gi"}},
    ]
    if not fleet.on_object_store:
        mounts.append({"name": "store", "mountPath": STORE})
        volumes.append({"name": "store", "persistentVolumeClaim": {"claimName": f"{fleet.name}-store"}})
    ports = {**(_RAY_PORTS if head else {}), "metrics": METRICS_PORT, **({"serve": 8000} if role == "service" else {})}
    container = {
        "name": "ray-head" if head else "ray-worker",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": environment(fleet, role),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _resources(size),
        "securityContext": guarded(),
        "volumeMounts": mounts,
        # A worker of the service is ready when its HTTP proxy is: KubeRay adds that probe itself where there is none
        **({} if role == "service" and not head else {"readinessProbe": _alive(10, 5)}),
        "livenessProbe": _alive(30, 15),
        "startupProbe": {**_alive(5, 5), "failureThreshold": 60},
        # A replica may finish its answers first (drain_s)
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "sleep 5"]}}},
    }
    spec: dict[str, Any] = {
        "securityContext": guarded_pod(), "terminationGracePeriodSeconds": 60,
        "containers": [container], "volumes": volumes,
    }  # fmt: skip
    if fleet.bases and not head:
        spec["initContainers"] = [_bringer(fleet, image, mounts, size)]
    if isinstance(size, Group) and size.node_selector:
        spec["nodeSelector"] = size.node_selector
    if size.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": labels(fleet, role)}, "spec": spec}


def _bringer(fleet: Fleet, image: str, mounts: list[dict[str, Any]], size: Resources) -> dict[str, Any]:
    """Brings the bases to the volume; seconds where they are there, and one of several pods at a time."""
    memory = f"{min(4, size.memory_gib)}Gi"
    return {
        "name": "bases", "image": image, "command": ["kauli", "fetch", *fleet.bases],
        "env": [{"name": "KAULI_HOME", "value": HOME}],
        "resources": {"requests": {"cpu": "1", "memory": memory}, "limits": {"memory": memory}},
        "securityContext": guarded(), "volumeMounts": mounts[:1],
    }  # fmt: skip


def _resources(size: Resources) -> dict[str, Any]:
    gpus = {"nvidia.com/gpu": str(size.gpus)} if size.gpus else {}
    asked = {"cpu": str(size.cpus), "memory": f"{size.memory_gib}Gi", **gpus}
    # Ray counts the CPUs of the limit
    return {"requests": asked, "limits": asked}


def _alive(period: int, timeout: int) -> dict[str, Any]:
    """Ray's own check of a node: the raylet, and on the head the GCS."""
    http = {"path": "/api/healthz", "port": 52365}
    return {"httpGet": http, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": 10}
