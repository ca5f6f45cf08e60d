"""Hub repository id -> ModelSpec; fetches config.json and nothing that could be executed.

One request for each file, without the hub client's retries: a planner that waits half a minute
for a network that is not there is no help. A copy in the hub client's cache serves when offline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.errors import EnvironmentProblem, InvalidInputError

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

_QUANT_CONFIG = "hf_quant_config.json"
_TIMEOUT_S = 10.0


def spec_from_hub(name: str) -> ModelSpec:
    """Read `owner/name` or `owner/name@revision` from the hub, or from its local cache.

    Raises EnvironmentProblem without network or for a gated repository, InvalidInputError for a
    repository that does not exist.
    """
    from moesize.readers.hf.read import spec_from_config

    repo, _, revision = name.partition("@")
    config = _fetch(repo, "config.json", revision or None)
    if config is None:
        raise InvalidInputError(f"{repo} has no config.json on the hub", "is it a model?")
    return spec_from_config(
        config,
        file=f"{name}/config.json",
        hub_id=repo,
        source=f"https://huggingface.co/{repo}",
        quant_config=_fetch(repo, _QUANT_CONFIG, revision or None),
    )


def _fetch(repo: str, filename: str, revision: str | None) -> Any:
    """A parsed JSON file of a repository; None when the repository does not have it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, not in __all__
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    from moesize.files import parse_json

    url = hf_hub_url(repo, filename, revision=revision)
    try:
        response = get_session().get(
            url, headers=build_hf_headers(), timeout=_TIMEOUT_S, follow_redirects=True
        )
    except Exception as error:
        # Which HTTP library raises here depends on the hub client's release (httpx, httpx2).
        return _offline(repo, filename, revision, error)
    try:
        hf_raise_for_status(response)
    except GatedRepoError as error:
        raise EnvironmentProblem(
            f"{repo} is gated: its config.json needs a login",
            "log in with `hf auth login`, or download config.json and give its path",
        ) from error
    except RevisionNotFoundError as error:
        raise InvalidInputError(f"{repo} has no revision {revision!r} on the hub") from error
    except EntryNotFoundError:
        return None
    except RepositoryNotFoundError as error:
        raise InvalidInputError(
            f"no repository {repo!r} on the hub (or it is private)", "check the spelling"
        ) from error
    except HfHubHTTPError as error:
        return _offline(repo, filename, revision, error)
    return parse_json(response.text, f"{repo}/{filename}")


def _offline(repo: str, filename: str, revision: str | None, error: Exception) -> Any:
    """The copy in the hub client's cache. Raises EnvironmentProblem when there is none."""
    found, cached = _from_cache(repo, filename, revision)
    if found:
        return cached
    raise EnvironmentProblem(
        f"{repo} is not in the catalogue and the hub cannot be reached ({type(error).__name__})",
        "give a local config.json instead, or a name from `moesize models`",
    ) from error


def _from_cache(repo: str, filename: str, revision: str | None) -> tuple[bool, Any]:
    """(known, content) of the hub client's cache: it also remembers which files do not exist."""
    from pathlib import Path

    from huggingface_hub import try_to_load_from_cache

    from moesize.files import read_json

    path = try_to_load_from_cache(repo, filename, revision=revision)
    if path is None:
        # A cached config.json without a cached hf_quant_config.json: there is none.
        return filename == _QUANT_CONFIG, None
    return True, read_json(Path(path)) if isinstance(path, str) else None
