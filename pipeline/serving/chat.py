"""A chat page, or a chat at the terminal, with a model in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pipeline.parallel.cpus import usable_cpus
from pipeline.serving.answering.local import LocalBackend
from pipeline.serving.answering.replica import Replica
from pipeline.serving.options import ServeOptions
from pipeline.serving.page.examples import held_out_shards, read_examples
from pipeline.serving.page.routes import ChatPage
from pipeline.serving.server import bound, listen

logger = logging.getLogger(__name__)


def open_page(options: ServeOptions, shards: Sequence[str], device: str, on_ready: Callable[[str], None]) -> None:
    """Serve the chat page until a signal comes.

    Args:
        options: the model, and where to listen.
        shards: of held-out samples to try; without any, those that the run evaluates on.
        device: cpu, cuda, ...
        on_ready: gets the address.

    Raises:
        ConfigError: the address is taken, or the model cannot be opened.
        ValueError: a file or a shard cannot be read.
    """
    with bound(options.host, options.port) as listener:
        replica = open_replica(options, device)
        samples = read_examples(shards or held_out_shards(options.models[0].path))
        listen(options, LocalBackend(replica), listener, on_ready, ChatPage(replica.describe, samples))


def open_replica(options: ServeOptions, device: str) -> Replica:
    """Open the models in this process."""
    return Replica(options.models, device, options.replicas.batch_rows, usable_cpus())
