"""The objects of Kubernetes: KubeRay's RayService, RayCluster and RayJob, and what stands around them."""

import shlex
from typing import Any

import yaml

from kauli.deploy.fleet.config import Fleet
from kauli.deploy.fleet.pods import METRICS_PORT, cluster_spec, guarded, guarded_pod, labels, ray_token
from kauli.deploy.fleet.serve_config import PORT, serve_config

_DASHBOARD = 8265


def ray_service(fleet: Fleet) -> list[dict[str, Any]]:
    """The service: its clients find it as `NAME-serve-svc:8000`."""
    spec = {
        "serveConfigV2": yaml.safe_dump(serve_config(fleet), sort_keys=False),
        # A replica may load bases for minutes; after that KubeRay starts another cluster beside this one
        "serviceUnhealthySecondThreshold": 900,
        "deploymentUnhealthySecondThreshold": 300,
        "excludeHeadPodFromServeSvc": True,
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": cluster_spec(fleet, "service", fleet.workers),
    }
    return [_object(fleet, "ray.io/v1", "RayService", "", "service", spec=spec)]


def ray_cluster(fleet: Fleet) -> list[dict[str, Any]]:
    """The standing cluster for training: a head, and workers only while something is trained."""
    spec = cluster_spec(fleet, "training", fleet.training.groups)
    return [_object(fleet, "ray.io/v1", "RayCluster", "-train", "training", spec=spec)]


def ray_job(fleet: Fleet) -> list[dict[str, Any]]:
    """One training on a cluster of its own, which ends with it."""
    return [_object(fleet, "ray.io/v1", "RayJob", "-train-once", "training", spec=_job_spec(fleet))]


def nightly(fleet: Fleet) -> list[dict[str, Any]]:
    """The nightly training: a CronJob that submits to the standing cluster, or KubeRay's RayCronJob."""
    training = fleet.training
    if training.nightly == "RayCronJob":
        repeated = {"schedule": training.schedule, "timeZone": "Etc/UTC", "jobTemplate": _job_spec(fleet)}
        return [_object(fleet, "ray.io/v1", "RayCronJob", "-nightly", "training", spec=repeated)]
    address = f"http://{fleet.name}-train-head-svc:{_DASHBOARD}"
    command = ["ray", "job", "submit", "--address", address]
    command += ["--entrypoint-num-cpus", f"{training.driver_cpus:g}"]
    if training.driver_gpus:
        command += ["--entrypoint-num-gpus", f"{training.driver_gpus:g}"]
    template = _submitter(fleet, command=[*command, "--", *_command(fleet)], env=ray_token(fleet))
    spec: dict[str, Any] = {
        "schedule": training.schedule,
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        # An interrupted run is resumed by the next call
        "jobTemplate": {"spec": {"backoffLimit": 1, "template": template}},
    }
    return [_object(fleet, "batch/v1", "CronJob", "-nightly", "training", spec=spec)]


def base(fleet: Fleet) -> list[dict[str, Any]]:
    """Namespace, volumes, who may reach whom, and how many pods a drain may take at a time."""
    found: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": fleet.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        },
        _claim(fleet, "home", fleet.home_gib),
    ]
    if not fleet.on_object_store:
        found.append(_claim(fleet, "store", fleet.store_gib))
    found += [_policy(fleet, role) for role in ("service", "training")]
    fewest = sum(group.nodes[0] for group in fleet.workers.values())
    if fewest > 1:  # of one pod, it would forbid every drain
        # An absolute number of the available: others need a controller with the sub-resource `scale`
        spec = {
            "minAvailable": fewest,  # of these and the head: one may go at a time
            "selector": {"matchLabels": labels(fleet, "service")},
        }
        found.append(_object(fleet, "policy/v1", "PodDisruptionBudget", "", "service", spec=spec))
    return found


def _job_spec(fleet: Fleet) -> dict[str, Any]:
    training = fleet.training
    return {
        "entrypoint": shlex.join(_command(fleet)),
        "entrypointNumCpus": training.driver_cpus,
        **({"entrypointNumGpus": training.driver_gpus} if training.driver_gpus else {}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "backoffLimit": 1,
        # KubeRay fills in the command; its own pod would break the namespace's rule `restricted`
        "submitterPodTemplate": _submitter(fleet),
        "rayClusterSpec": cluster_spec(fleet, "training", training.groups),
    }


def _submitter(fleet: Fleet, **more: Any) -> dict[str, Any]:
    """The pod that submits a training and waits for it."""
    container = {
        "name": "submit",
        "image": fleet.image,
        **more,
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": guarded(),
    }
    return {
        "metadata": {"labels": labels(fleet, "submitter")},
        "spec": {"restartPolicy": "Never", "securityContext": guarded_pod(), "containers": [container]},
    }


def _command(fleet: Fleet) -> list[str]:
    changes = [f"{key}={_plain(value)}" for key, value in fleet.training.overrides.items()]
    return ["kauli", "train", fleet.training.recipe, *(word for change in changes for word in ("--set", change))]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _claim(fleet: Fleet, which: str, size: int) -> dict[str, Any]:
    mode = "ReadWriteMany" if fleet.shared_volumes else "ReadWriteOnce"
    spec: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": f"{size}Gi"}}}
    if fleet.storage_class is not None:
        spec["storageClassName"] = fleet.storage_class
    return _object(fleet, "v1", "PersistentVolumeClaim", f"-{which}", "service", spec=spec)


def _policy(fleet: Fleet, role: str) -> dict[str, Any]:
    """Who may open a connection to the pods of a role; what they open themselves is not limited."""
    namespace = "kubernetes.io/metadata.name"
    own: dict[str, Any] = {"podSelector": {"matchLabels": labels(fleet, role)}}
    operator: dict[str, Any] = {"namespaceSelector": {"matchLabels": {namespace: fleet.operator_namespace}}}
    submitters: list[dict[str, Any]] = [operator]
    if role == "training":
        submitters.append({"podSelector": {"matchLabels": labels(fleet, "submitter")}})
    ingress: list[dict[str, Any]] = [
        {"from": [own]},
        {"from": submitters, "ports": [_tcp(_DASHBOARD)]},
        {
            "from": [{"namespaceSelector": {"matchLabels": {namespace: fleet.scraped_from}}}],
            "ports": [_tcp(METRICS_PORT)],
        },
    ]
    if role == "service":
        ingress.append({"ports": [_tcp(PORT)]})  # from everywhere; API keys guard it
    spec = {"podSelector": {"matchLabels": labels(fleet, role)}, "policyTypes": ["Ingress"], "ingress": ingress}
    return _object(fleet, "networking.k8s.io/v1", "NetworkPolicy", f"-{role}", role, spec=spec)


def _tcp(port: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": port}


def _object(fleet: Fleet, version: str, kind: str, suffix: str, role: str, **content: Any) -> dict[str, Any]:
    metadata = {"name": f"{fleet.name}{suffix}", "namespace": fleet.namespace, "labels": labels(fleet, role)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def helm_values(fleet: Fleet) -> dict[str, Any]:
    """Values for the chart `kuberay-operator`."""
    gates = {"RayCronJob": fleet.training.nightly == "RayCronJob"}
    return {
        "singleNamespaceInstall": True,
        "watchNamespace": [fleet.namespace],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
        # Helm replaces a list as a whole: these are the chart's own lines, with ours among them
        "featureGates": [
            {"name": name, "enabled": gates.get(name, enabled)}
            for name, enabled in {
                "RayClusterStatusConditions": True, "RayJobDeletionPolicy": True, "RayMultiHostIndexing": True,
                "RayServiceIncrementalUpgrade": True, "RayCronJob": False,
            }.items()
        ],
    }  # fmt: skip
