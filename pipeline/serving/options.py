"""What an operator chooses about a server."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from pipeline.config import ConfigError
from pipeline.serving.limits import Limits

KEY_VARIABLE = "RAY_LLAVA_API_KEY"
"""Environment variable with the key that clients send as `Authorization: Bearer KEY`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


@dataclass(frozen=True)
class ServedModel:
    """A model under the name that requests give."""

    name: str
    path: str
    """A run, a checkpoint of one, a model folder, adapters, or an exported folder."""


@dataclass(frozen=True)
class Replicas:
    """How many copies of the model answer, and with what."""

    number: int = 1
    """Copies that always run."""
    maximum: int = 1
    """Copies under load; more than `number` lets Ray Serve add and remove them."""
    cpus: float = 1.0
    """CPUs of the cluster that each takes."""
    gpus: float | None = None
    """GPUs that each takes; a fraction lets several share one. None: one where the cluster has enough."""
    batch_rows: int = 16
    """Answers that a copy writes at the same time."""

    def __post_init__(self) -> None:
        """Check that the numbers go together."""
        if self.maximum < self.number:
            raise ConfigError(f"--max-replicas {self.maximum} is below --replicas {self.number}; raise it")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(f"--gpus-per-replica {self.gpus}: expected a fraction of one GPU, or whole ones")


@dataclass(frozen=True)
class ServeOptions:
    """A server: which models, where it listens, for whom, and its bounds."""

    models: tuple[ServedModel, ...]
    """The first answers requests that name none."""
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    image_hosts: frozenset[str] = frozenset()
    """Hosts, or `host:port`, that images may be fetched from."""
    replicas: Replicas = field(default_factory=Replicas)
    limits: Limits = field(default_factory=Limits)
    grace_s: float = 10.0
    """How long answers under way may go on after a signal to stop, seconds."""

    def __post_init__(self) -> None:
        """Check names, and that a server for other machines has a key.

        Raises:
            ConfigError: what is wrong, and what to do.
        """
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(f"two models have the same name among {', '.join(sorted(names))}; give each its own")
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"model name {name!r}: expected letters, digits, dots and dashes, at most 128")
        if not is_loopback(self.host) and self.api_key is None:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, so the server needs a key: set "
                f"{KEY_VARIABLE}, or listen on 127.0.0.1"
            )
        if self.api_key is not None and (len(self.api_key) < 8 or not self.api_key.isascii()):
            raise ConfigError(f"{KEY_VARIABLE} is too short or not ASCII; expected at least 8 characters")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
