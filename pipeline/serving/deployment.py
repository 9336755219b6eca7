"""The served models as a Ray Serve application, and the way from the HTTP side to it. Imports torch nowhere."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipeline.config import ClusterConfig, ConfigError
from pipeline.generation.requests import Reply
from pipeline.launch.on_ray.cluster import join_cluster, start_local_cluster
from pipeline.parallel.cpus import usable_cpus
from pipeline.serving.answering.engine import Piece, Question
from pipeline.serving.answering.replica import Replica
from pipeline.serving.options import Replicas, ServeOptions
from pipeline.serving.refusals import RefusedError, unavailable

logger = logging.getLogger(__name__)

_APPLICATION = "ray-llava"
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_TALKATIVE = ("ray", "ray.serve", "ray._private.authentication.authentication_token_setup")
_LOST = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
_UNAVAILABLE = (BackPressureError, DeploymentUnavailableError, *_LOST)
_TRIES = 2


@contextmanager
def deployed(options: ServeOptions) -> Iterator[RayBackend]:
    """Run the models on Ray for the length of the block: on the cluster of RAY_ADDRESS, else on this machine.

    Raises:
        ConfigError: the cluster lacks CPUs or GPUs, or a model cannot be opened.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    replicas = options.replicas
    is_own = not os.environ.get("RAY_ADDRESS")
    size = ClusterConfig(num_workers=replicas.maximum, cpus_per_worker=replicas.cpus)
    (start_local_cluster if is_own else join_cluster)(size)
    try:
        gpus = _check_resources(replicas)
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        handle = _run(options, gpus)
        yield RayBackend(handle)
    finally:
        if not is_own:  # other applications may run there
            serve.delete(_APPLICATION)
        ray.shutdown()


def _check_resources(replicas: Replicas) -> float:
    """Return the GPUs of each replica; refuse a cluster that lacks what all of them take."""
    resources = ray.cluster_resources()
    default = float(resources.get("GPU", 0) >= replicas.maximum)
    gpus = default if replicas.gpus is None else replicas.gpus
    for kind, each, option in (("CPU", replicas.cpus, "cpus"), ("GPU", gpus, "gpus")):
        wanted, found = each * replicas.maximum, resources.get(kind, 0)
        if wanted > found:
            raise ConfigError(
                f"{replicas.maximum} replicas with {each:g} {kind}s each need {wanted:g}, the Ray cluster has "
                f"{found:g}; lower --replicas, --max-replicas or --{option}-per-replica"
            )
    return gpus


def _run(options: ServeOptions, gpus: float) -> Any:
    replicas = options.replicas
    is_scaled = replicas.maximum > replicas.number
    scaling = {
        "min_replicas": replicas.number,
        "initial_replicas": replicas.number,
        "max_replicas": replicas.maximum,
        "target_ongoing_requests": replicas.batch_rows,
    }
    deployment = serve.deployment(
        Replica,
        name="model",
        num_replicas=None if is_scaled else replicas.number,
        autoscaling_config=scaling if is_scaled else None,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": gpus},
        max_ongoing_requests=2 * replicas.batch_rows,  # the next questions are there when rows become free
        graceful_shutdown_timeout_s=options.grace_s,
        health_check_period_s=5,
        logging_config=_QUIET,
    )
    threads = max(1, usable_cpus() // replicas.maximum)
    bound = deployment.bind(options.models, "cuda" if gpus else "cpu", replicas.batch_rows, threads)
    try:
        return serve.run(bound, name=_APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise ConfigError(_reason(error)) from None


def _reason(error: RuntimeError) -> str:
    """Return the last line of what a replica said when it could not open its models."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error: " in line]
    return told[-1].partition("Error: ")[2] if told else "the model could not be opened"


class RayBackend:
    """Asks the replicas through Ray Serve, which spreads questions over them.

    A question whose replica dies is asked once more, unless part of its answer was already sent.
    """

    def __init__(self, handle: Any) -> None:
        """Use a handle of the deployment.

        Args:
            handle: what `serve.run` returned.
        """
        self._handle = handle

    async def is_ready(self) -> bool:
        """Whether a replica runs."""
        status = await asyncio.to_thread(serve.status)
        application = status.applications.get(_APPLICATION)
        return application is not None and any(
            one.replica_states.get("RUNNING", 0) for one in application.deployments.values()
        )

    async def complete(self, model: str, question: Question) -> Reply:
        """Return a whole answer; see `Backend.complete`."""
        for attempt in range(_TRIES):
            response = self._handle.complete.remote(model, question)
            try:
                found: Reply | RefusedError = await response
            except _UNAVAILABLE as error:
                _give_up(error, attempt)
                continue
            except BaseException:
                response.cancel()
                raise
            if isinstance(found, RefusedError):
                raise found
            return found
        raise AssertionError("the last attempt returns or raises")

    async def stream(self, model: str, question: Question) -> AsyncGenerator[Piece, None]:
        """Yield an answer in pieces; see `Backend.stream`."""
        for attempt in range(_TRIES):
            response, has_begun = self._handle.options(stream=True).stream.remote(model, question), False
            try:
                async for piece in response:
                    if isinstance(piece, RefusedError):
                        raise piece
                    has_begun = True
                    yield piece
                return
            except _UNAVAILABLE as error:
                _give_up(error, _TRIES if has_begun else attempt)
            except BaseException:
                response.cancel()
                raise


def _give_up(error: Exception, attempt: int) -> None:
    """Return where another attempt may help."""
    logger.warning("a replica was lost: %s", type(error).__name__)
    if attempt + 1 >= _TRIES:
        raise unavailable("the copy of the model that worked on this request was lost; send it again") from None
