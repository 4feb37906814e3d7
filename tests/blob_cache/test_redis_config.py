"""The section ``redis`` of a registry's config, in the forms of its several registries."""

from __future__ import annotations

from typing import Any

import pytest

from registry_gc.blob_cache.redis_config import RedisConfig, redis_config
from registry_gc.configuring.file import ConfigError


def read(section: dict[str, Any]) -> RedisConfig:
    config = redis_config("config.yml", section)
    assert config is not None
    return config


def test_distribution_2_has_one_address() -> None:
    config = read({"addr": "cache:6379", "password": 123, "db": 2})
    assert config == RedisConfig((("cache", 6379),), password="123", db=2)
    assert not config.cluster


def test_distribution_3_has_a_list_and_certificates() -> None:
    tls = {"certificate": "c.pem", "key": "k.pem", "rootcas": ["a.pem", "b.pem"]}
    config = read({"addrs": ["one:1", "two:2"], "username": "u", "password": "p", "tls": tls})
    assert config.cluster
    assert config.name == "one:1, two:2"
    assert (config.tls, config.verify, config.username) == (True, True, "u")
    assert (config.certificate, config.key) == ("c.pem", "k.pem")
    assert config.authorities == ("a.pem", "b.pem")


def test_a_certificate_without_its_key_is_left_out_but_tls_is_spoken() -> None:
    config = read({"addrs": ["a:1"], "tls": {"certificate": "c.pem"}})
    assert (config.tls, config.certificate) == (True, "")


def test_gitlab_has_a_list_with_commas_and_a_switch_for_tls() -> None:
    config = read({"addr": "a:1, b:2", "mainname": "m", "tls": {"enabled": True, "insecure": True}})
    assert (config.addresses, config.master) == ((("a", 1), ("b", 2)), "m")
    assert (config.tls, config.verify, config.cluster) == (True, False, False)
    assert config.name == "m (a:1, b:2)"
    assert not read({"addr": "a:1", "tls": {"enabled": False}}).tls


def test_addresses_as_go_writes_them() -> None:
    addresses = read({"addrs": [":6379", "[::1]:7", "/run/redis.sock"]}).addresses
    assert addresses == (("localhost", 6379), ("::1", 7), ("/run/redis.sock", 0))


def test_both_forms_may_say_the_same() -> None:
    assert read({"addr": "a:1", "addrs": ["a:1"]}).addresses == (("a", 1),)


def test_no_address_is_no_redis() -> None:
    assert redis_config("config.yml", {"password": "x"}) is None
    assert redis_config("config.yml", {"addrs": [], "addr": ""}) is None


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"addr": "s3cret:1", "addrs": ["b:1"]}, "redis.addrs"),
        ({"addr": "s3cret"}, "redis.addr"),
        ({"addr": "s3cret:0"}, "redis.addr"),
        ({"addrs": ["s3cret:x"]}, "redis.addrs"),
        ({"addrs": ["s3::cret:1"]}, "redis.addrs"),
        ({"addrs": {"s3cret": 1}}, "redis.addrs"),
        ({"addr": "a:1", "db": "s3cret"}, "redis.db"),
        ({"addr": "a:1", "db": "9" * 5000}, "redis.db"),
        ({"addr": "s3cret:" + "9" * 5000}, "redis.addr"),
        ({"addr": "a:1", "password": ["s3cret"]}, "redis.password"),
        ({"addr": "a:1", "tls": "s3cret"}, "redis.tls"),
        ({"addr": "a:1", "tls": {"enabled": "s3cret"}}, "redis.tls.enabled"),
        ({"addr": "a:1", "tls": {"rootcas": [{"s3cret": 1}]}}, "redis.tls.rootcas"),
    ],
)
def test_what_cannot_be_understood_is_named_and_not_shown(
    section: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.yml: {key}: ") as caught:
        redis_config("config.yml", section)
    assert "s3cret" not in str(caught.value)


def test_passwords_are_not_in_its_repr() -> None:
    section = {"addr": "a:1", "password": "s3cret", "sentinelpassword": "s3cret"}
    assert "s3cret" not in repr(read(section))
