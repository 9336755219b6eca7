"""What the verb adds to the checks: one that fails itself is a finding, and the cluster is asked for its token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from jobs.doctor import check_token, examine
from pipeline.config import TrackingConfig
from tests.pipeline.tools.doctor.configs import small_config


@contextmanager
def dashboard(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_check_that_fails_itself_is_an_error_and_the_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("entry")

    monkeypatch.setattr("pipeline.tools.doctor.run_folder.check_disk", fail)
    config = small_config(tmp_path).model_copy(update={"tracking": TrackingConfig(enabled=False)})
    findings = {finding.check: finding for finding in examine(config)}
    assert findings.pop("disk space")[1:3] == ("error", "cannot be checked, KeyError: 'entry'")
    assert {finding.status for finding in findings.values()} == {"ok"}
    expected = {"lock", "config", "checkpoints", "index", "tokenizer and template", "language model", "projector"}
    assert expected | {"Ray", "MLflow"} < findings.keys()


@pytest.mark.parametrize(
    ("status", "expected", "said"),
    [(401, "ok", "refuses requests without one"), (200, "warning", "accepts requests without a token")],
)
def test_token_is_required_when_the_cluster_refuses_who_has_none(status: int, expected: str, said: str) -> None:
    with dashboard(status) as address:
        finding = check_token({"RAY_ADDRESS": "head:6379", "RAY_API_SERVER_ADDRESS": address})
    assert finding.status == expected
    assert said in finding.detail
    away = check_token({"RAY_ADDRESS": "head:6379", "RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": address})
    assert away.status == "warning"
    assert f"no Ray cluster answers at {address}" in away.detail
