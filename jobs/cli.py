"""The `ray-llava` command: its verbs and its exit codes.

Each verb is a module of this package. Logging is configured here and nowhere else.
"""

import atexit
import logging
import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, Literal

import typer
from rich.markup import escape

from jobs import (
    cache_features,
    chat,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    generate,
    import_model,
    index,
    inspect,
    merge,
    mlflow_replay,
    plan,
    pretrain,
    serve,
    submit,
    submitted,
    verify,
)
from jobs.console import LOG_FORMAT, message_console, writes_json
from jobs.failures import classify, remedy
from jobs.log_format import JsonFormatter, json_line
from pipeline.parallel.stop_signals import raise_on_stop_signals

_INTERRUPTED = 130  # how click ends on every KeyboardInterrupt

app = typer.Typer(
    name="ray-llava",
    help="Train LLaVA-style vision-language models from WebDataset shards on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
app.command("pretrain")(pretrain.run)
app.command("finetune")(finetune.run)
app.command("convert")(convert.run)
app.command("index")(index.run)
app.command("doctor")(doctor.run)
app.command("inspect")(inspect.run)
app.command("plan")(plan.run)
app.command("cache-features")(cache_features.run)
app.command("generate")(generate.run)
app.command("chat")(chat.run)
app.command("serve")(serve.run)
app.command("export")(export.run)
app.command("verify")(verify.run)
app.command("import")(import_model.run)
app.command("merge")(merge.run)
app.command("evaluate")(evaluate.run)
app.command("demo")(demo.run)
app.command("submit")(submit.run)
app.command("list")(submitted.list_jobs)
app.command("status")(submitted.status)
app.command("follow")(submitted.follow)
app.command("stop")(submitted.stop)
app.command("mlflow-replay")(mlflow_replay.run)

LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option(envvar=LOG_FORMAT, help="json: one object per line, for systems that collect logs."),
]
LogLevel = Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]


@app.callback()
def configure(log_level: LogLevel = "info", log_format: LogFormat = "text") -> None:
    """Train LLaVA-style vision-language models from WebDataset shards on Ray."""
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter(f"invalid log level {log_level!r}; choose debug, info, warning or error")
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    os.environ[LOG_FORMAT] = log_format
    for package in ("jobs", "pipeline", "model"):
        logging.getLogger(package).setLevel(level)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    if not sys.stderr.isatty():  # bars of Hugging Face libraries fill job logs
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    """Be the program `ray-llava`: run the command line, and end so that no thread can spoil the exit code.

    Threads that still work, such as gloo's or one that prepares the next batch, abort a process whose interpreter takes
    itself apart: a finished run then counts as failed (pytorch/pytorch#190489). So the process ends where that begins.
    """
    received = raise_on_stop_signals()
    ending = _Ending()
    atexit.register(ending.end)  # before all others, so that it is called after them
    try:
        run()
    except SystemExit as ended:
        ending.exit_code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if ending.exit_code == _INTERRUPTED and received.signum is not None:
            ending.exit_code = 128 + received.signum
        raise


def run() -> None:
    """Run the command line; an error ends it with one message and the exit code of its kind."""
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        failure = classify(error)
        if not failure.is_explained or logging.getLogger("jobs").isEnabledFor(logging.DEBUG):
            if writes_json():
                sys.stderr.write(json_line("ERROR", "jobs", "a bug, please report it", error) + "\n")
            else:
                traceback.print_exception(error)
        message = (str(error) or type(error).__name__) + remedy(error)
        message_console().print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(failure.exit_code)


class _Ending:
    """The end of the process, with the exit code it is to have."""

    def __init__(self) -> None:
        self.exit_code = 1

    def end(self) -> None:
        with suppress(OSError, ValueError):  # the reader is gone, or it is closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.exit_code)


if __name__ == "__main__":
    main()
