"""Whether a Ray head lets this process in, asked in one call; Ray tries for most of a minute and names no token."""

from __future__ import annotations

import os

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import CheckAliveReply, CheckAliveRequest

from pipeline.config import ConfigError
from pipeline.launch.on_ray.address import check_listens, endpoint

_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_TIMEOUT_S = 10.0
_WHERE = "on the head node: the file that its RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"


def check_admits(address: str) -> None:
    """Ask a Ray head whether it is one, whether it takes this process's token, and which Ray it runs.

    Args:
        address: `HOST:PORT`; others, such as `ray://`, are left to Ray.

    Raises:
        ConfigError: the token is missing or wrong, or the cluster runs another Ray.
        ConnectionError: nothing answers, or no Ray head does.
    """
    check_listens(address)
    if endpoint(address) is None or "://" in address:
        return
    try:
        with init_grpc_channel(address) as channel:
            call = channel.unary_unary(
                _CALL,
                request_serializer=CheckAliveRequest.SerializeToString,
                response_deserializer=CheckAliveReply.FromString,
            )
            reply = call(CheckAliveRequest(), timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise ConfigError(f"RAY_ADDRESS {address}: {_explain_token()}") from None
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
            raise ConnectionError(
                f"RAY_ADDRESS {address}: what listens there is no Ray head ({error.details()}); the port is the one of "
                "`ray start --head --port`, 6379 unless chosen, not that of the dashboard"
            ) from None
        return  # a head that is busy: Ray waits longer
    if reply.ray_version and reply.ray_version != ray.__version__:
        raise ConfigError(
            f"RAY_ADDRESS {address}: the cluster runs Ray {reply.ray_version}, this process Ray {ray.__version__}; "
            f"install ray=={reply.ray_version} here, or start the run on the cluster with `ray-llava submit`"
        )


def _explain_token() -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return (
            "the cluster requires a token, this process sends none: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
            f"to a file with the cluster's token ({_WHERE})"
        )
    source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"the cluster refused the token of {source or '~/.ray/auth_token'}; take the cluster's own ({_WHERE})"
