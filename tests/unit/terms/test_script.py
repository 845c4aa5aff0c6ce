"""Scripts as existing clients send them, and scripts that must be refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.terms.script import (
    MAX_COMMANDS,
    MAX_SCRIPT_BYTES,
    AtEndCapture,
    BadScript,
    CaptureMode,
    Deploy,
    Run,
    Sign,
    Start,
    StreamCapture,
    Terminate,
    Transfer,
    order_error,
    parse_script,
    parse_with_source,
    state_after,
)


def one(command: object) -> object:
    (parsed,) = parse_script(json.dumps([command]))
    return parsed


def test_every_command_is_understood() -> None:
    script = [
        {
            "deploy": {
                "net": [
                    {"id": "n", "ip": "10.0.0.0", "nodeIp": "10.0.0.2", "nodes": {"10.0.0.1": "0xaa"}, "mask": None}
                ],
                "hosts": {"db": "10.0.0.3"},
                "hostname": "box",
                "volumes": {"/p": {"ram": {"size": "1g"}}},
                "env": {"A": "b"},
                "progress": {"updateInterval": "300ms", "updateStep": None},
            }
        },
        {"start": {"args": ["start-entrypoint"]}},
        {"run": {"entry_point": "/bin/sh", "args": ["-c", "ls"], "capture": {"stdout": {"stream": {}}}}},
        {"transfer": {"from": "container:/a", "to": "gftp://0x/x", "format": "tar.gz", "depth": 1, "fileset": "**/*"}},
        {"terminate": {}},
        {"sign": {}},
    ]
    parsed = parse_script(json.dumps(script))
    assert [type(c) for c in parsed] == [Deploy, Start, Run, Transfer, Terminate, Sign]
    assert isinstance(parsed[0], Deploy)
    assert parsed[0].net is not None
    assert parsed[0].net[0].node_ip == "10.0.0.2"
    assert parsed[0].progress is not None
    assert parsed[0].progress.update_interval == "300ms"
    assert isinstance(parsed[3], Transfer)
    assert parsed[3].source == "container:/a"


def test_volumes_may_be_a_list() -> None:
    assert one({"deploy": {"volumes": ["/a"]}}) == Deploy(volumes=["/a"])


def test_keys_of_other_clients_are_ignored() -> None:
    assert one({"run": {"entry_point": "x", "args": None, "env": None, "capture": None, "later": 1}}) == Run(
        entry_point="x"
    )
    assert one({"transfer": {"from": "a", "to": "b", "args": {}}}) == Transfer(source="a", to="b")
    assert one({"start": None}) == Start()


def test_the_source_is_kept_as_it_came() -> None:
    text = '[{"run": {"entry_point": "x", "odd": [1]}}]'
    assert parse_with_source(text)[0][1] == {"run": {"entry_point": "x", "odd": [1]}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        "[]",
        "[1]",
        '["start"]',
        "[{}]",
        '[{"start":{},"run":{}}]',
        '[{"fly":{}}]',
        '[{"Run":{"entry_point":"x"}}]',
        '[{"run":{}}]',
        '[{"run":{"entryPoint":"x"}}]',
        '[{"run":{"entry_point":1}}]',
        '[{"run":{"entry_point":"x","args":"ls"}}]',
        '[{"run":{"entry_point":"x","args":[1]}}]',
        '[{"run":{"entry_point":"x","capture":{"stdout":{}}}}]',
        '[{"run":{"entry_point":"x","capture":{"stdout":{"stream":{},"atEnd":{}}}}}]',
        '[{"run":{"entry_point":"x","capture":{"stdout":{"stream":{"format":"hex"}}}}}]',
        '[{"run":{"entry_point":"x","capture":{"stdout":{"atEnd":{"head":-1}}}}}]',
        '[{"run":[]}]',
        '[{"transfer":{"from":"x"}}]',
        '[{"deploy":{"volumes":3}}]',
        "[" * 100_000,
        '[{"deploy":{"x":' + "[" * 5000 + "]" * 5000 + "}}]",
        "[" + ",".join(['{"start":{}}'] * (MAX_COMMANDS + 1)) + "]",
        '[{"start":{"args":["' + "x" * MAX_SCRIPT_BYTES + '"]}}]',
    ],
)
def test_bad_scripts_are_refused(text: str) -> None:
    with pytest.raises(BadScript) as caught:
        parse_script(text)
    assert caught.value.code == "bad_script"


@given(st.text())
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    with pytest.raises(BadScript):
        parse_script(text)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (CaptureMode(stream=StreamCapture()), b"0123456789"),
        (CaptureMode(stream=StreamCapture(limit=4)), b"0123"),
        (CaptureMode(at_end=AtEndCapture()), b"0123456789"),
        (CaptureMode(at_end=AtEndCapture(head=3)), b"012"),
        (CaptureMode(at_end=AtEndCapture(tail=3)), b"789"),
        (CaptureMode(at_end=AtEndCapture(tail=0)), b""),
        (CaptureMode(at_end=AtEndCapture(tail=30)), b"0123456789"),
        (CaptureMode(at_end=AtEndCapture(head_tail=5)), b"01289"),
        (CaptureMode(at_end=AtEndCapture(head_tail=1)), b"0"),
        (CaptureMode(at_end=AtEndCapture(head_tail=0)), b""),
        (CaptureMode(at_end=AtEndCapture(head_tail=10)), b"0123456789"),
    ],
)
def test_capture_cuts(mode: CaptureMode, expected: bytes) -> None:
    assert mode.cut(b"0123456789") == expected


def test_the_order_of_a_life() -> None:
    deploy, start, run = Deploy(), Start(), Run(entry_point="x")
    transfer = Transfer(source="a", to="b")
    prefix = "Local service error: State error: "
    assert order_error("Initialized", deploy) is None
    for early in (start, run, transfer):
        assert (
            order_error("Initialized", early) == prefix + "Activity is initialized - deploy() command is expected now"
        )
    assert state_after("Initialized", deploy) == "Deployed"
    assert order_error("Deployed", transfer) is None
    assert order_error("Deployed", run) == prefix + "Activity is deployed - start() command is expected now"
    assert state_after("Deployed", start) == "Ready"
    assert order_error("Ready", run) is None
    assert order_error("Ready", deploy) == prefix + "Cannot send command after a successful start()"
    assert order_error("Ready", start) == prefix + "Cannot send command after a successful start()"
    assert state_after("Ready", run) == "Ready"
    assert order_error("Ready", Terminate()) is None
    assert state_after("Ready", Terminate()) == "Initialized"
    assert order_error("Terminated", Terminate()) is not None
    assert order_error("Terminated", run) is not None
