"""What an operator says, in which order it counts, and how a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from shem.errors import Misconfigured
from shem.node.config import NodeConfig, load_config, seconds_of


def load(tmp_path: Path, toml: str = "", overrides: dict[str, object] | None = None, **env: str) -> NodeConfig:
    (tmp_path / "config.toml").write_text(toml)
    return load_config(tmp_path, overrides or {}, env)


def test_the_environment_of_golems_daemon_means_the_same(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        YAGNA_API_URL="http://127.0.0.1:1234",
        YAGNA_AUTOCONF_APPKEY="a-key-that-is-long",
        YAGNA_AUTOCONF_ID_SECRET="0x" + "ab" * 32,
        YAGNA_API_ALLOW_ORIGIN="https://a.example, https://b.example",
        YA_NET_BIND_URL="udp://0.0.0.0:11500",
        MAX_REST_TIMEOUT="30",
        MARKET_MAX_EVENTS_DEFAULT="7",
        MARKET_MAX_EVENTS_MAX="70",
        DEFAULT_SUBSCRIPTION_TTL="1h 30min",
        GSB_URL="unix:/tmp/x",
        YA_NET_TYPE="hybrid",
        CENTRAL_NET_HOST="somewhere:1",
    )
    assert (config.api_host, config.api_port, config.peer_bind) == ("127.0.0.1", 1234, "0.0.0.0:11500")
    assert config.api_allow_origin == ("https://a.example", "https://b.example")
    assert (config.app_key, config.id_secret) == ("a-key-that-is-long", "0x" + "ab" * 32)
    assert (config.max_rest_timeout_s, config.subscription_ttl_s) == (30, 5400)
    assert (config.market_events_default, config.market_events_max) == (7, 70)
    assert config.api_max_age_s == 3600


def test_files_yield_to_the_environment_and_that_to_the_command_line(tmp_path: Path) -> None:
    toml = 'api_port = 1\nname = "file"\npeer_bind = "1.1.1.1:1"\n'
    env = {"YAGNA_API_URL": "http://localhost:2", "YA_NET_BIND_URL": "udp://2.2.2.2:2", "SHEM_PEER_BIND": "3.3.3.3:3"}
    config = load(tmp_path, toml, {"api_port": 3, "name": None}, **env)
    assert (config.name, config.api_host, config.api_port) == ("file", "localhost", 3)
    assert config.peer_bind == "3.3.3.3:3"  # our own name of it goes before the original's


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("YAGNA_API_URL", "https://127.0.0.1:1"),
        ("YAGNA_API_URL", "127.0.0.1:7465"),
        ("YAGNA_API_URL", "http://h:99999"),
        ("YAGNA_API_URL", "http://[::1"),
        ("YAGNA_API_URL", "http://h:1/path"),
        ("YA_NET_BIND_URL", "tcp://0.0.0.0:1"),
        ("MAX_REST_TIMEOUT", "0.25"),
        ("MAX_REST_TIMEOUT", "soon"),
        ("MARKET_MAX_EVENTS_MAX", "1e9"),
        ("DEFAULT_SUBSCRIPTION_TTL", "1 fortnight"),
        ("DEFAULT_SUBSCRIPTION_TTL", "3600"),
        ("DEFAULT_SUBSCRIPTION_TTL", "99999999d"),
        ("YAGNA_AUTOCONF_APPKEY", "short"),
        ("YAGNA_AUTOCONF_ID_SECRET", "ab" * 31),
        ("YAGNA_AUTOCONF_ID_SECRET", "zz" * 32),
    ],
)
def test_a_mistake_names_its_variable_and_no_value(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        load(tmp_path, **{name: value})
    assert refused.value.message.startswith(f"{name}: ")
    assert value not in refused.value.message


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h", 3600), ("90s", 90), ("500ms", 0.5), ("1day 2hours", 93600), ("2 m", 120), ("1H", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "h", "1", "1x", "1h-", "-1h", "1.5h", "1" * 100 + "h", "1h  x"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        seconds_of(text)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    config = load(tmp_path, YAGNA_AUTOCONF_APPKEY="a-key-that-is-long", YAGNA_AUTOCONF_ID_SECRET="ab" * 32)
    assert repr(config) == f"NodeConfig({str(tmp_path)!r})"
    assert str(config) == repr(config)


NETWORK = '[networks.mine]\nchain_id = 1337\nrpc_urls = ["http://127.0.0.1:8545"]\ntoken = "0x01"\n'


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ('vualt = "0x02"', "networks.mine.vualt is no setting of a network", None),
        ("max_fee_gwei = 30", "networks.mine.max_fee_gwei: Expected `str`, got `int`", 'in quotes, such as "30"'),
        ("credit = 0.5", "networks.mine.credit: Expected `str`, got `float`", 'in quotes, such as "0.5"'),
        ("aliases = 'other'", "networks.mine.aliases: Expected `array`, got `str`", 'in brackets, such as ["other"]'),
        ("depth = -1", "networks.mine.depth: Expected `int` >= 0", None),
        ('finality_s = "soon"', "networks.mine.finality_s: Expected `float | null`, got `str`", None),
    ],
)
def test_a_mistake_in_a_network_names_it_and_what_to_write(
    tmp_path: Path, line: str, message: str, hint: str | None
) -> None:
    """Also where another network stands before it."""
    good = NETWORK.replace("mine", "good").replace("1337", "1338")
    with pytest.raises(Misconfigured) as refused:
        load(tmp_path, good + NETWORK + line)
    assert refused.value.code == "bad_config"
    assert refused.value.message == f"{tmp_path / 'config.toml'}: {message}"
    assert hint is None or hint in (refused.value.hint or "")


@pytest.mark.parametrize("url", ["polygon.example/rpc", "", "ftp://polygon.example", "https://", "http://h:99999/x"])
def test_an_endpoint_without_an_address_stops_the_start(tmp_path: Path, url: str) -> None:
    """Found at the first payment, it would be too late."""
    with pytest.raises(Misconfigured) as refused:
        load(tmp_path, NETWORK.replace("http://127.0.0.1:8545", url))
    assert "networks.mine.rpc_urls" in refused.value.message
    assert "https://" in (refused.value.hint or "")


@pytest.mark.parametrize(
    "change", [("mine", '"my-net"'), ("mine", '"My Net"'), ("token =", 'token_symbol = "a-b"\ntoken =')]
)
def test_names_that_a_platform_could_not_be_told_by_stop_the_start(tmp_path: Path, change: tuple[str, str]) -> None:
    """``erc20-my-net-glm`` has a part too many for whoever reads it."""
    with pytest.raises(Misconfigured) as refused:
        load(tmp_path, NETWORK.replace(*change))
    assert refused.value.code == "bad_config"
    assert "networks." in refused.value.message
    assert "letters" in (refused.value.hint or "")


def test_a_token_may_be_called_as_tokens_are(tmp_path: Path) -> None:
    config = load(tmp_path, NETWORK + 'token_symbol = "USDC.e"')
    assert config.networks["mine"].token_symbol == "USDC.e"
