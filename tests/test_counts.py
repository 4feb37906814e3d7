from __future__ import annotations

from registry_gc.report.counts import counted


def test_a_word_has_the_form_that_its_number_asks_for() -> None:
    assert [counted(n, "blob") for n in (0, 1, 2000)] == ["0 blobs", "1 blob", "2,000 blobs"]
    assert [counted(n, "repository") for n in (1, 2)] == ["1 repository", "2 repositories"]
    assert [counted(n, "tag history") for n in (1, 2)] == ["1 tag history", "2 tag histories"]
