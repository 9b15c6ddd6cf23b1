"""The Hugging Face hub, as far as token shards need it: one listing, and the bytes of a file from some place on.

The only module that knows huggingface_hub and its HTTP client httpx2, and that only once the network is needed: they
take a third of a second to import. Of huggingface_hub it uses where the hub is (HF_ENDPOINT), the token, the session
and the meaning of errors; its own downloads lose what has arrived when they fail or are interrupted. Nothing is sent
but the requests themselves: its look-up of coding agents for the user agent and its log lines are switched off.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from skipsweep.errors import DataError

MAX_WAIT_S = 60.0
"""Longest pause that a server may ask for."""


@dataclass(frozen=True)
class File:
    """A file as the hub lists it."""

    name: str
    size: int
    """Bytes."""
    hash: str
    """`sha256:...` of its content; `git:...`, its name as a git blob, where it is not stored by sha256."""


@dataclass(frozen=True)
class Listing:
    """What lies in a dataset at one commit."""

    commit: str
    files: tuple[File, ...]


class Transient(Exception):
    """What may go away by itself: a broken connection, a server that is overloaded. Says in a few words what."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """Seconds that the server asks to wait."""


def endpoint() -> str:
    """Where the hub is."""
    _library()
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def list_files(repo: str, revision: str) -> Listing:
    """Commit and files of a dataset at a branch, tag or commit: one request.

    Raises Transient, DataError for what no repetition mends.
    """
    from huggingface_hub import HfApi

    with _explained(f"data.repo={repo}, data.revision={revision}"):
        _library()
        found = HfApi(endpoint=endpoint(), library_name="skipsweep").dataset_info(
            repo, revision=revision, files_metadata=True, timeout=_timeout()
        )
        if not found.sha:
            raise ValueError("no commit")
        return Listing(found.sha, tuple(_file(repo, one) for one in found.siblings or ()))


@contextmanager
def reading(repo: str, commit: str, file: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The content of a file from byte `start` on: the byte it does begin at (0 where the server knows no ranges), and
    its pieces. The body of the `with` takes them.

    Raises Transient, also while they are taken; DataError for what no repetition mends.
    """
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers

    with _explained(f"{file} of {repo} at {commit[:12]}"):
        _library()
        url = hf_hub_url(repo, file, repo_type="dataset", revision=commit, endpoint=endpoint())
        # compressed, the bytes of a range would be others
        headers = build_hf_headers(library_name="skipsweep", headers={"Accept-Encoding": "identity"})
        headers |= {"Range": f"bytes={start}-"} if start else {}
        with get_session().stream("GET", url, headers=headers, timeout=_timeout()) as response:
            hf_raise_for_status(response)
            # pieces as they come in: of larger ones, httpx2 would keep back what it has when the connection breaks
            yield (start if response.status_code == 206 else 0), response.iter_bytes()


def _library() -> None:
    """Switch off what huggingface_hub does besides."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    constants.HF_HUB_DISABLE_TELEMETRY = True
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()


def _timeout() -> float:
    """Seconds without a byte after which a connection counts as broken."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _file(repo: str, listed: Any) -> File:
    if listed.lfs is not None:
        return File(listed.rfilename, listed.lfs.size, f"sha256:{listed.lfs.sha256}")
    if not listed.blob_id or listed.size is None:
        raise DataError(f"data.repo={repo}: {endpoint()} lists neither sha256 nor git hash of {listed.rfilename}")
    return File(listed.rfilename, listed.size, f"git:{listed.blob_id}")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of huggingface_hub and httpx2 as Transient, or as one line for the user."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise DataError(f"{what}: HF_HUB_OFFLINE is set and it is not here yet; unset it for a download") from None
    except errors.HfHubHTTPError as e:
        raise _of_status(what, e) from e
    except httpx2.UnsupportedProtocol as e:
        raise DataError(f"{what}: HF_ENDPOINT={endpoint()} is no address; valid: https://...") from e
    except httpx2.RequestError as e:
        raise Transient(f"{endpoint()}: {_first_line(e)}") from e
    except errors.HFValidationError as e:
        raise DataError(f"{what}: no name of a dataset ({_first_line(e)}); valid: OWNER/NAME") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:  # a login page, a proxy's apology
        raise DataError(f"{what}: {endpoint()} does not answer as a Hugging Face hub does") from e


def _of_status(what: str, e: Any) -> Exception:
    from huggingface_hub import errors

    status = e.response.status_code
    if status in (408, 429) or status >= 500:
        wait = 0.0
        with suppress(ValueError):
            wait = float(e.response.headers.get("Retry-After", 0))
        return Transient(f"{endpoint()} answers HTTP {status}", min(max(wait, 0.0), MAX_WAIT_S))
    token = "a private or gated dataset needs a token that may read it: hf auth login, or HF_TOKEN"
    if isinstance(e, errors.RevisionNotFoundError):
        reason = "no such revision"
    elif isinstance(e, errors.EntryNotFoundError):
        reason = "no such file"
    elif status == 404 or isinstance(e, errors.RepositoryNotFoundError):
        reason = f"no such dataset that anybody may read; {token}"
    elif status in (401, 403):
        reason = f"access refused; {token}"
    else:
        reason = "refused"
    return DataError(f"{what}: {reason} (HTTP {status} of {endpoint()})")


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0] or type(e).__name__
