"""Memory of common GPUs, for planning on a machine that has none of them."""

GPUS = {
    "A10-24GB": 22.0,
    "A100-40GB": 39.4,
    "A100-80GB": 79.1,
    "B200-192GB": 178.3,
    "H100-80GB": 79.1,
    "H200-141GB": 139.7,
    "L40S-48GB": 44.4,
    "RTX3090-24GB": 23.6,
    "RTX4090-24GB": 23.5,
    "V100-32GB": 31.7,
}
"""GiB that CUDA reports as the total of a card with ECC as it ships, rounded down; less than the name promises."""
COMMON = ("RTX4090-24GB", "A100-40GB", "A100-80GB", "H200-141GB")
"""Shown where the configuration names no GPU."""
