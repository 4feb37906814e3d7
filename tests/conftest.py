"""What every test starts from: no settings of the machine's, a state directory of its own."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Time says nothing on a machine with other work: hypothesis would call slow examples failures.
settings.register_profile("registry-gc", deadline=None, print_blob=True)
settings.load_profile("registry-gc")
# They check what they do for a test; pytest has to be told to explain asserts of plain modules.
pytest.register_assert_rewrite(
    "applying.support", "blob_cache.support", "drivers.versions_s3.support"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: the numbers of examples that take a night."""
    parser.addoption("--long", action="store_true", help="run the long forms of the tests")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether ``--long`` was given."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the machine's settings out of the tests, and the tests out of its state directory."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("REGISTRY_", "RGC_")):
                patch.delenv(name)
        patch.setenv("RGC_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> Iterator[None]:
    """What tests start that ``nohup`` or ``&`` has started would ignore signals as they do."""
    ignored = [
        number
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        # A function goes on ignoring it here, and is not handed on to other programs.
        signal.signal(number, lambda number, frame: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def rubbish_is_collected() -> Iterator[None]:
    """Undo what a command does to a process that is all its own; else tests took 4 GB."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
