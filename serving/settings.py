"""How a model is served: all that the application is told, as plain data that serve.yaml keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

TOKEN = "PARE_SERVE_TOKEN"  # environment variable: what a request must carry when the server is open to others
LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """The application's arguments.

    `model`: a folder as search.pick leaves it, or empty: then `name`@`alias` of MLflow's registry at `tracking_uri`, or
    at the environment's MLFLOW_TRACKING_URI.
    `host`: where replicas listen, `node` for each node's own address; `address`: of the node whose disk holds the model
    (the registry or folder is read there; "" for any). `replicas`: listening processes; 0: as many as there are CPUs.
    `parts`: pieces of an ONNX graph, each a deployment; `max_part_mb`: as many as keep each below. `p99_ms`: None lets
    measurements choose. `log`: folder of the access logs, "" for Ray's own.
    """

    name: str
    model: str = ""
    tracking_uri: str = ""
    alias: str = "picked"
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    parts: int = 1
    max_part_mb: float = 0.0
    balance: str = "time"
    p99_ms: float | None = None
    max_batch: int | None = None
    cache_mb: float = 64.0
    cache_max_input_kb: float = 256.0
    max_body_mb: float = 16.0
    watch: bool = False
    every_s: float = 5.0
    address: str = ""
    log: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what has its default is left out."""
        return {key: value for key, value in asdict(self).items() if value != _DEFAULTS.get(key)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Settings:
        """What `to_dict` gave, or a person wrote; raises ValueError for an argument that does not exist."""
        if unknown := sorted(set(values) - {each.name for each in fields(Settings)}):
            valid = ", ".join(each.name for each in fields(Settings))
            raise ValueError(f"args.{unknown[0]}: no such argument; choose from {valid}")
        return Settings(**values)

    @property
    def open_to_others(self) -> bool:
        """Whether it listens on more than this machine's loopback."""
        return not self.host.startswith(LOOPBACK)


_DEFAULTS = {each.name: each.default for each in fields(Settings)}
