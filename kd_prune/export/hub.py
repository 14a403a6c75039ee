"""Upload of an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from kd_prune.errors import ConfigError

KEY = "push_to_hub"


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Create a model repository if it does not exist, upload a folder, return its address.

    The token is the one that ``hf auth login`` stored, or ``HF_TOKEN``.

    Args:
        folder: The folder.
        repo: Id of the repository, ``<user>/<name>``.
        private: Whether a new repository is private.

    Raises:
        ConfigError: The id is not valid, or the Hub refuses the upload or cannot be reached.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message=f"Upload {folder.name}"
        )
    except Exception as error:  # of any type: each layer of the network raises another
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            KEY, repo, f"the Hub did not take it ({reason})", f"the folder is there: {folder}"
        ) from error
    return str(url)
