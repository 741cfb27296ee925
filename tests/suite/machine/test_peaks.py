"""What devices compute at most: which names are known, and what share of it a speed is."""

from __future__ import annotations

import pytest

from conf.settings import RequestError
from suite.machine.peaks import named, of_device, utilisation


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        # A seventh of one, and other chips of like names.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("CPU", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(name, known):
    found = of_device(name, count=2)
    assert (found and found.name) == known and (found is None or found.count == 2)


def test_devices_are_typed_with_their_number():
    assert (named("h100").count, named("h100x8").count, named("h100x8").name) == (1, 8, "h100")
    assert named("h100").flops_per_second("bfloat16") > 10 * named("h100").flops_per_second("none")


@pytest.mark.parametrize("typed", ["h101", "h100x0", "h100x", "8", "", "h100x999999"])
def test_other_devices_are_refused_with_those_that_are_known(typed):
    with pytest.raises(RequestError, match=f"on='?{typed}.* permitted are h100, h100_pcie, h200, b200, a100"):
        named(typed)


def test_utilisation_is_a_share_of_all_devices():
    assert utilisation(0.5 * 8 * 989e12, named("h100x8"), "bfloat16") == pytest.approx(0.5)
    assert utilisation(67e12, named("h100"), "none") == pytest.approx(1.0)
