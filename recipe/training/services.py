"""Whether the services that a run reports to will take what it sends, found out in seconds, before anything else.

Their own libraries would find out minutes later, after the data were prepared: they try again and again, in silence.
"""

import contextlib
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from recipe.command_line import UserError
from recipe.configuration.outputs import Logging, MLflow, WandB

CONNECT_SECONDS, ANSWER_SECONDS = 5, 8


class ServiceError(UserError):
    """A service that does not answer or does not know us; the message says how to train without it."""


def check_services(logging: Logging) -> None:
    """Raises ServiceError if W&B or MLflow is asked for and cannot be used. Takes at most some 15 seconds."""
    if logging.wandb is not None and logging.wandb.is_online():
        _check_wandb(logging.wandb)
    if logging.mlflow is not None:
        _check_mlflow(logging.mlflow)


def _check_wandb(settings: WandB) -> None:
    import requests
    import wandb

    way_out = "or set logging.wandb.mode=offline (wandb sync sends it later), or logging.wandb=null"
    server, key = str(wandb.api.settings("base_url")), wandb.api.api_key
    if not key:
        if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            return
        raise ServiceError(
            f"logging.wandb: there is no key for {_shown(server)}; set WANDB_API_KEY or run `wandb login`, {way_out}"
        )
    try:
        answer = requests.post(
            f"{server.rstrip('/')}/graphql",
            json={"query": "query Viewer { viewer { id } }"},
            auth=("api", key),
            timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
        )
        viewer = (answer.json().get("data") or {}).get("viewer") if answer.ok else None
    except (requests.RequestException, ValueError, AttributeError) as error:  # a ValueError: the answer is not JSON
        reason = _reason(error)
        raise ServiceError(
            f"logging.wandb: {_shown(server)} cannot be reached ({reason}); check the network and WANDB_BASE_URL, "
            f"{way_out}"
        ) from None
    if answer.status_code in (401, 403) or (answer.ok and not viewer):
        raise ServiceError(
            f"logging.wandb: {_shown(server)} does not know the key; correct WANDB_API_KEY (or ~/.netrc), {way_out}"
        )
    if not answer.ok:
        raise ServiceError(
            f"logging.wandb: {_shown(server)} answers with status {answer.status_code}; check WANDB_BASE_URL or try "
            f"later, {way_out}"
        )


def _check_mlflow(settings: MLflow) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException, RestException

    uri = settings.tracking_uri or ("databricks" if os.environ.get("DATABRICKS_TOKEN") else mlflow.get_tracking_uri())
    start = f"logging.mlflow.tracking_uri = {_shown(uri)}"
    way_out = "correct logging.mlflow.tracking_uri, or set logging.mlflow=null"
    try:
        with _without_patience():
            experiment = mlflow.MlflowClient(uri).get_experiment_by_name(settings.experiment)
    except RestException as error:
        raise ServiceError(
            f"{start}: the server refuses ({error.error_code}); check MLFLOW_TRACKING_USERNAME, ..._PASSWORD or "
            f"..._TOKEN, {way_out}"
        ) from None
    except (MlflowException, OSError) as error:
        raise ServiceError(f"{start}: no MLflow server answers there ({_reason(error)}); start it, {way_out}") from None
    except Exception as error:  # of whatever stands behind the address: databases, Databricks
        raise ServiceError(f"{start}: cannot be used ({type(error).__name__}); {way_out}") from None
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise ServiceError(
            f"logging.mlflow.experiment = {settings.experiment}: was deleted on {_shown(uri)}; restore it there, or "
            "choose another name"
        )


@contextlib.contextmanager
def _without_patience() -> Iterator[None]:
    """Within, MLflow asks once and waits for seconds, unless the user set how often and how long."""
    names = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS)}
    own = {name: value for name, value in names.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _shown(address: str) -> str:
    """An address without the user and the password that may stand in it."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.netloc else address


def _reason(error: Exception) -> str:
    """A few words; the messages of libraries may hold passwords."""
    text = str(error)
    known = {
        "refused": "connection refused",
        "timed out": "no answer in time",
        "resolve": "the name is not known",
        "getaddrinfo": "the name is not known",
        "Name or service": "the name is not known",
        "unreachable": "no network",
        "SSL": "no secure connection",
        "JSON": "another kind of server",
        "Expecting value": "another kind of server",
    }
    return next((words for part, words in known.items() if part in text), type(error).__name__)
