"""``--push-to-hub ID``: an export as a Hugging Face repository.

What the client raises is not one tree (its own errors, httpx's, urllib3's), so all of it is caught.
"""

from __future__ import annotations

from pathlib import Path

from gkd_scale.commands import shell
from gkd_scale.errors import ConfigError, UserError, one_line


def require_access(repository: str) -> None:
    """ConfigError or UserError if there is no such name, no token, or no access."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(
            f"--push-to-hub '{repository}' is no repository: {one_line(error)[:200]}", "give USER/NAME"
        ) from None
    if get_token() is None:
        raise UserError("--push-to-hub: there is no Hugging Face token", "run hf auth login, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as error:
        reason = one_line(error)[:200]
        raise UserError(
            f"--push-to-hub: the Hugging Face Hub cannot be reached, or refuses the token: {reason}",
            "check the network and HF_TOKEN, or leave --push-to-hub out",
        ) from None


def push(folder: Path, repository: str) -> str:
    """Upload a finished export; the repository's address. UserError if that fails: the export stays."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="gkd-scale export")
    except Exception as error:
        raise UserError(
            f"{folder} is complete, but could not be uploaded to {repository}: {one_line(error)[:200]}",
            f"upload it with: {shell('hf', 'upload', repository, folder)}",
        ) from None
    return str(address)
