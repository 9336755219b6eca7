"""What the processes of a run print, sorted: this project's log lines to the driver's log, all others to a file.

Ray prints every line of every worker on the driver's console; after a lost node these are hundreds, with tracebacks of
each layer, and they hide the one line that says what happens now.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

from pipeline.parallel.worker_log import parse_line

logger = logging.getLogger(__name__)

LINES_FILE = "ray_workers.log"
_RAY_HANDLER = "ray_print_logs"  # what Ray calls its own
_OWN_HANDLER = "ray_llava_lines"
_MOST_BYTES = 20_000_000  # of the file, and as many of the one before
_REPEAT_AFTER_S = 10.0


@contextmanager
def worker_lines_apart(run_dir: str) -> Iterator[Path]:
    """Inside the block, print only this project's lines of workers; yields the file that gets the others."""
    path = Path(run_dir) / LINES_FILE
    if "://" in run_dir:
        path = Path(tempfile.gettempdir()) / f"{run_dir.rstrip('/').rpartition('/')[2]}-{LINES_FILE}"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = RotatingFileHandler(path, maxBytes=_MOST_BYTES, backupCount=1, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = [handler for name, handler in dispatcher.handlers if name == _RAY_HANDLER]
    ray_logger = logging.getLogger("ray")
    shown = list(ray_logger.handlers)
    # 1. Ray's lines of this process go to the file too; what ends the run is in its error.
    for handler in shown:
        ray_logger.removeHandler(handler)
    ray_logger.addHandler(file)
    # 2. Lines of other processes are sorted.
    dispatcher.remove_handler(_RAY_HANDLER)
    dispatcher.add_handler(_OWN_HANDLER, _Sorter(file, path).take)
    try:
        yield path
    finally:
        dispatcher.remove_handler(_OWN_HANDLER)
        for handler in before:
            dispatcher.add_handler(_RAY_HANDLER, handler)
        ray_logger.removeHandler(file)
        for handler in shown:
            ray_logger.addHandler(handler)
        file.close()


class _Sorter:
    """Takes batches of lines as Ray's log monitors send them."""

    def __init__(self, file: RotatingFileHandler, path: Path) -> None:
        self._file, self._path = file, path
        self._is_told = False
        self._last: dict[tuple[str, str], float] = {}

    def take(self, batch: dict[str, Any]) -> None:
        """Sort the lines of a batch; raises nothing, since Ray's thread would end."""
        who = batch.get("actor_name") or batch.get("task_name") or "process"
        where = f"{who} {batch.get('pid')} on {batch.get('ip')}"
        for line in batch.get("lines", []):
            if (own := parse_line(line)) is None:
                self._keep(f"({where}) {line}")
            elif self._is_new(own.logger, own.message):
                logging.getLogger(own.logger).log(own.level, "%s (%s)", own.message, where)

    def _keep(self, text: str) -> None:
        self._file.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))
        if not self._is_told:
            self._is_told = True
            logger.info("what Ray and the processes of the run print goes to %s", self._path)

    def _is_new(self, name: str, message: str) -> bool:
        """Tell whether a message was not shown just now: all ranks often say the same."""
        now = time.monotonic()
        is_new = now - self._last.get((name, message), float("-inf")) > _REPEAT_AFTER_S
        if is_new:
            self._last[(name, message)] = now
        return is_new
