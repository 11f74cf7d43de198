"""Access to the hub: the user's token, and what to do where the hub refuses. Knows environment
variables and the hub's errors; knows no files of models."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError

from ..machine.folders import environment
from .sources import HUB

TOKENS = f"{HUB}/settings/tokens"
GIVE_TOKEN = {
    "colab": (
        f"add a token from {TOKENS} as the secret HF_TOKEN (the key icon on the left), and let "
        "this notebook read it"
    ),
    "kaggle": (
        f'set os.environ["HF_TOKEN"] to a token from {TOKENS} (Add-ons › Secrets can keep it)'
    ),
    "local": f"log in with `hf auth login`, or set HF_TOKEN to a token from {TOKENS}",
}


def hub_access(token: str | None = None) -> HfApi:
    """Access to the hub with this token, or with the user's own, if there is one. On Colab without
    a token, access is anonymous: otherwise huggingface_hub would read Colab's secrets, which asks
    the user, from any thread."""
    own = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    has_own = any(map(os.environ.get, own)) or Path(constants.HF_TOKEN_PATH).is_file()
    anonymous = token is None and environment() == "colab" and not has_own
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=False if anonymous else token)


def give_token() -> str:
    """What to do to use a token here."""
    return GIVE_TOKEN[environment()]


def gated(repo_id: str, error: GatedRepoError) -> str:
    """What to do about a gated model, in words that go on after its name and "is". A mirror cannot
    accept a licence, so the page is always on the hub itself."""
    page = f"{HUB}/{repo_id}"
    if error.response.status_code == 403:
        return (
            f"gated, and the account of your token may not read it yet: accept its licence at "
            f"{page} with that account, and wait if the owners answer each request"
        )
    return f"gated: accept its licence at {page}, then {give_token()}"
