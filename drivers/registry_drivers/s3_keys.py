"""The keys that requests to S3 are signed with, as botocore gets, keeps and renews them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from registry_drivers.credential_source import CredentialSource
from registry_drivers.withdrawal import unless_withdrawn

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials

# So long before their end botocore lets everyone wait for new ones; before that, one thread tries.
_MANDATORY_SECONDS = 600
_RENEWED_SECONDS = 30.0
# botocore's own, which its types do not know of.
_END = "_expiry_time"


class S3Keys:
    """Keys for any thread. What botocore raises leaves here as it is.

    :param clock: seconds that only grow.
    """

    def __init__(
        self,
        credentials: Credentials,
        driver: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._clock = clock
        self._source = CredentialSource(driver, clock)
        self._renewing = threading.Lock()
        self._renewed: tuple[float, bool] | None = None
        self._failed: tuple[float, Exception] | None = None

    def frozen(self, *, in_line: bool = False) -> ReadOnlyCredentials:
        """Keys that are good now; asks their source where they are not for long.

        :param in_line: see :meth:`~registry_drivers.credential_source.CredentialSource.ask`.
        """
        from botocore.credentials import RefreshableCredentials

        known = self._credentials
        if isinstance(known, RefreshableCredentials) and known.refresh_needed(_MANDATORY_SECONDS):
            return self._source.ask(known.get_frozen_credentials, in_line=in_line)
        return known.get_frozen_credentials()

    def renew(self) -> bool:
        """Be told that the storage takes these no more; whether their source has others.

        Such as a session that was revoked, or a clock that is wrong. The source is asked once, and
        not for each thread that is told so.
        """
        from botocore.credentials import RefreshableCredentials

        known = self._credentials
        if not isinstance(known, RefreshableCredentials):
            return False
        # Whoever says whether it is wanted may ask the storage, be told the same, and come here.
        with unless_withdrawn(None), self._renewing:
            now = self._clock()
            if self._renewed is not None and now - self._renewed[0] < _RENEWED_SECONDS:
                return self._renewed[1]
            if self._failed is not None and now - self._failed[0] < _RENEWED_SECONDS:
                raise self._failed[1].with_traceback(None)
            try:
                before = self.frozen()
                # It has no name for "now, whatever you have been told of their end".
                setattr(known, _END, datetime.now(UTC))
                other = self.frozen() != before
            except Exception as error:
                # Those who wait for their turn here would each wait for it as long again.
                self._failed = (self._clock(), error)
                raise
            self._renewed = (self._clock(), other)
            return other
