"""What a URL of sentinels says, and what is wrong with one."""

import pytest

from app.errors import ConfigurationError
from app.redis.connection import connect
from app.redis.sentinel_url import is_sentinel_url, parse_sentinel_url, plain_url, shown_sentinel_url

WHOLE = (
    "rediss+sentinel://sparke:p%40ss@one:26380,[::1],two/my%20master/3"
    "?sentinel_username=watch&sentinel_password=s%26ecret&ssl_ca_certs=/ca.pem&health_check_interval=7"
)


def test_everything_of_a_url_goes_where_it_belongs():
    """Addresses, name, database; the user is the master's, `sentinel_` the sentinels', and TLS both's."""
    url = parse_sentinel_url(WHOLE)
    assert url.sentinels == (("one", 26380), ("::1", 26379), ("two", 26379))
    assert (url.master, url.tls) == ("my master", True)
    assert url.master_options == {
        "username": "sparke",
        "password": "p@ss",
        "db": 3,
        "ssl_ca_certs": "/ca.pem",
        "health_check_interval": 7,
    }
    assert url.sentinel_options == {"username": "watch", "password": "s&ecret", "ssl_ca_certs": "/ca.pem"}


def test_what_is_shown_has_no_secret():
    """Neither `repr` nor the URL for people."""
    for shown in (repr(parse_sentinel_url(WHOLE)), shown_sentinel_url(WHOLE)):
        assert not {word for word in ("p%40ss", "p@ss", "ecret", "watch") if word in shown}
    assert shown_sentinel_url(WHOLE) == "rediss+sentinel://one:26380,[::1],two/my%20master/3"


def test_the_least_is_a_host_and_a_name():
    """No user, database 0, no TLS."""
    url = parse_sentinel_url("redis+sentinel://one/mine")
    assert (url.sentinels, url.master, url.tls) == ((("one", 26379),), "mine", False)
    assert url.master_options == url.sentinel_options == {}
    assert is_sentinel_url("redis+sentinel://one/mine")
    assert not is_sentinel_url("redis://one/0")
    assert plain_url("unix:///a?db=1") == "unix:///a?db=1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://one:26379,two:26379", "master's name is missing"),
        ("redis+sentinel://one/?db=1", "master's name is missing"),
        ("redis+sentinel://one,,two/mine", "an address of a sentinel is empty"),
        ("redis+sentinel:///mine", "an address of a sentinel is empty"),
        ("redis+sentinel://one/mine/zero", "is a number"),
        ("redis+sentinel://one:port/mine", "port"),
        ("redis+sentinel://one/mine?ssl_ca_certs=/x.pem", "begin it with rediss"),
        ("rediss+sentinel://one/mine?ssl_cert_reqs=none", "lets anybody"),
        ("rediss+sentinel://one,[::1]:2/mine?ssl_ca_certs=/nowhere.pem", "there is no file"),
    ],
)
def test_what_is_wrong_is_told(url, message):
    """Before anything is sent, as with any URL."""
    with pytest.raises(ConfigurationError, match=message):
        connect(url)
