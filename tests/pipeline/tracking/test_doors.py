"""MLflow servers behind doors as people have them: passwords, tokens, own certificates, path prefixes of proxies."""

from __future__ import annotations

import base64
import datetime
import json
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient

from pipeline.launch.watch import tracked_run
from pipeline.tools.doctor.finding import Finding
from pipeline.tools.doctor.services import check_tracking
from pipeline.tracking import dashboard_command, open_run, read_state, replay
from tests.pipeline.tracking.servers import Relay, Server, serve_mlflow
from tests.pipeline.tracking.tracked_runs import MakeConfig, expected_history, history, write_steps

ADMIN = ("admin", "long-enough-for-an-admin")
USER = ("ada", "long-enough-for-a-user")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a name and a password, and knows one person besides its administrator."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with serve_mlflow(
        f"sqlite:///{folder}/server.db",
        "--app-name=basic-auth",
        f"--artifacts-destination={folder}/files",
        MLFLOW_AUTH_CONFIG_PATH=str(settings),
        MLFLOW_FLASK_SERVER_SECRET_KEY="for this test",
    ) as server:
        account = json.dumps({"username": USER[0], "password": USER[1]}).encode()
        login = base64.b64encode(":".join(ADMIN).encode()).decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.uri}/api/2.0/mlflow/users/create", account, headers)
        urllib.request.urlopen(request).close()
        yield server


def log_in(monkeypatch: pytest.MonkeyPatch, name: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def examine(make_config: MakeConfig, uri: str) -> Finding:
    config = make_config(uri=uri)
    return check_tracking(config.tracking, Path(config.run_dir))


def run_through(make_config: MakeConfig, uri: str) -> str:
    """Track a small run with files; everything must arrive. Returns its id."""
    config = make_config(uri=uri)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.02)
    write_steps(config, range(5))
    (Path(config.run_dir) / "result.bin").write_bytes(b"weights")
    tracker.log_artifacts(Path(config.run_dir) / "result.bin")
    tracker.finish("FINISHED")
    assert (tracker.close(), tracker.pending_files()) == (0, [])
    assert tracker.run_id is not None
    assert history(uri, tracker.run_id, "train/loss") == expected_history(range(5))
    assert "result.bin" in {file.path for file in MlflowClient(uri).list_artifacts(tracker.run_id)}
    return tracker.run_id


def test_password_of_a_user_lets_a_run_through_and_a_wrong_one_keeps_everything_for_later(
    make_config: MakeConfig, guarded: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log_in(monkeypatch, USER[0], "not the password")
    refused = examine(make_config, guarded.uri)
    assert refused.status == "warning"
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused.detail
    config = make_config(uri=guarded.uri)
    tracker = open_run(tracked_run(config), tags={}, interval_s=0.02)
    write_steps(config, range(3))
    tracker.finish("FINISHED")
    assert tracker.close(1.0) > 0
    assert "not the password" not in caplog.text + refused.detail

    log_in(monkeypatch, *USER)
    found = examine(make_config, guarded.uri)
    assert (found.status, f"{config.tracking.experiment!r} will be created" in found.detail) == ("ok", True), (
        found.detail
    )
    assert replay(Path(config.run_dir), None).num_pending() == 0
    state = read_state(Path(config.run_dir))
    assert state is not None
    assert state.run_id is not None
    assert history(guarded.uri, state.run_id, "train/loss") == expected_history(range(3))
    assert examine(make_config, guarded.uri).detail.endswith("answers, takes calls and files")


def test_experiment_of_somebody_else_that_may_only_be_read_is_named_by_doctor(
    make_config: MakeConfig, guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, *ADMIN)
    MlflowClient(guarded.uri).create_experiment(make_config().tracking.experiment)
    log_in(monkeypatch, *USER)
    found = examine(make_config, guarded.uri)
    assert (found.status, "may not write" in found.detail) == ("warning", True), found.detail


def test_bearer_token_lets_a_run_through_and_a_missing_one_is_named(
    make_config: MakeConfig, mlflow_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Relay(mlflow_server, token="t0ken-of-the-gate")
    try:
        refused = examine(make_config, relay.uri)
        assert (refused.status, "MLFLOW_TRACKING_TOKEN" in refused.detail) == ("warning", True)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-of-the-gate")
        assert examine(make_config, relay.uri).status == "ok"
        run_through(make_config, relay.uri)
    finally:
        relay.close()


def test_certificate_of_an_own_authority_is_asked_for_and_then_trusted(
    make_config: MakeConfig, mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = own_authority(tmp_path)
    relay = Relay(mlflow_server, tls=context)
    try:
        refused = examine(make_config, relay.uri)
        assert (refused.status, "MLFLOW_TRACKING_SERVER_CERT_PATH" in refused.detail) == ("warning", True)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
        assert examine(make_config, relay.uri).status == "ok"
        run_through(make_config, relay.uri)
    finally:
        relay.close()


def test_prefix_of_a_proxy_is_part_of_every_address_and_of_the_printed_page(
    make_config: MakeConfig, mlflow_server: Server
) -> None:
    relay = Relay(mlflow_server, prefix="/tools/mlflow")
    try:
        wrong = examine(make_config, relay.uri.removesuffix("/tools/mlflow"))
        assert (wrong.status, "path" in wrong.detail) == ("warning", True), wrong.detail
        assert examine(make_config, f"{relay.uri}/").status == "ok"
        run_id = run_through(make_config, relay.uri)
        state = read_state(Path(make_config().run_dir))
        assert state is not None
        page = f"{relay.uri}/#/experiments/{state.experiment_id}/runs/{run_id}?workflowType=machine_learning"
        assert dashboard_command(f"{relay.uri}/", state) == page
    finally:
        relay.close()


def own_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return the certificate of a new authority, and a server's context with a certificate signed by it."""
    begin, key = datetime.datetime.now(datetime.UTC), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority of our own")])

    def build(subject: x509.Name, public_key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        own = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
        own = own.serial_number(x509.random_serial_number()).not_valid_before(begin - datetime.timedelta(hours=1))
        own = own.not_valid_after(begin + datetime.timedelta(hours=1)).add_extension(names, critical=False)
        own = own.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        own = own.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        own = own.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        usage = x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False)
        return own.add_extension(usage, critical=True).sign(key, hashes.SHA256())

    authority = folder / "authority.pem"
    pem = serialization.Encoding.PEM
    authority.write_bytes(build(issuer, key.public_key(), is_authority=True).public_bytes(pem))
    server_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    chain = folder / "server.pem"
    plain = serialization.NoEncryption()
    chain.write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + build(subject, server_key.public_key(), is_authority=False).public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return authority, context
