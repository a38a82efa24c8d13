"""The URLs of endpoints, and what the policy allows of them."""

from __future__ import annotations

import doctest
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.errors import DeliveriesMisconfigured, EndpointRefused
from deliveries.guard import endpoint_policy, endpoint_urls
from deliveries.guard.endpoint_policy import EndpointPolicy, make_endpoint_policy
from deliveries.guard.endpoint_urls import URL_MAX_CHARACTERS, parse_endpoint_url
from runtime.settings import Settings

POLICY = EndpointPolicy()
OPEN = make_endpoint_policy(
    Settings(deliveries_schemes="http,https", deliveries_ports="1-65535", deliveries_allowed_networks="0.0.0.0/0, ::/0")
)

NORMALISED = {
    "https://example.com": "https://example.com/",
    "https://example.com/": "https://example.com/",
    "HTTPS://EXAMPLE.Com/Path?Query=1": "https://example.com/Path?Query=1",
    "https://example.com?a=1": "https://example.com/?a=1",
    "https://example.com:443/": "https://example.com/",
    "https://example.com:8443/": "https://example.com:8443/",
    "https://example.com./": "https://example.com/",
    "https://example.com/a@b": "https://example.com/a@b",
    "https://example.com/%C3%A4?b=%0d%0a": "https://example.com/%C3%A4?b=%0d%0a",
    "https://bücher.de/": "https://xn--bcher-kva.de/",
    "https://BÜCHER.de/": "https://xn--bcher-kva.de/",
    "https://XN--BCHER-KVA.de/": "https://xn--bcher-kva.de/",
    "https://例え。jp/": "https://xn--r8jz45g.jp/",
    "https://ｅｘａｍｐｌｅ.com/": "https://example.com/",
    "https://faß.de/": "https://xn--fa-hia.de/",
    "https://1.2.3.4.example.com/": "https://1.2.3.4.example.com/",
    "https://127.0.0.1.nip.io/": "https://127.0.0.1.nip.io/",
    "https://r3---sn-a.example.com/": "https://r3---sn-a.example.com/",
    "https://8.8.8.8/": "https://8.8.8.8/",
    "https://8.8.8.8./": "https://8.8.8.8/",
    "https://８.８.８.８/": "https://8.8.8.8/",
    "https://⑧.⑧.⑧.⑧/": "https://8.8.8.8/",
    "https://8。8。8。8/": "https://8.8.8.8/",
    "https://[2001:4860:4860:0:0:0:0:8888]/": "https://[2001:4860:4860::8888]/",
    "https://[2A00:1450:4001:81A::200E]:8443/": "https://[2a00:1450:4001:81a::200e]:8443/",
}

REFUSED = {
    "": "malformed", "example.com": "malformed", "//example.com/": "malformed", "https:/example.com": "malformed",
    "https:example.com": "malformed", " https://example.com/": "malformed", "https://example.com/ ": "malformed",
    "https://example.com/a b": "malformed",
    "https://exam\tple.com/": "malformed", "https://example.com\n/": "malformed",
    "https://example.com/\r\nHost: a": "malformed", "https://example.com\\@10.0.0.1/": "malformed",
    "https:\\\\example.com/": "malformed", "https://exam\u00adple.com/": "malformed",
    "https://a\u200b.com/": "malformed",
    "https://example.com\x00/": "malformed", "https:///path": "malformed", "https://": "malformed",
    "https://:443/": "malformed", "https://::1/": "malformed", "https://[::1/": "malformed",
    "https://[::1]a/": "malformed",
    "https://[[::1]]/": "malformed", f"https://example.com/{'a' * URL_MAX_CHARACTERS}": "malformed",
    "http://example.com/": "scheme", "ftp://example.com/": "scheme", "file:///etc/passwd": "scheme",
    "gopher://example.com/": "scheme", "javascript://example.com/": "scheme", "https+a://example.com/": "scheme",
    "https://user@example.com/": "userinfo", "https://user:word@example.com/": "userinfo",
    "https://example.com@127.0.0.1/": "userinfo", "https://@example.com/": "userinfo",
    "https://example.com:443@127.0.0.1:8443/": "userinfo",
    "https://example.com/#a": "fragment", "https://example.com#": "fragment",
    "https://127.0.0.1#@example.com/": "fragment",
    "https://%31%32%37.0.0.1/": "percent_encoding", "https://example%2ecom/": "percent_encoding",
    "https://[fe80::1%25eth0]/": "percent_encoding", "https://[fe80::1%eth0]/": "percent_encoding",
    "https://2130706433/": "odd_address", "https://0x7f000001/": "odd_address", "https://017700000001/": "odd_address",
    "https://0177.0.0.1/": "odd_address", "https://0x7f.0.0.1/": "odd_address", "https://127.1/": "odd_address",
    "https://127.0.1/": "odd_address", "https://127.0.0.01/": "odd_address", "https://127.0.0.0x1/": "odd_address",
    "https://0/": "odd_address", "https://0x/": "odd_address", "https://256.0.0.1/": "odd_address",
    "https://1.2.3.4.5/": "odd_address", "https://4294967296/": "odd_address", "https://example.1/": "odd_address",
    "https://example.0x7f/": "odd_address", "https://１２７.１/": "odd_address",
    "https://２１３０７０６４３３/": "odd_address",
    "https://[127.0.0.1]/": "odd_address", "https://[v1.a]/": "odd_address", "https://[]/": "odd_address",
    "https://[::1::]/": "odd_address", "https://[::ffff:127.1]/": "odd_address", "https://[0x1::1]/": "odd_address",
    "https://exa_mple.com/": "hostname", "https://-a.com/": "hostname", "https://a-.com/": "hostname",
    "https://a..com/": "hostname", "https://.example.com/": "hostname", "https://example.com../": "hostname",
    "https://127.0.0.1../": "hostname", "https://exam*ple.com/": "hostname", "https://a,b.com/": "hostname",
    f"https://{'a' * 64}.com/": "hostname", f"https://{'a.' * 127}com/": "hostname", "https://xn--a.com/": "hostname",
    "https://xn--127-.com/": "hostname", "https://a\u2044b.com/": "hostname", "https://a／b.com/": "hostname",
    "https://a＠b.com/": "hostname", "https://☃\u0338.com/": "hostname",
    "https://localhost/": "refused_hostname", "https://LOCALHOST./": "refused_hostname",
    "https://a.localhost/": "refused_hostname", "https://ｌｏｃａｌｈｏｓｔ/": "refused_hostname",
    "https://kubernetes.default.svc.cluster.local/": "refused_hostname", "https://postgres/": "refused_hostname",
    "https://metadata.google.internal/": "refused_hostname", "https://router.home.arpa/": "refused_hostname",
    "https://a.onion/": "refused_hostname",
    "https://example.com:80/": "port", "https://example.com:22/": "port", "https://example.com:/": "port",
    "https://example.com:0/": "port", "https://example.com:0443/": "port", "https://example.com:65536/": "port",
    "https://example.com:+443/": "port", "https://example.com:４４３/": "port", "https://example.com:44a/": "port",
    "https://example.com/ä": "path", "https://example.com/%": "path", "https://example.com/%zz": "path",
    "https://example.com/a[0]": "path", "https://example.com/<a>": "path", "https://example.com/a|b": "path",
    "https://127.0.0.1/": "address", "https://127.0.0.1./": "address", "https://①②⑦.⓪.⓪.①/": "address",
    "https://１２７。０。０。１/": "address", "https://169.254.169.254/latest/meta-data/": "address",
    "https://10.0.0.1:8443/": "address", "https://0.0.0.0/": "address", "https://[::]/": "address",
    "https://[::1]/": "address", "https://[0:0:0:0:0:0:0:1]/": "address", "https://[::ffff:127.0.0.1]/": "address",
    "https://[::ffff:7f00:1]/": "address", "https://[64:ff9b::7f00:1]/": "address",
    "https://[fd00:ec2::254]/": "address", "https://[fe80::1]/": "address", "https://[2002:7f00:1::]/": "address",
    "https://𝟙𝟚𝟟.𝟘.𝟘.𝟙/": "address", "https://example.com：8443/": "hostname", "https://example.com？a/": "hostname",
    "https://example.com＃/": "hostname", "https://％31.com/": "hostname", "https://［::1］/": "malformed",
    "https://example.com／@10.0.0.1/": "userinfo", "https://0177.0.0.1./": "odd_address",
    "https://0X7F.1/": "odd_address", "https://[::ffff:0177.0.0.1]/": "odd_address",
    "https://१२७.0.0.1/": "odd_address",
    "https://ⅷ.8.8.8/": "odd_address", "https://1e3/": "refused_hostname", "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/": "refused_hostname",
    "https://localhoſt/": "refused_hostname", "https://metadata.google。internal/": "refused_hostname",
}  # fmt: skip


@pytest.mark.parametrize(("text", "normalised"), NORMALISED.items())
def test_a_url_is_normalised(text: str, normalised: str) -> None:
    """Spellings that mean one thing to everybody become one text."""
    assert str(parse_endpoint_url(text, POLICY)) == normalised


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_a_url_is_refused_with_its_reason(text: str, reason: str) -> None:
    """What can be read in two ways, or leads where no endpoint may be, is refused by name."""
    with pytest.raises(EndpointRefused) as refused:
        parse_endpoint_url(text, POLICY)
    assert refused.value.reason == reason
    assert refused.value.why.endswith(".")


@pytest.mark.parametrize("text", NORMALISED)
def test_a_normalised_url_stays(text: str) -> None:
    """What is stored at registration is read as the same at each attempt."""
    parsed = parse_endpoint_url(text, POLICY)
    assert parse_endpoint_url(str(parsed), POLICY) == parsed


PIECES = st.sampled_from([*"0123456789.:/?#@[]%-_xX", "127", "0x7f", "::", "xn--", "１", "。", "ü", "①", "a", "com"])


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=12))
def test_any_text_is_refused_or_normalised_for_good(text: str) -> None:
    """No text fails in another way, and none has two normal forms; a number at the end makes it an address."""
    try:
        parsed = parse_endpoint_url(f"https://{text}", OPEN)
    except EndpointRefused:
        return
    assert parse_endpoint_url(str(parsed), OPEN) == parsed
    assert str(parsed).isascii()
    assert (parsed.address is not None) == (":" in parsed.host or set(parsed.host) <= set(string.digits + "."))


def test_plain_http_is_allowed_by_setting() -> None:
    """Tests may use http; its default port is 80."""
    policy = make_endpoint_policy(Settings(deliveries_schemes="http,https", deliveries_ports="80, 8000-8010"))
    assert str(parse_endpoint_url("http://example.com:80/", policy)) == "http://example.com/"
    assert parse_endpoint_url("http://example.com:8010/", policy).port == 8010
    with pytest.raises(EndpointRefused):
        parse_endpoint_url("http://example.com:8011/", policy)


def test_names_are_allowed_by_setting() -> None:
    """A list of names shuts out all others, and lets in private ones; a refused name is refused within it."""
    policy = make_endpoint_policy(
        Settings(deliveries_allowed_names="hooks.internal, .Example.com", deliveries_refused_names="bad.example.com")
    )
    for name in ("hooks.internal", "a.hooks.internal", "example.com", "a.example.com"):
        assert parse_endpoint_url(f"https://{name}/", policy).host == name
    for name in ("internal", "other.internal", "badexample.com", "bad.example.com", "a.bad.example.com", "example.org"):
        with pytest.raises(EndpointRefused) as refused:
            parse_endpoint_url(f"https://{name}/", policy)
        assert refused.value.reason == "refused_hostname"


def test_a_list_of_names_shuts_out_addresses() -> None:
    """One in place of a name would pass by the list; those in a listed network may stay."""
    names = Settings(deliveries_allowed_names="example.com", deliveries_allowed_networks="10.0.0.0/8")
    policy = make_endpoint_policy(names)
    for host in ("8.8.8.8", "[2606:4700::1]"):
        assert parse_endpoint_url(f"https://{host}/", POLICY).address is not None
        with pytest.raises(EndpointRefused) as refused:
            parse_endpoint_url(f"https://{host}/", policy)
        assert refused.value.reason == "refused_hostname"
    assert parse_endpoint_url("https://10.1.2.3/", policy).host == "10.1.2.3"


def test_networks_are_allowed_by_setting() -> None:
    """An address in a listed network may be an endpoint's."""
    policy = make_endpoint_policy(Settings(deliveries_allowed_networks="10.0.0.0/8"))
    assert str(parse_endpoint_url("https://10.1.2.3/", policy)) == "https://10.1.2.3/"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ports", ""), ("ports", "0"), ("ports", "443-80"), ("ports", "https"), ("ports", "65536"),
        ("allowed_names", "*.example.com"), ("allowed_names", "https://example.com"), ("refused_names", "a b"),
        ("refused_names", "8.8.8.8"), ("refused_names", "a..b"), ("refused_names", "a;b"), ("allowed_names", "%41.com"),
        ("refused_names", "bücher.de"), ("allowed_networks", "10.0.0.1/8"), ("allowed_networks", "example.com"),
        ("allowed_networks", "64:ff9b:1::/48"),
    ],
)  # fmt: skip
def test_a_setting_that_can_not_be_used_is_named(name: str, value: str) -> None:
    """A mistyped policy stops the process: it would allow or refuse something else than was meant."""
    with pytest.raises(DeliveriesMisconfigured, match=f"PLANT_DELIVERIES_{name.upper()}"):
        make_endpoint_policy(Settings(**{f"deliveries_{name}": value}))


def test_the_error_tells_no_address() -> None:
    """A subscriber learns that an address is not public, not which it is."""
    with pytest.raises(EndpointRefused) as refused:
        parse_endpoint_url("https://10.20.30.40/", POLICY)
    assert "10.20" not in str(refused.value)


def test_examples() -> None:
    """The examples in the docstrings hold."""
    assert doctest.testmod(endpoint_urls).failed + doctest.testmod(endpoint_policy).failed == 0
