# SPDX-License-Identifier: Apache-2.0
"""What is computed before a boot is what a boot measures (ENC-9)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bombyx.adapters.simulator import SimulatedEnclave, SimulatedImage, SimulatedPlatform
from bombyx.cli.image import app
from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.expected import BootFacts, expect


def facts_of(enclave: SimulatedEnclave) -> BootFacts:
    said = {event.name: event.payload for event in enclave.events}
    return BootFacts(
        instance_id=said["instance-id"],
        os_image_hash=said["os-image-hash"],
        key_provider=said["key-provider"],
        storage_fs=said["storage-fs"],
    )


@pytest.mark.parametrize("version", [1, 2])
def test_rtmr3_is_foretold(version: int, platform: SimulatedPlatform) -> None:
    """ENC-9: for both forms of events."""
    settings = {"event_log_version": version}
    compose = json.dumps({"manifest_version": 2, "name": "a", **settings}).encode()
    image = SimulatedImage(name="a", compose=compose)
    enclave = SimulatedEnclave(platform=platform, image=image, event_version=version)
    found = expect(compose, facts_of(enclave))
    report = enclave.report(bytes(64))
    assert found.rtmr3 == report.rtmr[3]
    assert found.mr_config_id == report.mr_config_id.ljust(48, b"\0")
    assert [name for name, _ in found.missing] == ["mrtd", "rtmr0", "rtmr1", "rtmr2"]


def test_what_only_a_boot_knows_is_named(image: SimulatedImage) -> None:
    """ENC-9: absent, with the reason; never a value made up."""
    found = expect(image.compose)
    assert found.rtmr3 is None
    assert "instance-id" in dict(found.missing)["rtmr3"]
    assert all(why.startswith("not computed: ") for _, why in found.missing)


@given(st.binary(max_size=60) | st.sampled_from([b"{}", b'{"name":1,"manifest_version":2}', b"[]", b'"x"']))
def test_what_is_no_compose_file_has_no_measurements(data: bytes) -> None:
    """ENC-9."""
    with pytest.raises(MalformedMessage):
        expect(data)


def test_the_worker_image_from_template_to_reference_value(tmp_path: Path, repo: Path) -> None:
    """ENC-9: the commands, on the template that is shipped."""
    network, out = tmp_path / "network.json", tmp_path / "app-compose.json"
    network.write_text('{"version":1,"policy":"$x"}')
    digest = "sha256:" + "ab" * 32
    template = str(repo / "images" / "worker" / "app-compose.template.json")
    run = CliRunner().invoke
    given_options = ["--digest", digest, "--network", str(network), "--out", str(out)]
    made = run(app, ["compose", template, *given_options])
    assert made.exit_code == 0, made.output
    inner = json.loads(out.read_bytes())["docker_compose_file"]
    assert digest in inner and '"policy":"$$x"' in inner and "${" not in inner
    shown = run(app, ["measure", str(out), "--json"])
    told = json.loads(shown.output)
    assert told["measurements"]["compose_hash"] == made.output.strip()
    assert told["measurements"]["mrtd"] == "not computed: needs dstack-mr and the files of the dstack OS image"
    assert made.output.strip() in told["reference_value"]
