"""Who signs in at Google Cloud Storage: a key file, inline JSON, or what google-auth finds."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from registry_drivers.credential_source import CredentialSource
from registry_drivers.errors import (
    AccessDenied,
    DriverConfigError,
    StorageError,
    Unavailable,
)
from registry_drivers.parameters import Parameters
from registry_drivers.web import CA_HINT, UNTRUSTED, ca_bundle
from registry_drivers.withdrawal import unless_withdrawn

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
_SECRETS = ("private_key", "private_key_id", "client_secret", "refresh_token")


def credentials_of(given: Parameters) -> Credentials:
    """What the parameters say about signing in, else what google-auth finds.

    :raises DriverConfigError: there is nothing, or nothing that can be used.
    """
    import google.auth.exceptions

    logger = logging.getLogger("google.auth._default")
    level = logger.level
    try:
        with warnings.catch_warnings():
            # google-auth warns of keys of unknown origin, of a user's own credentials, and that
            # nobody named a project; the config is the operator's, and no project is needed.
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            return _load_credentials(given)
    except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
        name = "keyfile" if given.has("keyfile") else "credentials"
        # The SDK's message may repeat what is in the key.
        reason = "no usable Google credentials"
        if isinstance(error, OSError):
            reason += f": {error.strerror}"
        elif not given.has("credentials"):
            reason += f": {str(error).splitlines()[0]}"
        raise given.error(name, reason) from None
    finally:
        logger.setLevel(level)


def _load_credentials(given: Parameters) -> Credentials:
    import google.auth

    auth: Any = google.auth  # half of it has types
    credentials: Credentials
    if given.has("keyfile"):
        credentials, _ = auth.load_credentials_from_file(given.text("keyfile"), scopes=[SCOPE])
    elif given.has("credentials"):
        credentials, _ = auth.load_credentials_from_dict(_inline(given), scopes=[SCOPE])
    else:
        credentials, _ = auth.default(scopes=[SCOPE])
    return credentials


def _inline(given: Parameters) -> Mapping[str, Any]:
    try:
        value = given.mapping("credentials")
    except DriverConfigError:
        value = json.loads(given.secret("credentials"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object") from None
    given.secrets += [str(value[name]) for name in _SECRETS if name in value]
    return {str(name): text for name, text in value.items()}


class Tokens:
    """Tokens that google-auth gets, keeps and renews.

    :param clean: takes secrets out of messages.
    """

    def __init__(self, credentials: Credentials, driver: str, clean: Callable[[str], str]) -> None:
        import requests
        from google.auth.credentials import AnonymousCredentials
        from google.auth.transport.requests import Request

        self.anonymous = isinstance(credentials, AnonymousCredentials)
        self._credentials: Any = credentials  # its methods have no types
        self._driver = driver
        self._clean = clean
        self._signing = threading.Lock()
        self._source = CredentialSource(driver)
        self._session = requests.Session()
        self._session.verify = ca_bundle() or True
        self._refresh = Request(self._session)

    def sign(self, headers: dict[str, str], url: str, *, in_line: bool = False) -> None:
        """Add an ``Authorization`` header, with a token that is valid.

        :param in_line: see :meth:`~registry_drivers.credential_source.CredentialSource.ask`.
        """

        def add() -> None:
            with self._signing:
                self._credentials.before_request(self._refresh, "GET", url, headers)

        with self._google_errors():
            if self._credentials.valid:
                add()
            else:
                self._source.ask(add, in_line=in_line)

    def provide(self, url: str) -> Any:
        """A token for obstore."""
        # Not asked here whether it is wanted: to find out may be a read, and obstore is in one.
        with unless_withdrawn(None):
            self.sign({}, url, in_line=True)
        return {
            "token": self._credentials.token,
            # google-auth renews it in time; ask it again every few minutes.
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    def close(self) -> None:
        """Let go of connections."""
        self._session.close()

    @contextlib.contextmanager
    def _google_errors(self) -> Iterator[None]:
        """Nothing of google-auth's leaves."""
        import google.auth.exceptions as auth
        import requests

        try:
            yield
        except (auth.TransportError, requests.RequestException) as error:
            if UNTRUSTED in str(error):
                reason = f"no token: the certificate is not trusted; {CA_HINT}"
                raise StorageError(reason, driver=self._driver) from None
            raise Unavailable(f"no token: {type(error).__name__}", driver=self._driver) from None
        except auth.RefreshError as error:
            kind = Unavailable if error.retryable else AccessDenied
            reason = self._clean(str(error.args[0] if error.args else error))
            raise kind(f"no token: {reason}", driver=self._driver) from None
        except auth.GoogleAuthError as error:
            raise StorageError(self._clean(str(error)), driver=self._driver) from None
