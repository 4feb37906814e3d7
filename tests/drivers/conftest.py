"""The shared suite is a plain module: pytest has to be told to explain its asserts."""

import pytest

pytest.register_assert_rewrite("drivers.conformance", "drivers.folders")
