"""A language model behind an OpenAI-compatible endpoint: asked with retries, and only where that is permitted."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from forgetkit.core.errors import ForgetkitError
from forgetkit.settings import EndpointSettings

TRIES = 3
PAUSE = 0.5
"""Seconds before the second try; doubled before the third."""


def check_endpoint(settings: EndpointSettings, where: str) -> bool:
    """Whether `base_url` is on this machine.

    where: dotted name of the settings, for messages. Raises `ForgetkitError` for an address that is none, and for
    other machines without `allow_remote`.
    """
    url = urlsplit(settings.base_url or "")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ForgetkitError("not an http(s) address", f"{where}.base_url", "e.g. http://127.0.0.1:8000/v1")
    local = url.hostname == "localhost"
    with contextlib.suppress(ValueError):  # a host name; only 'localhost' is known to stay here
        local = local or ipaddress.ip_address(url.hostname).is_loopback
    if not local and not settings.allow_remote:
        raise ForgetkitError(
            f"the target text would be sent to {url.hostname}",
            f"{where}.base_url",
            f"set {where}.allow_remote=true if that is meant",
        )
    return local


class Endpoint:
    """An open connection; a context manager. Raises `ForgetkitError` as `check_endpoint`, or without `openai`."""

    def __init__(self, settings: EndpointSettings, where: str) -> None:
        local = check_endpoint(settings, where)
        try:
            import openai
        except ImportError as error:
            raise ForgetkitError(
                "the openai package is not installed", where, "pip install 'forgetkit[llm]'"
            ) from error
        self.settings = settings
        # A proxy from the environment or a redirect would carry the text off this machine.
        http = openai.DefaultHttpxClient(trust_env=not local, follow_redirects=False, timeout=settings.timeout_seconds)
        key = os.environ.get(settings.api_key_env) or "none"
        self._client = openai.OpenAI(base_url=settings.base_url, api_key=key, max_retries=0, http_client=http)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def answers(self, system: str, user: str, what: str) -> Iterator[str]:
        """Answers to one question, until the caller has one it can read; at most `TRIES`, faults counted.

        what: what is asked about, for messages. Raises `ForgetkitError` when the last try fails, or at once for
        a refusal that no waiting mends.
        """
        import openai

        fault: openai.OpenAIError | None = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                answer = self._client.chat.completions.create(
                    model=self.settings.model,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                    temperature=0,
                )
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    raise self._failed(what, f"status {error.status_code}") from None
                fault = error
                continue
            except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
                fault = error
                continue
            fault = None
            yield (answer.choices[0].message.content or "") if getattr(answer, "choices", None) else ""
        if fault is not None:
            status = getattr(fault, "status_code", None)
            raise self._failed(what, f"status {status}" if status else type(fault).__name__)

    def _failed(self, what: str, fault: str) -> ForgetkitError:
        # Neither the reply nor the request is quoted: they may hold the text or the key.
        return ForgetkitError(
            f"the language model's endpoint failed on {what} ({fault})",
            urlsplit(self.settings.base_url or "").hostname or "endpoint",
            "check the endpoint and run again; what is finished is kept",
        )
