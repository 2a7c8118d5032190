"""What a hub answers instead of a model, as errors that say the next step; a rate limit is waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from workbench.console import warn
from workbench.heads import WorkbenchError

_T = TypeVar("_T")
# Further tries, and seconds to wait before each where the hub does not say how long.
_WAITS = (1.0, 4.0)
# How long an answer may take: of one request, and of several that huggingface_hub repeats and waits between.
_DEADLINE_S, _LONG_DEADLINE_S = 60.0, 1800.0
# The hub counts requests in windows of five minutes.
_LONGEST_WAIT_S = 310.0


class HubError(WorkbenchError):
    """A hub does not hand out a model. `exit_code` is that of a directory without checkpoints."""

    exit_code = 3


class BadReference(HubError):
    """A text that is not the id of a model."""


class NotAtHub(HubError):
    """A model or a revision that the hub does not have, or does not show to this user."""


class GatedModel(HubError):
    """A model whose licence this user has not accepted."""


class RateLimited(HubError):
    """The hub refuses further requests for a while. `wait_s`: for how long, as far as it says."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class HubFault(HubError):
    """The hub itself fails, or what answers is no hub."""


class Unreachable(HubError):
    """No answer: there is no network, or HF_HUB_OFFLINE is set."""


def endpoint() -> str:
    """The address of the hub, as the environment says now, else as huggingface_hub found it."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether no hub may be asked: HF_HUB_OFFLINE, as the environment says now, else as huggingface_hub found it."""
    from huggingface_hub import constants

    written = os.environ.get("HF_HUB_OFFLINE")
    return constants.HF_HUB_OFFLINE if written is None else written.upper() in constants.ENV_VARS_TRUE_VALUES


def hub_api() -> Any:
    """huggingface_hub's HfApi for the hub of this process.

    Raises:
        Unreachable: if no hub may be asked.
    """
    from huggingface_hub import HfApi

    if is_offline():
        raise Unreachable(f"{endpoint()} is not asked: HF_HUB_OFFLINE is set. Unset it to list and download models")
    return HfApi(endpoint=endpoint())


def ask(call: Callable[[Any], _T], repo: str, revision: str | None = None, *, tries_again: bool = True) -> _T:
    """Ask the hub about a model; `call` is handed huggingface_hub's HfApi.

    A rate limit and a fault of the server are waited for and asked again, which stderr says. `tries_again` False: not
    here, because huggingface_hub does so itself, as for whatever comes in pages.

    Raises:
        HubError: as `as_hub_error`.
    """
    api = hub_api()
    for wait_s in (*(_WAITS if tries_again else ()), None):
        try:
            with as_hub_error(repo, revision), _a_listing(repo):
                return _within(_DEADLINE_S if tries_again else _LONG_DEADLINE_S, lambda: call(api), repo)
        except (RateLimited, HubFault) as error:
            pause = wait_s if getattr(error, "wait_s", None) is None else getattr(error, "wait_s", None)
            if wait_s is None or pause is None or pause > _LONGEST_WAIT_S:
                raise
            warn(f"{error}; asked again in {pause:.0f} s")
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _within(seconds: float, call: Callable[[], _T], repo: str) -> _T:
    """What a call returns or raises; huggingface_hub waits for an answer for ever.

    Raises:
        Unreachable: if it has not ended after so many seconds.
    """
    answers: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # raised again where the call was made
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise Unreachable(f"{repo}: no answer from {endpoint()} in {seconds:.0f} s; check the network, and try again")
    return answers[0]


@contextmanager
def as_hub_error(repo: str, revision: str | None = None) -> Generator[None]:
    """Turn what huggingface_hub raises about a model into a HubError with the next step.

    Raises:
        GatedModel, NotAtHub, RateLimited, HubFault, Unreachable, BadReference: by what the hub answered.
    """
    from huggingface_hub import errors

    what = repo if revision is None else f"{repo}@{revision}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise GatedModel(
            f"{what}: its licence has to be accepted first. Log in with `hf auth login`, accept it at "
            f"{endpoint()}/{repo}, and try again"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotAtHub(f"{what}: {endpoint()} has the model, and no revision {revision or 'main'}") from error
    except errors.RepositoryNotFoundError as error:
        raise NotAtHub(_missing(what)) from error
    except errors.RemoteEntryNotFoundError as error:
        raise NotAtHub(f"{what}: {endpoint()} has the model, and not this file: {error.response.url}") from error
    except errors.OfflineModeIsEnabled as error:
        raise Unreachable(f"{what}: {endpoint()} is not asked, because HF_HUB_OFFLINE is set; unset it") from error
    except errors.HFValidationError as error:
        raise BadReference(f"{what}: is no id of a model at a hub: {error}") from error
    except errors.HfHubHTTPError as error:
        raise _of_status(error, what, repo) from error
    except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage]
        reason = str(error) or type(error).__name__
        raise Unreachable(f"{what}: {endpoint()} cannot be reached ({reason}); check the network") from error


@contextmanager
def _a_listing(repo: str) -> Generator[None]:
    """Refuse an answer that huggingface_hub cannot read."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubFault(
            f"{repo}: {endpoint()} answers with something that is no listing ({type(error).__name__}: {error}); check "
            "HF_ENDPOINT, and whether a page to log in stands before the network"
        ) from error


def _missing(what: str) -> str:
    return (
        f"{what}: {endpoint()} has no such model, or does not show it to you. Check the name; if it is private, log in "
        "with `hf auth login`"
    )


def _of_status(error: Any, what: str, repo: str) -> HubError:
    status, message = error.response.status_code, (error.server_message or "").strip()
    said_by_hub = f": {message}" if message else ""
    if status == 429:
        wait_s = _seconds_to_wait(error.response.headers)
        when = "in a few minutes" if wait_s is None else f"in {wait_s:.0f} s"
        return RateLimited(
            f"{what}: {endpoint()} refuses further requests for a while (429){said_by_hub}; try again {when}. With "
            "`hf auth login` the limit is higher",
            wait_s,
        )
    if status >= 500:
        return HubFault(f"{what}: {endpoint()} fails ({status}){said_by_hub}; try again later")
    if status == 401 and "invalid credentials" in message.lower():
        return NotAtHub(
            f"{what}: {endpoint()} does not accept your token (401){said_by_hub}; log in with `hf auth login`, or unset"
            " HF_TOKEN"
        )
    if status == 401:  # as the hub answers for what is missing, to whoever is not logged in
        return NotAtHub(_missing(what))
    if status == 404:
        return NotAtHub(f"{what}: {endpoint()} has no such model (404){said_by_hub}; check the name")
    if status == 403:
        return GatedModel(f"{what}: {endpoint()} refuses it (403){said_by_hub}; its page {endpoint()}/{repo} says why")
    return HubFault(f"{what}: {endpoint()} answers {status}{said_by_hub}")


def _seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """How long a rate limit lasts, by `Retry-After` or the hub's own header; None if neither says."""
    from huggingface_hub.utils import parse_ratelimit_headers

    written = headers.get("retry-after", "").strip()
    if written.isdigit():
        return float(written)
    limit = parse_ratelimit_headers(headers)
    return None if limit is None else limit.reset_in_seconds + 1.0
