"""Named hardware: what a device computes and holds, as its maker publishes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hardware:
    """Dense bfloat16 operations a second and bytes of memory, of one device."""

    flops: float
    memory: float


HARDWARE = {
    "H200": Hardware(989e12, 141e9),
    "H100": Hardware(989e12, 80e9),
    "H800": Hardware(989e12, 80e9),
    "A100": Hardware(312e12, 80e9),
    "4090": Hardware(165e12, 24e9),
}
"""By a part of the name that the driver gives."""
