"""What a config may say of an object store, and what it may not: told before anything is asked."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pytest

from registry_drivers.errors import DriverConfigError, Unavailable
from registry_drivers.factory import StorageSpec, open_storage
from registry_drivers.object_store import ObjectStorage
from registry_drivers.retry import Retry
from registry_gc.cli.wiring import storage_of
from registry_gc.config import Config
from servers.azurite import ACCOUNT, KEY
from servers.fault_proxy import Answer, stub
from servers.moto import ACCESS_KEY, SECRET_KEY

GIVEN: dict[str, dict[str, Any]] = {
    "s3": {
        "accesskey": ACCESS_KEY,
        "secretkey": SECRET_KEY,
        "region": "us-east-1",
        "bucket": "bucket",
    },
    "gcs": {"bucket": "bucket"},
    "azure": {"accountname": ACCOUNT, "accountkey": KEY, "container": "container"},
}


@pytest.fixture(autouse=True)
def _emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials for Google; nothing is sent there."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")


def opened(driver: str, **more: Any) -> ObjectStorage:
    storage = open_storage(StorageSpec(driver, {**GIVEN[driver], **more}))
    assert isinstance(storage, ObjectStorage)
    return storage


WRONG = [
    ("s3", "bucket", {"bucket": "Not A Bucket!"}),
    ("s3", "bucket", {"bucket": "folder/bucket"}),
    ("s3", "accelerate", {"accelerate": True, "regionendpoint": "http://127.0.0.1:9"}),
    ("s3", "127.0.0.1:port", {"regionendpoint": "127.0.0.1:port"}),
    ("s3", "endpoint", {"regionendpoint": "http://"}),
    ("s3", "region", {"region": "no region!"}),
    ("s3", "maxretries", {"maxretries": "often"}),
    ("s3", "maxretries", {"maxretries": "inf"}),
    ("s3", "secure", {"secure": "maybe"}),
    ("azure", "accountname", {"accountname": None}),
    ("azure", "accountname", {"accountname": None, "serviceurl": "http://127.0.0.1:9"}),
    ("azure", "accountname", {"accountname": None, "credentials_type": "default_credentials"}),
    ("azure", "rootdirectory: is empty", {"rootdirectory": None}),
    ("gcs", "rootdirectory: is empty", {"rootdirectory": None}),
    ("azure", "host", {"serviceurl": "http://"}),
    ("azure", "port", {"serviceurl": "127.0.0.1:port"}),
    ("azure", "max_retries", {"max_retries": "nan"}),
    ("azure", "retry_delay", {"retry_delay": "soon"}),
    ("azure", "retry_delay", {"retry_delay": "-1s"}),
    ("azure", "contradicts", {"legacyrootprefix": True, "trimlegacyrootprefix": "true"}),
    *((driver, "rootdirectory", {"rootdirectory": root})
      for driver in GIVEN for root in ("..", "/./a", "a/../b", ["a"])),
]  # fmt: skip


@pytest.mark.parametrize(("driver", "named", "more"), WRONG)
def test_what_cannot_be_is_an_error_of_one_line_that_names_it(
    driver: str, named: str, more: Mapping[str, Any]
) -> None:
    with pytest.raises(DriverConfigError) as caught:
        opened(driver, **more)
    (line,) = str(caught.value).splitlines()
    assert named in line
    assert SECRET_KEY not in line


@pytest.mark.parametrize("inline", ["[]", '"text"', "1", "{", "null"])
def test_inline_credentials_that_are_no_key_are_told_without_showing_them(
    inline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    with pytest.raises(DriverConfigError, match=r"storage\.gcs\.credentials"):
        opened("gcs", credentials=inline)


@pytest.mark.parametrize("driver", GIVEN)
@pytest.mark.parametrize(
    ("root", "folder"),
    [("", ""), ("/", ""), ("a", "a/"), ("/a/b/", "a/b/"), ("a//b", "a//b/"), (7, "7/"),
     ("a.b/..c", "a.b/..c/"), ("/a b/ü+%", "a b/ü+%/")],
)  # fmt: skip
def test_a_root_directory_may_have_slashes_around_it(driver: str, root: Any, folder: str) -> None:
    with closing(opened(driver, rootdirectory=root)) as storage:
        assert storage.folder == folder


def test_a_root_directory_that_is_null_is_none_to_each_registry_with_s3() -> None:
    # Of the others, some write below a folder "<nil>".
    with closing(opened("s3", rootdirectory=None)) as storage:
        assert storage.folder == ""


@pytest.mark.parametrize(
    ("more", "host"),
    [
        # Newer regions answer nowhere else, and private endpoints to no other name.
        ({}, "bucket.s3.us-east-1.amazonaws.com"),
        ({"region": "ap-east-1"}, "bucket.s3.ap-east-1.amazonaws.com"),
        ({"region": "cn-north-1"}, "bucket.s3.cn-north-1.amazonaws.com.cn"),
        ({"region": "ap-east-1", "bucket": "a.b"}, "s3.ap-east-1.amazonaws.com"),
        ({"region": "ap-east-1", "forcepathstyle": True}, "s3.ap-east-1.amazonaws.com"),
        ({"usedualstack": True}, "bucket.s3.dualstack.us-east-1.amazonaws.com"),
        ({"usefipsendpoint": True, "region": "eu-a-1"}, "bucket.s3-fips.eu-a-1.amazonaws.com"),
        ({"accelerate": True}, "bucket.s3-accelerate.amazonaws.com"),
        ({"accelerate": True, "forcepathstyle": True}, "bucket.s3-accelerate.amazonaws.com"),
        ({"regionendpoint": "http://store:9000"}, "store:9000"),
        ({"regionendpoint": "store:9000", "secure": False}, "store:9000"),
        ({"regionendpoint": "http://store:9000", "usefipsendpoint": True}, "store:9000"),
        ({"regionendpoint": "http://store:9000", "forcepathstyle": False}, "bucket.store:9000"),
        ({"regionendpoint": "http://store:9000", "pathstyle": "false"}, "bucket.store:9000"),
    ],
)
def test_the_config_says_where_a_bucket_is_asked(more: Mapping[str, Any], host: str) -> None:
    with closing(opened("s3", **more)) as storage:
        assert storage.root == f"s3://{host}/{more.get('bucket', 'bucket')}"


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_environment_names_no_other_store_than_the_registrys(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "http://elsewhere:9000")
    with closing(opened("s3")) as storage:
        assert storage.root == "s3://bucket.s3.us-east-1.amazonaws.com/bucket"


@pytest.mark.parametrize(
    ("driver", "more", "times", "first"),
    [
        ("s3", {}, Retry().times, Retry().first),
        ("s3", {"maxretries": "3"}, 3, Retry().first),
        ("s3", {"maxretries": 0}, Retry().times, Retry().first),
        # What Amazon's SDK for Go takes for "as usual".
        ("s3", {"maxretries": -1}, Retry().times, Retry().first),
        ("azure", {"max_retries": 4, "retry_delay": "250ms"}, 4, 0.25),
        ("azure", {"retry_delay": "1m0.5s"}, Retry().times, 60.5),
        ("azure", {"retry_delay": 2}, Retry().times, 2.0),
    ],
)
def test_the_config_says_how_patient_a_driver_is(
    driver: str, more: Mapping[str, Any], times: int, first: float
) -> None:
    with closing(opened(driver, **more)) as storage:
        assert (storage.retry.times, storage.retry.first) == (times, first)


def test_a_user_agent_of_the_config_is_sent_with_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"1"'}
    listing = Answer(200, json.dumps({"kind": "storage#objects"}).encode(), headers)
    with stub(lambda _: listing) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        with closing(opened("gcs", useragent="registry/3 (ours)")) as storage:
            assert list(storage.list("")) == []
            assert storage.read("a/b") == listing.body
        assert {seen.headers["user-agent"] for seen in server.requests} == {"registry/3 (ours)"}


@pytest.mark.parametrize("rate", [0, -1, "0", ""])
def test_a_rate_that_is_none_is_no_limit(rate: Any) -> None:
    parameters = {**GIVEN["s3"], "maxrequestspersecond": rate}
    storage = storage_of(Config("config.yml", StorageSpec("s3", parameters)))
    assert isinstance(storage, ObjectStorage)
    with closing(storage):
        storage.before_request()


@pytest.mark.parametrize("driver", GIVEN)
def test_what_is_closed_is_let_go_of(driver: str) -> None:
    """Each took 11 MB for ever: the tests, and whoever opens many, grew by gigabytes."""
    storage = opened(driver)
    seen = weakref.ref(storage)
    storage.close()
    del storage
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("endpoint", ["http://user:pass-word@127.0.0.1:9", "user:pass-word@host:9"])
def test_a_password_in_an_endpoint_is_shown_nowhere(endpoint: str) -> None:
    with closing(opened("s3", regionendpoint=endpoint)) as storage:
        storage.retry = Retry(times=0)
        assert "pass-word" not in storage.root
        assert "pass-word" not in repr(storage)
        if "127.0.0.1" in endpoint:
            with pytest.raises(Unavailable) as caught:
                storage.stat("a")
            assert "pass-word" not in str(caught.value)
            with pytest.raises(Unavailable) as caught:
                storage.read("a")
            assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize(
    "service", ["https://host/?sv=1&sig=pass-word", "https://u:pass-word@host"]
)
@pytest.mark.parametrize("name", ["serviceurl", "connectionstring"])
def test_a_signature_in_a_service_url_is_refused(service: str, name: str) -> None:
    given = {"serviceurl": service}
    if name == "connectionstring":
        text = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={service}"
        given = {"connectionstring": text}
    with pytest.raises(DriverConfigError, match=name) as caught:
        opened("azure", **given)
    assert "pass-word" not in str(caught.value)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(DriverConfigError, match=r"storage\.azure\.container"):
        opened("azure", container="\ud800")
