"""The registry's config file and variables, read as the registry reads them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from registry_drivers.errors import DriverConfigError
from registry_drivers.factory import StorageSpec, open_storage
from registry_gc.config import Config, ConfigError, UploadPurging, load_config

FILESYSTEM = "storage:\n  filesystem:\n    rootdirectory: /srv/registry\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its config."""
    return tmp_path / "config.yml"


def load(file: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    file.write_text(text)
    return load_config(str(file), environ or {})


def refusal(file: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    """The error's message, which is one line."""
    with pytest.raises(ConfigError) as caught:
        load(file, text, environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read


def test_the_smallest_config_has_the_registrys_defaults(file: Path) -> None:
    config = load(file, FILESYSTEM)
    assert config.path == str(file)
    assert config.driver == config.storage.driver == "filesystem"
    assert config.storage.parameters == {"rootdirectory": "/srv/registry"}
    assert not config.readonly
    assert config.http.addr == ""
    assert config.proxy_remote_url is None
    assert config.database == "off"
    assert config.blob_descriptor_cache is None
    assert config.redis is None
    assert config.upload_purging == UploadPurging(enabled=True, age_seconds=168 * 3600)


def test_a_whole_config_is_read(file: Path) -> None:
    config = load(
        file,
        """
version: 0.1
log: {level: debug}
storage:
  s3:
    bucket: images
    chunksize: "5242880"
  maintenance:
    readonly: {enabled: true}
    uploadpurging: {enabled: true, age: 24h, interval: 1h, dryrun: false}
  cache: {blobdescriptor: redis}
  delete: {enabled: true}
  redirect: {disable: true}
  tag: {concurrencylimit: 5}
http:
  addr: localhost:5001
  prefix: /registry/
  host: https://registry.example.com
  tls: {certificate: /etc/cert.pem, key: /etc/key.pem}
proxy: {remoteurl: https://mirror.example.com}
redis: {addr: "localhost:6379", password: hunter2, db: 3}
database: {enabled: prefer}
unknown: {left: alone}
""",
    )
    assert config.driver == "s3"
    assert config.storage.parameters == {"bucket": "images", "chunksize": "5242880"}
    assert config.readonly
    assert config.upload_purging.age_seconds == 86400
    assert config.blob_descriptor_cache == "redis"
    assert (config.http.addr, config.http.prefix) == ("localhost:5001", "/registry/")
    assert config.http.tls
    assert config.http.server_name == "registry.example.com"
    assert config.proxy_remote_url == "https://mirror.example.com"
    assert config.redis == {"addr": "localhost:6379", "password": "hunter2", "db": 3}
    assert config.database == "prefer"


@pytest.mark.parametrize("driver", ["s3", "s3_v2", "s3aws", "gcs", "azure", "azure_v2"])
def test_both_spellings_of_the_object_stores_drivers_are_known(file: Path, driver: str) -> None:
    assert load(file, f"storage: {{{driver}: {{rootdirectory: /r}}}}").driver == driver


def test_a_driver_without_parameters_may_be_a_plain_string_or_an_empty_key(file: Path) -> None:
    assert load(file, "storage: inmemory").driver == "inmemory"
    assert load(file, "storage: {filesystem: }").storage.parameters == {}


def test_lets_encrypt_is_tls_and_names_the_host(file: Path) -> None:
    config = load(
        file,
        FILESYSTEM + "http: {tls: {letsencrypt: {cachefile: /c, hosts: [registry.example.com]}}}",
    )
    assert config.http.tls
    assert config.http.server_name == "registry.example.com"


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("", "off"),
        ("database:\n", "off"),
        ("database: {enabled: false}\n", "off"),
        ("database: {enabled: true}\n", "on"),
        ("database: {enabled: prefer}\n", "prefer"),
        ("database: {enabled: no}\n", "off"),
        ("database: {enabled: 'false'}\n", "off"),
        ("database: {enabled: 'prefer'}\n", "prefer"),
        ("database: {enabled: 'true'}\n", "on"),
        ("database: {enabled: 'no'}\n", "on"),
        ("database: {enabled: 'False'}\n", "on"),
        ("database: {enabled: ''}\n", "on"),
        ("database: {enabled: 0}\n", "on"),
        ("database: {enabled: Prefer}\n", "on"),
    ],
)
def test_a_database_is_off_only_when_absent_or_false(
    file: Path, section: str, expected: str
) -> None:
    assert load(file, FILESYSTEM + section).database == expected


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{enabled: false}", UploadPurging(enabled=False)),
        ("{enabled: true}", UploadPurging()),
        ("{age: 1h30m}", UploadPurging(age_seconds=5400)),
        ("{enabled: true, dryrun: true}", UploadPurging(enabled=False)),
        ("", UploadPurging()),
    ],
)
def test_upload_purging_is_the_operators_word(
    file: Path, section: str, expected: UploadPurging
) -> None:
    text = f"{FILESYSTEM}  maintenance:\n    uploadpurging: {section}\n"
    assert load(file, text).upload_purging == expected


def test_the_older_name_of_the_cache_counts_where_the_newer_is_absent(file: Path) -> None:
    assert load(file, FILESYSTEM + "  cache: {layerinfo: inmemory}").blob_descriptor_cache == (
        "inmemory"
    )
    assert load(
        file, FILESYSTEM + "  cache: {layerinfo: redis, blobdescriptor: inmemory}"
    ).blob_descriptor_cache == ("inmemory")


def test_anchors_merge_keys_and_repeated_keys_work(file: Path) -> None:
    config = load(
        file,
        """
base: &base {region: eu, bucket: a}
storage:
  s3:
    <<: *base
    bucket: b
    bucket: c
""",
    )
    assert config.storage.parameters == {"region": "eu", "bucket": "c"}


def test_numbers_and_dates_that_are_not_written_plainly_are_kept_as_they_are(file: Path) -> None:
    # The registry would use 83, 1000 and 1.5; `test_config_yaml` has what the drivers say to that.
    config = load(
        file,
        "storage: {s3: {bucket: 2024-01-01, accesskey: 0123, secretkey: 12:34:56,"
        " keyid: 1_000, chunksize: 5242880, region: 1.50}}",
    )
    assert config.storage.parameters == {
        "bucket": "2024-01-01",
        "accesskey": "0123",
        "secretkey": "12:34:56",
        "keyid": "1_000",
        "chunksize": 5242880,
        "region": "1.50",
    }


def test_only_the_first_document_counts(file: Path) -> None:
    assert load(file, FILESYSTEM + "---\nstorage: [").driver == "filesystem"


def test_no_secret_is_in_the_repr_and_the_config_can_be_pickled(file: Path) -> None:
    config = load(
        file,
        "storage: {s3: {accesskey: s3cret, secretkey: s3cret}}\nredis: {password: s3cret}\n"
        "proxy: {remoteurl: 'https://u:s3cret@mirror.example.com'}\nhttp: {secret: s3cret}",
    )
    assert "s3cret" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


# --- variables


def test_variables_override_the_file_and_make_missing_maps(file: Path) -> None:
    config = load(
        file,
        FILESYSTEM,
        {
            "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "/elsewhere",
            "REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED": "true",
            "REGISTRY_HTTP_ADDR": ":5000",
            "REGISTRY_HTTP_TLS_CERTIFICATE": "/cert.pem",
            "REGISTRY_PROXY_REMOTEURL": "https://mirror.example.com",
            "REGISTRY_DATABASE_ENABLED": "true",
            "REGISTRY_REDIS_ADDRS": "[a:1, b:2]",
        },
    )
    assert config.storage.parameters == {"rootdirectory": "/elsewhere"}
    assert config.readonly
    assert config.http.addr == ":5000"
    assert config.http.tls
    assert config.proxy_remote_url == "https://mirror.example.com"
    assert config.database == "on"
    assert config.redis == {"addrs": ["a:1", "b:2"]}


def test_options_of_redis_are_what_the_file_has_right_below_it(file: Path) -> None:
    """Measured on 3.1.1: to its variables they are a field of their own."""
    text = FILESYSTEM + "redis: {addrs: ['a:1'], db: 3, tls: {rootcas: [/ca]}}"
    environ = {"REGISTRY_REDIS_ADDRS": "['b:1']", "REGISTRY_REDIS_OPTIONS_ADDRS": "['c:1']"}
    found = {"addrs": ["c:1"], "db": 3, "tls": {"rootcas": ["/ca"]}}
    assert load(file, text, environ).redis == found
    environ = {"REGISTRY_REDIS_OPTIONS_DB": "4", "REGISTRY_REDIS_OPTIONS_POOLSIZE": "9"}
    assert load(file, text, environ).redis == {**found, "addrs": ["a:1"], "db": 4}
    environ = {"REGISTRY_REDIS_OPTIONS": "{addrs: ['c:1']}"}
    assert load(file, text, environ).redis == {"addrs": ["c:1"], "tls": {"rootcas": ["/ca"]}}
    assert load(file, FILESYSTEM, {"REGISTRY_REDIS_OPTIONS": "{addrs: [c]}"}).redis == {
        "addrs": ["c"]
    }
    with pytest.raises(ConfigError, match="redis"):
        load(file, text, {"REGISTRY_REDIS_OPTIONS": "s3cret"})


def test_options_of_redis_are_nothing_to_a_registry_that_does_not_read_addrs(file: Path) -> None:
    config = load(file, FILESYSTEM + "redis: {addr: 'a:1'}", {"REGISTRY_REDIS_OPTIONS_DB": "4"})
    assert config.redis == {"addr": "a:1"}
    assert "REGISTRY_REDIS_OPTIONS_DB is ignored" in config.notices[0]


def test_a_variable_for_a_whole_section_is_applied_before_those_for_its_parts(file: Path) -> None:
    config = load(
        file,
        FILESYSTEM + "  delete: {enabled: true}",
        {"REGISTRY_STORAGE_S3_BUCKET": "images", "REGISTRY_STORAGE": "s3"},
    )
    assert config.driver == "s3"
    assert config.storage.parameters == {"bucket": "images"}
    whole = {"REGISTRY_STORAGE": "{filesystem: {rootdirectory: /x}, maintenance: {readonly: {}}}"}
    assert load(file, FILESYSTEM, whole).storage.parameters == {"rootdirectory": "/x"}


def test_a_variable_holds_yaml(file: Path) -> None:
    environ = {"REGISTRY_STORAGE_MAINTENANCE": "{readonly: {enabled: true}}"}
    assert load(file, FILESYSTEM, environ).readonly
    environ = {"REGISTRY_STORAGE_MAINTENANCE_READONLY": '{"enabled": true}'}
    assert load(file, FILESYSTEM, environ).readonly


def test_a_variable_does_not_change_what_an_alias_shares(file: Path) -> None:
    text = "shared: &shared {rootdirectory: /a}\nstorage: {filesystem: *shared}\nhttp: *shared"
    config = load(file, text, {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "/b"})
    assert config.storage.parameters == {"rootdirectory": "/b"}


def test_a_readonly_that_only_a_variable_says_is_not_believed_against_the_file(file: Path) -> None:
    # The registry ignores the variable then, and takes writes (measured on 2.8.2).
    text = FILESYSTEM + "  maintenance: {readonly: {enabled: false}}"
    config = load(file, text, {"REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED": "true"})
    assert not config.readonly
    assert "is ignored" in config.notices[0]
    text = FILESYSTEM + "  maintenance: {readonly: {enabled: true}}"
    config = load(file, text, {"REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED": "false"})
    assert not config.readonly


def test_the_fields_of_a_service_account_are_whole_words_in_variables(file: Path) -> None:
    prefix = "REGISTRY_STORAGE_GCS_CREDENTIALS"
    fields = ("TYPE", "PRIVATE_KEY_ID", "PRIVATE_KEY", "CLIENT_EMAIL", "TOKEN_URI")
    environ = {f"{prefix}_{name}": name for name in fields}
    config = load(file, "storage: {gcs: {bucket: b}}", environ)
    assert config.storage.parameters["credentials"] == {name.lower(): name for name in fields}
    # Whatever else is asked for there is read as Distribution reads it.
    config = load(file, "storage: {gcs: {bucket: b}}", {f"{prefix}_MORE_OF_IT": "x"})
    assert config.storage.parameters["credentials"] == {"more": {"of": {"it": "x"}}}


def test_gitlabs_drivers_have_keys_with_an_underscore_in_variables(file: Path) -> None:
    text = "storage: {azure_v2: {accountname: a, container: c, credentials_type: shared_key}}"
    prefix = "REGISTRY_STORAGE_AZURE_V2"
    environ = {
        f"{prefix}_CREDENTIALS_TYPE": "client_secret",
        f"{prefix}_TENANT_ID": "t",
        f"{prefix}_CLIENT_ID": "i",
        f"{prefix}_SECRET": "s",
        f"{prefix}_CONTAINER": "d",
        f"{prefix}_MAX_RETRIES": "3",
        f"{prefix}_MAX_RETRY_DELAY": "2s",
        f"{prefix}_DEBUG_LOG_EVENTS": "Retry",
    }
    config = load(file, text, environ)
    assert config.driver == "azure_v2"
    assert config.storage.parameters == {
        "accountname": "a",
        "container": "d",
        "credentials_type": "client_secret",
        "tenant_id": "t",
        "client_id": "i",
        "secret": "s",
        "max_retries": 3,
        "max_retry_delay": "2s",
        "debug_log_events": "Retry",
    }


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("storage: {s3_v2: {bucket: a}}", {}),
        ("http: {}", {"REGISTRY_STORAGE": "s3_v2"}),
        ("http: {}", {}),
        ("storage: {delete: {enabled: true}}", {}),
        (FILESYSTEM, {"REGISTRY_STORAGE": "{s3_v2: {bucket: a}}"}),
    ],
)
def test_a_variable_names_gitlabs_driver(file: Path, text: str, environ: dict[str, str]) -> None:
    variables = {"STORAGE_S3_V2_BUCKET": "b", "STORAGE_S3_V2_CHECKSUM_DISABLED": "true"}
    given = {f"REGISTRY_{name}": value for name, value in variables.items()}
    config = load(file, text, {**environ, **given})
    assert config.driver == "s3_v2"
    assert config.storage.parameters == {"bucket": "b", "checksum_disabled": True}


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("storage: {s3: {bucket: a}}", {}),
        ("http: {}", {"REGISTRY_STORAGE_S3_BUCKET": "a"}),
        ("http: {}", {"REGISTRY_STORAGE": "{s3: {bucket: a}}"}),
    ],
)
def test_distributions_variables_stay_what_they_are(
    file: Path, text: str, environ: dict[str, str]
) -> None:
    given = {"REGISTRY_STORAGE_S3_V2_BUCKET": "b", "REGISTRY_STORAGE_S3_MAX_RETRIES": "3"}
    config = load(file, text, {**environ, **given})
    assert config.driver == "s3"
    parameters = {"bucket": "a", "v2": {"bucket": "b"}, "max": {"retries": 3}}
    assert config.storage.parameters == parameters


def test_of_two_drivers_that_is_named_by_its_variable_which_it_brought(file: Path) -> None:
    text = "storage: {s3_v2: {bucket: a}}"
    message = r"has drivers s3_v2 and s3 \(from REGISTRY_STORAGE_S3_BUCKET\): keep one"
    with pytest.raises(ConfigError, match=message):
        load(file, text, {"REGISTRY_STORAGE_S3_BUCKET": "b"})
    # Distribution reads it as a key ``v2`` of ``s3``; the other is GitLab's.
    text = "storage: {s3: {bucket: a}, s3_v2: {bucket: a}}"
    message = r"has drivers s3 and s3_v2 \(from REGISTRY_STORAGE_S3_V2_BUCKET\): keep one"
    with pytest.raises(ConfigError, match=message):
        load(file, text, {"REGISTRY_STORAGE_S3_V2_BUCKET": "b"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_AUTH_FILE", "/run/user/1000/containers/auth.json"),
        ("REGISTRY_AUTH", "htpasswd: {realm: x"),
        ("REGISTRY_URL", "https://registry.example.com"),
        ("REGISTRY_CONFIGURATION_PATH", "/nowhere"),
        ("REGISTRY_PORT", "tcp://10.0.0.1:80"),
        ("REGISTRY_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("REGISTRY_LOG_LEVEL", "[nonsense"),
        ("REGISTRY_STORAGE__X", "y"),
        ("REGISTRY_", "x"),
        ("REGISTRY", "x"),
        ("registry_storage", "s3"),
        ("MY_REGISTRY_STORAGE", "s3"),
        ("REGISTRY_HTTP_ADDR_DEEPER", "x"),
        ("REGISTRY_REDIS_OPTIONS_TLS", "x"),
        ("REGISTRY_REDIS_OPTIONS_ADDR", "x"),
    ],
)
def test_a_variable_that_is_none_of_our_business_changes_nothing(
    file: Path, name: str, value: str
) -> None:
    text = FILESYSTEM + "http: {addr: ':5000'}"
    assert load(file, text, {name: value}) == load(file, text)


# --- which file


def test_without_a_name_the_first_default_that_is_there_is_taken(tmp_path: Path) -> None:
    defaults = [str(tmp_path / name) for name in ("a.yml", "b.yml", "c.yml")]
    Path(defaults[1]).write_text(FILESYSTEM)
    Path(defaults[2]).write_text("storage: inmemory")
    assert load_config(None, {}, defaults=defaults).path == defaults[1]


def test_the_variable_names_the_file_and_an_argument_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yml", tmp_path / "two.yml"
    one.write_text(FILESYSTEM)
    two.write_text("storage: inmemory")
    environ = {"REGISTRY_CONFIGURATION_PATH": str(two)}
    assert load_config(None, environ).driver == "inmemory"
    assert load_config(str(one), environ).driver == "filesystem"


def test_no_file_at_all_names_those_that_were_tried(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.yml")
    with pytest.raises(ConfigError, match=r"tried .*missing\.yml"):
        load_config(None, {}, defaults=[missing])
    with pytest.raises(ConfigError, match="no such file"):
        load_config(missing, {})
    with pytest.raises(ConfigError, match="named by REGISTRY_CONFIGURATION_PATH"):
        load_config(None, {"REGISTRY_CONFIGURATION_PATH": missing})


def test_a_file_that_cannot_be_read_says_why_and_for_whom(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r": cannot read it: Is a directory"):
        load_config(str(tmp_path), {})
    with pytest.raises(ConfigError, match="cannot read it"):
        load_config("bad\0name", {})
    with pytest.raises(ConfigError, match="larger than"):
        load_config("/dev/zero", {})


# --- what is wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("just text", "is no mapping"),
        ("- a\n- b", "is no mapping"),
        ("storage:\n  filesystem: [", "line 2: is not YAML"),
        ("a: b: c", "line 1: is not YAML"),
        ("storage: {filesystem: {}}\n\tx: y", "line 2: is not YAML"),
        ("[" * 9_000, "is not YAML that makes sense"),
        ("{[1]: 2}", "is not YAML"),
        ("version: 0.1", "storage: is missing"),
        ("storage:", "storage: is missing"),
        ("storage: {}", "storage: names no driver: add one of filesystem"),
        ("storage: {delete: {enabled: true}}", "storage: names no driver"),
        ("storage: [s3]", "storage: is a list: write a mapping"),
        ("storage: 5", "storage: is a number"),
        ("storage: {ceph: {}}", "storage.ceph: is no storage driver that is known"),
        ("storage: {swift: {}}", "storage.swift: is a driver of the registry's that this tool"),
        ("storage: {oss: {}}", "storage.oss: is a driver of the registry's that this tool has not"),
        ("storage: {filesystem: {}, s3: {}}", "storage: has drivers filesystem and s3: keep one"),
        ("storage: {filesystem: /srv}", "storage.filesystem: is a string: write a mapping"),
        ("storage: {S3: {}}", "storage.S3: the registry does not see keys in this case"),
        ("Storage: {s3: {}}", "Storage: the registry does not see keys in this case"),
        ("version: 0.2\nstorage: inmemory", "version: only version 0.1"),
        ("storage: {s3: {accessKey: x}}", "storage.s3.accessKey: .* write 'accesskey'"),
        (FILESYSTEM + "  maintenance: true", "storage.maintenance: is a boolean"),
        (FILESYSTEM + "  maintenance: {readOnly: {enabled: true}}", "write 'readonly'"),
        (FILESYSTEM + "  maintenance: {readonly: true}", "readonly: is a boolean"),
        (FILESYSTEM + "  maintenance: {readonly: {Enabled: true}}", "write 'enabled'"),
        (
            FILESYSTEM + "  maintenance: {readonly: {enabled: 'true'}}",
            "storage.maintenance.readonly.enabled: is a string: write true or false",
        ),
        (FILESYSTEM + "  maintenance: {readonly: {enabled: 1}}", "enabled: is a number"),
        (FILESYSTEM + "  maintenance: {uploadpurging: {age: 7}}", "age: '7' has no unit"),
        (FILESYSTEM + "  maintenance: {uploadpurging: {enabled: 'no'}}", "enabled: is a string"),
        (FILESYSTEM + "  cache: {blobDescriptor: redis}", "write 'blobdescriptor'"),
        (FILESYSTEM + "http: ':5000'", "http: is a string: write a mapping"),
        (FILESYSTEM + "http: {Addr: ':5000'}", "http.Addr"),
        (FILESYSTEM + "http: {addr: [1]}", "http.addr: is a list: write a single value"),
        (FILESYSTEM + "http: {tls: {Certificate: x}}", "http.tls.Certificate"),
        (FILESYSTEM + "proxy: {remoteURL: x}", "proxy.remoteURL"),
        (FILESYSTEM + "redis: {Addr: x}", "redis.Addr"),
        (FILESYSTEM + "database: {Enabled: true}", "database.Enabled"),
        ("storage: {azure: {credentials: {clientID: x}}}", "credentials.clientID"),
    ],
)
def test_a_bad_config_names_the_file_the_key_and_what_to_do(
    file: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(file, text)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(file: Path) -> None:
    file.write_bytes(b"storage: \xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(str(file), {})


def test_a_second_driver_from_a_variable_names_the_variable(file: Path) -> None:
    message = refusal(file, FILESYSTEM, {"REGISTRY_STORAGE_S3_BUCKET": "b"})
    assert "filesystem and s3 (from REGISTRY_STORAGE_S3_BUCKET)" in message
    message = refusal(file, FILESYSTEM, {"REGISTRY_STORAGE_SERVICE_HOST": "10.0.0.1"})
    assert "storage.service (from REGISTRY_STORAGE_SERVICE_HOST)" in message


def test_a_variable_that_is_no_yaml_is_named(file: Path) -> None:
    message = refusal(file, FILESYSTEM, {"REGISTRY_HTTP_ADDR": "[::]:5000"})
    assert message.startswith("environment variable REGISTRY_HTTP_ADDR: line 1: is not YAML")


@pytest.mark.parametrize(
    "text",
    [
        "storage: {s3: {secretkey: *s3cret}}",
        "storage: {s3: {secretkey: !s3cret x}}",
        "storage: {s3: {secretkey: s3cret: s3cret}}",
        "storage: {s3: {secretkey: %s3cret}}",
        "storage: {s3: {secretkey: 's3cret}}",
        "storage: {s3: s3cret}",
        "storage: {s3: {}}\nredis: s3cret",
        "storage: {s3: {}}\nversion: s3cret",
        "storage: {s3: {}}\nhttp: {host: 'https://s3cret@[x'}",
    ],
)
def test_no_value_is_ever_quoted_in_an_error(file: Path, text: str) -> None:
    assert "s3cret" not in refusal(file, text)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just("1h"))
KEYS = st.sampled_from(
    [
        *("version", "storage", "http", "proxy", "redis", "database", "filesystem", "s3"),
        *("maintenance", "readonly", "uploadpurging", "enabled", "age", "cache", "tls", "addr"),
        *("host", "Storage", "Enabled", "x"),
    ]
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(document=DOCUMENTS, override=st.dictionaries(KEYS, st.text(max_size=8), max_size=2))
def test_any_document_is_a_config_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, document: Any, override: dict[str, str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yml"
    file.write_text(yaml.safe_dump(document))
    environ = {f"REGISTRY_STORAGE_{key.upper()}_X": value for key, value in override.items()}
    message = ""
    try:
        load_config(str(file), environ)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_config_or_an_error_of_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yml"
    file.write_bytes(data)
    message = ""
    try:
        load_config(str(file), {})
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_the_users_own_permissions_are_named(file: Path) -> None:
    file.write_text(FILESYSTEM)
    file.chmod(0)
    if os.geteuid() == 0:
        # Root reads it all the same; what it cannot read is a folder.
        assert load_config(str(file), {}).driver == "filesystem"
    else:
        with pytest.raises(ConfigError, match="cannot read it: Permission denied"):
            load_config(str(file), {})


def test_an_empty_name_is_no_word_on_which_config(tmp_path: Path) -> None:
    """A variable that is not set must not lead to another registry."""
    file = tmp_path / "config.yml"
    file.write_text(FILESYSTEM)
    with pytest.raises(ConfigError, match="is empty"):
        load_config("", {"REGISTRY_CONFIGURATION_PATH": str(file)})


@pytest.mark.parametrize("root", ["/tmp/x\0y", "/tmp/\ud800"])
def test_a_root_that_can_be_no_folder_is_refused(root: str) -> None:
    with pytest.raises(DriverConfigError, match=r"rootdirectory.*cannot be the name of a folder"):
        open_storage(StorageSpec("filesystem", {"rootdirectory": root}))


def test_a_pipe_is_read_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"storage: {filesystem: {rootdirectory: /x}}")
    os.close(writing)
    first = load_config(f"/dev/fd/{reading}", {})
    assert load_config(f"/dev/fd/{reading}", {}) == first
    os.close(reading)
