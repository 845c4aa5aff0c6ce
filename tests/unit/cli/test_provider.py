"""What ``shem provider run`` says when its offers are published."""

from __future__ import annotations

from typing import Any

from shem.cli.provider import offering

FACTS: dict[str, Any] = {
    "name": "shed",
    "node_id": "0x" + "a" * 40,
    "driver": "bwrap",
    "runtimes": ["oci", "vm"],
    "subnet": "public",
    "max_agreements": 2,
    "offers": {"oci/default": "1" * 65, "vm/default": "2" * 65},
    "platforms": ["channel-polygon-glm", "erc20-polygon-glm"],
}


def test_the_owner_reads_what_is_offered_and_how_it_is_paid() -> None:
    text = offering(FACTS)
    assert text.startswith(f"offering as shed (0x{'a' * 40}), 2 agreements at once at most:\n")
    assert "paid by    channel-polygon-glm, erc20-polygon-glm\n" in text
    assert "oci/default, vm/default" in text
    assert "{" not in text  # it was the facts as Python writes them
    assert "nothing" not in text


def test_who_would_work_for_nothing_is_told() -> None:
    assert "no network to be paid on" in offering(FACTS | {"platforms": ["free"], "max_agreements": 1})
