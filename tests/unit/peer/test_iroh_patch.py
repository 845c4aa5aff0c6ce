"""The repairs of the bindings are for one version, checked, and clear about it."""

import importlib.metadata
from types import ModuleType

import pytest
from iroh import iroh_ffi

from shem.errors import Misconfigured
from shem.node.peer.iroh_patch import SUPPORTED, install


def test_the_pinned_version_is_installed_and_passes() -> None:
    assert importlib.metadata.version("iroh") == SUPPORTED
    install(iroh_ffi, SUPPORTED)
    install(iroh_ffi, SUPPORTED)
    converter = iroh_ffi._UniffiFfiConverterBytes
    for sample in (b"", b"x", bytes(1 << 20), bytearray(b"abc"), memoryview(b"abc")):
        assert converter.lift(converter.lower(sample)) == bytes(sample)


@pytest.mark.parametrize("version", ["1.1.0", "1.2.1", "1.3.0", ""])
def test_another_version_is_refused(version: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        install(iroh_ffi, version)
    assert refused.value.code == "iroh_unusable"
    assert SUPPORTED in refused.value.hint


def test_bindings_of_another_shape_are_refused() -> None:
    with pytest.raises(Misconfigured) as refused:
        install(ModuleType("iroh_ffi"), SUPPORTED)
    assert "_UniffiRustBuffer" in refused.value.message
