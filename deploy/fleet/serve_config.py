"""The configuration that Ray Serve is given (`serveConfigV2`), made of the service's own settings."""

from typing import Any

from kauli.deploy.fleet.config import Fleet

PORT = 8000


def serve_config(fleet: Fleet) -> dict[str, Any]:
    """A multi-application configuration with one application, ours; it names no key and no secret.

    API keys come from the environment of the pods, where `kauli.serving.app.build` reads them.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": PORT},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": fleet.name,
                "route_prefix": "/",
                "import_path": "kauli.serving.app:build",
                "args": service_args(fleet),
            }
        ],
    }


def service_args(fleet: Fleet) -> dict[str, Any]:
    """The settings of the service, as `kauli serve --config` would read them."""
    return {
        "host": "0.0.0.0", "port": PORT, "storage": fleet.storage, "bases": list(fleet.bases), **fleet.service,
    }  # fmt: skip
