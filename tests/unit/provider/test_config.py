"""Settings: what the file and the command line may say, and what is refused by name."""

from __future__ import annotations

from contextlib import chdir
from decimal import Decimal
from pathlib import Path

import pytest

from shem.errors import Misconfigured
from shem.provider.config import ProviderConfig, load_provider_config
from shem.provider.presets import DEFAULT_PRESET, Preset
from shem.terms.pricing import LinearPricing


def test_defaults_without_a_file(tmp_path: Path) -> None:
    config = load_provider_config(tmp_path)
    assert config.data_dir == tmp_path
    assert config.enabled == (DEFAULT_PRESET,)
    assert config.node_name
    assert config.images == tmp_path / "images"


def test_the_command_line_lies_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "provider.toml").write_text(
        'subnet = "lab"\nname = "from-file"\nactive_presets = ["cheap"]\n'
        "[limits]\ncpu_threads = 8\nmemory_gib = 4\n"
        '[[presets]]\nname = "dear"\ncpu_per_hour = "9"\n[[presets]]\nname = "cheap"\nenv_per_hour = "0.36"\n'
    )
    config = load_provider_config(
        tmp_path,
        {"name": "from-cli", "driver": "oci", "threads": 2, "price_start": "0.5", "images_dir": None, "share": 1}
        | {"platforms": ("channel-*", "free")},
    )
    assert (config.name, config.subnet, config.drivers) == ("from-cli", "lab", ("oci",))
    assert (config.limits.cpu_threads, config.limits.memory_gib) == (2, 4)
    assert config.platforms == ("channel-*", "free")
    assert config.enabled == (Preset(name="cheap", env_per_hour="0.36", start="0.5"),)


def test_both_runtimes_unless_the_owner_says_otherwise(tmp_path: Path) -> None:
    assert load_provider_config(tmp_path, {"runtimes": None}).runtimes == ("oci", "vm")
    (tmp_path / "provider.toml").write_text("runtimes = ['vm']")
    assert load_provider_config(tmp_path).runtimes == ("vm",)
    assert load_provider_config(tmp_path, {"runtimes": ("oci",)}).runtimes == ("oci",)


def test_agents_that_share_a_machine_have_image_directories_of_their_own(tmp_path: Path) -> None:
    base = tmp_path / "shared"
    directories = {
        load_provider_config(tmp_path, {"name": name, "share": 2, "images_dir": base}).images
        for name in ("a", "b/../c")
    }
    assert len(directories) == 2
    assert all(directory.parent == base for directory in directories)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("colour = 1", "colour"),
        ("[limits]\nmemory_gib = -1", "memory_gib"),
        ("[limits]\nmemory_gib = 'much'", "memory_gib"),
        ("active_presets = ['x']", "'x'"),
        ("presets = []", "preset"),
        ("[[presets]]\nname = 'a'\n[[presets]]\nname = 'a'", "name"),
        ("[[presets]]\nname = 'a'\nstart = '-1'", "start"),
        ("[[presets]]\nname = 'a'\ncpu_per_hour = '1.0000000000000000001'", "cpu_per_hour"),
        ("[rules]\ninterval_range_s = [10, 5]", "interval_range_s"),
        ("subnet = 'a)(b'", "subnet"),
        ("subnet = 'a@b'", "subnet"),
        ("subnet = ''", "subnet"),
        ("share = 0", "share"),
        ("runtimes = []", "runtimes"),
        ("runtimes = ['vm', 'vm']", "runtimes"),
        ("runtimes = ['wasm']", "runtimes"),
        ("[[presets]]\nname = 'a'\nruntimes = ['wasm']", "runtimes"),
        ("country_code = 'Switzerland'", "country_code"),
        ("platforms = ['Channel']", "Channel"),
        ("platforms = ['a-b-c-d']", "a-b-c-d"),
        ("[rules]\ncover_s = 0", "cover_s"),
        ("[rules]\nleast_cover_s = 601", "least_cover_s"),
        ("[rules]\ncover_after_s = -1", "cover_after_s"),
        ("[rules]\ncover_spare_s = -1", "cover_spare_s"),
        ("[rules]\ncover_s = 60\ncover_spare_s = 60", "cover_spare_s"),
        ("[rules]\naccept_timeout_s = 0", "accept_timeout_s"),
        ("[rules]\naccept_timeout_s = 4", "accept_timeout_s"),
        ("[rules]\npayment_timeout_s = 0", "payment_timeout_s"),
        ("[rules]\ndebit_note_interval_s = 0", "debit_note_interval_s"),
        ("platforms = []", "platforms"),
        ("this is not toml", "provider.toml"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "provider.toml").write_text(text)
    with pytest.raises(Misconfigured, match=word):
        load_provider_config(tmp_path)


@pytest.mark.parametrize("text", ["", "1e400", "nan", "-0.1", "ten", "1000000001"])
def test_prices_that_are_none(text: str) -> None:
    with pytest.raises(Misconfigured):
        Preset(name="p", start=text)


@pytest.mark.parametrize("hourly", ["0", "0.025", "1", "0.000001", "123.456"])
def test_a_price_survives_the_way_through_an_offer(hourly: str) -> None:
    pricing = Preset(name="p", start="0.1", env_per_hour=hourly, cpu_per_hour=hourly).pricing()
    assert LinearPricing.from_properties(pricing.to_properties()) == pricing
    assert abs(pricing.coeffs[0] * 3600 - Decimal(hourly)) <= Decimal(hourly) * Decimal("1e-15")


def test_config_is_frozen(tmp_path: Path) -> None:
    config = ProviderConfig(data_dir=tmp_path)
    with pytest.raises(AttributeError):
        config.subnet = "x"  # type: ignore[misc]


def test_relative_directories_are_those_of_the_start(tmp_path: Path) -> None:
    """Sandboxes are made by other programs, in other working directories."""
    with chdir(tmp_path):
        config = load_provider_config(Path("mine"), {"images_dir": Path("cache")})
        direct = ProviderConfig(data_dir=Path("mine"))
    assert (config.data_dir, config.units_dir) == (tmp_path / "mine", tmp_path / "mine" / "units")
    assert config.images == tmp_path / "cache"
    assert direct.images == tmp_path / "mine" / "images"
