"""`ray-llava serve`: a trained model behind an address, for clients of OpenAI's chat completions."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import output_console
from pipeline.config import ConfigError

if TYPE_CHECKING:
    from pipeline.serving.options import ServedModel

Model = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Run, checkpoint of a run, model folder, adapters, or exported folder.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; another one than loopback needs RAY_LLAVA_API_KEY.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Name = Annotated[str | None, typer.Option(help="Name of the model in requests; default: that of its folder.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=FOLDER", help="Serve this too, on the same base weights; repeatable."),
]
NumReplicas = Annotated[int, typer.Option(min=1, help="Copies of the model that always run.")]
MaxReplicas = Annotated[int | None, typer.Option(min=1, help="Copies under load; default: as many as --replicas.")]
Cpus = Annotated[float, typer.Option(min=0.01, help="CPUs of the Ray cluster per copy.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="GPUs per copy, also a fraction; default: one if any.")]
BatchRows = Annotated[int, typer.Option(min=1, help="Answers that a copy writes at the same time.")]
MaxRequests = Annotated[int, typer.Option(min=1, help="Requests under way; further ones get status 429.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer that a request may ask for, tokens.")]
MaxImages = Annotated[int, typer.Option(min=0, help="Images per request.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Pixels per image.")]
MaxBody = Annotated[int, typer.Option(min=1, metavar="MIB", help="Longest request body, MiB.")]
ImageHosts = Annotated[
    list[str] | None,
    typer.Option("--image-host", metavar="HOST", help="Fetch images from this host; repeatable. Default: none."),
]
Grace = Annotated[float, typer.Option(min=0, max=3600, help="Seconds for answers under way after SIGTERM.")]


def run(
    folder: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    adapter: Adapters = None,
    replicas: NumReplicas = 1,
    max_replicas: MaxReplicas = None,
    cpus_per_replica: Cpus = 1.0,
    gpus_per_replica: Gpus = None,
    batch_rows: BatchRows = 16,
    max_requests: MaxRequests = 512,
    max_tokens: MaxTokens = 4096,
    max_images: MaxImages = 16,
    max_image_pixels: MaxPixels = 50_000_000,
    max_body_mib: MaxBody = 32,
    image_host: ImageHosts = None,
    grace_s: Grace = 10.0,
) -> None:
    """Serve a model in the format of OpenAI's chat completions, on Ray Serve, until SIGTERM or Ctrl-C."""
    from pipeline.samples.image import ImageLimits
    from pipeline.serving.limits import Limits
    from pipeline.serving.options import KEY_VARIABLE, Replicas, ServedModel, ServeOptions

    models = (ServedModel(name or folder.resolve().name, str(folder)), *map(_read_adapter, adapter or ()))
    for model in models:
        if not Path(model.path).is_dir():
            raise ConfigError(f"{model.path}: no such folder; expected a run, a checkpoint of one, or a model folder")
    options = ServeOptions(
        models=tuple(ServedModel(one.name, str(Path(one.path).resolve())) for one in models),
        host=host,
        port=port,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        image_hosts=frozenset(image_host or ()),
        replicas=Replicas(replicas, max_replicas or replicas, cpus_per_replica, gpus_per_replica, batch_rows),
        limits=Limits(
            body_bytes=max_body_mib << 20,
            held_bytes=max(512, 4 * max_body_mib) << 20,
            requests=max_requests,
            images=max_images,
            image=ImageLimits(max_pixels=max_image_pixels),
            new_tokens=max_tokens,
            default_new_tokens=min(512, max_tokens),
        ),
        grace_s=grace_s,
    )
    from pipeline.serving.server import serve_models  # only now: it loads Ray

    names = ", ".join(one.name for one in options.models)
    serve_models(options, lambda address: output_console().print(f"serving {names}: {address}/v1", soft_wrap=True))


def _read_adapter(text: str) -> "ServedModel":
    from pipeline.serving.options import ServedModel

    name, is_given, path = text.partition("=")
    if not is_given or not name or not path:
        raise ConfigError(f"--adapter {text}: expected NAME=FOLDER")
    return ServedModel(name, path)
