"""The hub's errors in words that say what to do. Knows huggingface_hub's errors; asks nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from ..errors import MoEColabError
from ..planner.access import TOKENS, gated, give_token


@contextlib.contextmanager
def hub_errors(repo_id: str, revision: str | None, folder: Path | None = None) -> Iterator[None]:
    """Turns the hub's errors into MoEColabErrors that say what to do. `folder`: where files are
    written, if not to the hub's cache folder."""
    page = f"{os.environ.get('HF_ENDPOINT') or constants.ENDPOINT}/{repo_id}"
    try:
        yield
    except GatedRepoError as error:
        raise MoEColabError(f"{repo_id} is {gated(repo_id, error)}.") from error
    except RepositoryNotFoundError as error:
        raise MoEColabError(
            f"{repo_id} is neither a folder on this machine nor a model on the hub that you may "
            f"see: check its name, and if it is private, {give_token()}."
        ) from error
    except RevisionNotFoundError as error:
        raise MoEColabError(
            f"{repo_id} has no revision {revision!r}: see {page}/commits."
        ) from error
    except HFValidationError as error:
        raise MoEColabError(f"{repo_id} is not a name that the hub allows: {error}") from error
    except SafetensorsParsingError as error:
        raise MoEColabError(f"{repo_id} has no complete safetensors weights: {error}") from error
    except (LocalEntryNotFoundError, HTTPError, ConnectionError) as error:
        raise MoEColabError(no_answer(repo_id, error)) from error
    except OSError as error:
        raise MoEColabError(
            f"{repo_id} could not be written to {folder or constants.HF_HUB_CACHE}: "
            f"{error.strerror or error}."
        ) from error


def no_answer(repo_id: str, error: BaseException) -> str:
    """What to do where the hub gave no file: for a refused token, or else to wait."""
    status, cause = None, error
    while cause is not None and status is None:  # huggingface_hub wraps what the hub answered
        status = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__
    if status == 401:
        return f"the hub does not know your token, which may have expired: {give_token()}."
    if status == 403:
        return (
            f"the hub does not let your token read {repo_id}: allow the token to read gated models "
            f"at {TOKENS}."
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{repo_id} is not complete on this machine, and the hub does not answer: try again "
            "when connected; a download continues where it stopped."
        )
    return (
        f"the hub did not give {repo_id} ({type(error).__name__}): try again later; a download "
        "continues where it stopped."
    )
