"""Services that a run reports to and that do not answer: known at once, in one line, with the way out."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.commands import free_port
from recipe.configuration.outputs import Logging, MLflow, WandB
from recipe.training.services import ServiceError, check_services


class Server(http.server.HTTPServer):
    """Answers everything with one status and body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body = 200, b"{}"
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    do_POST = do_GET


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "DATABRICKS_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.chdir(tmp_path)


def wandb_says(*words: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ServiceError) as caught:
        check_services(Logging(wandb=WandB()))
    message = str(caught.value)
    assert "\n" not in message and "logging.wandb.mode=offline" in message
    assert all(word in message for word in words), message
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_mode_of_the_environment_counts(mode: str, monkeypatch: pytest.MonkeyPatch):
    """As for every program that uses W&B; the key of the configuration goes before it."""
    monkeypatch.setenv("WANDB_MODE", mode)
    check_services(Logging(wandb=WandB()))
    with pytest.raises(ServiceError):
        check_services(Logging(wandb=WandB(mode="online")))


def mlflow_says(uri: str, *words: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ServiceError) as caught:
        check_services(Logging(mlflow=MLflow(tracking_uri=uri)))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("logging.mlflow.")
    assert all(word in message for word in words), message
    assert time.monotonic() - begin < 20


def test_wandb_without_a_key():
    wandb_says("WANDB_API_KEY", "wandb login")


def test_wandb_without_a_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    wandb_says("cannot be reached", "connection refused")
    monkeypatch.setenv("WANDB_BASE_URL", "http://nobody.invalid")
    wandb_says("cannot be reached", "nobody.invalid")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b"{}", "does not know the key"),
        (200, b'{"data": {"viewer": null}}', "does not know the key"),
        (200, b"<html>login</html>", "another kind of server"),
        (502, b"", "status 502"),
    ],
)
def test_wandb_refuses(status: int, body: bytes, said: str, server: Server, monkeypatch: pytest.MonkeyPatch):
    server.status, server.body = status, body
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    wandb_says(said)


def test_wandb_with_a_good_key(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    server.body = json.dumps({"data": {"viewer": {"id": "me"}}}).encode()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login user password {'k' * 40}\n")
    check_services(Logging(wandb=WandB()))


def test_what_is_not_asked_for_is_not_looked_at():
    check_services(Logging())
    check_services(Logging(wandb=WandB(mode="offline")))


def test_mlflow_server_that_is_down():
    port = free_port()
    mlflow_says(f"http://user:secret-word@127.0.0.1:{port}", f"http://127.0.0.1:{port}:", "connection refused")


def test_mlflow_server_that_takes_connections_and_says_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mlflow_says(f"http://127.0.0.1:{silent.getsockname()[1]}", "no answer in time")


@pytest.mark.parametrize(("status", "body"), [(401, b"{}"), (404, b"<html>no</html>"), (200, b"<html>hello</html>")])
def test_mlflow_at_another_servers_address(status: int, body: bytes, server: Server):
    server.status, server.body = status, body
    mlflow_says(server.url, server.url)


def test_mlflow_in_a_folder(tmp_path: Path):
    check_services(Logging(mlflow=MLflow(tracking_uri=(tmp_path / "runs").as_uri())))


def test_mlflow_experiment_that_was_deleted(tmp_path: Path):
    import mlflow

    uri = (tmp_path / "runs").as_uri()
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("edm2"))
    mlflow_says(uri, "was deleted", "choose another name")
