"""Hub repository id -> ModelSpec; fetches config.json and nothing that could be executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moesize.core.errors import EnvironmentProblem, InvalidInputError

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

_QUANT_CONFIG = "hf_quant_config.json"


def spec_from_hub(name: str) -> ModelSpec:
    """Read `owner/name` or `owner/name@revision` from the hub (or its local cache).

    Raises EnvironmentProblem without network or for a gated repository, InvalidInputError for a
    repository that does not exist.
    """
    from moesize.files import read_json
    from moesize.readers.hf.read import spec_from_config

    repo, _, revision = name.partition("@")
    config = _fetch(repo, "config.json", revision or None, required=True)
    assert config is not None
    quant = _fetch(repo, _QUANT_CONFIG, revision or None, required=False)
    return spec_from_config(
        read_json(config),
        file=f"{name}/config.json",
        hub_id=repo,
        source=f"https://huggingface.co/{repo}",
        quant_config=read_json(quant) if quant is not None else None,
    )


def _fetch(repo: str, filename: str, revision: str | None, *, required: bool) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo, filename, revision=revision, etag_timeout=10))
    except GatedRepoError as error:
        raise EnvironmentProblem(
            f"{repo} is gated: its config.json needs a login",
            "log in with `hf auth login`, or download config.json and give its path",
        ) from error
    except RepositoryNotFoundError as error:
        raise InvalidInputError(
            f"no repository {repo!r} on the hub (or it is private)", "check the spelling"
        ) from error
    except RevisionNotFoundError as error:
        raise InvalidInputError(f"{repo} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        if not required:
            return None
        raise EnvironmentProblem(
            f"{repo} is not in the catalogue and the hub cannot be reached",
            "give a local config.json instead, or a name from `moesize models`",
        ) from error
    except EntryNotFoundError as error:
        if not required:
            return None
        raise InvalidInputError(f"{repo} has no {filename} on the hub") from error
    except HFValidationError as error:
        raise InvalidInputError(f"{repo!r} is no hub repository id") from error
    except (HfHubHTTPError, OSError) as error:
        if not required:
            return None
        raise EnvironmentProblem(
            f"the hub does not answer for {repo} ({type(error).__name__})",
            "give a local config.json instead",
        ) from error
