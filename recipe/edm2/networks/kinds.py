"""Kinds of network by the names of the paper's configurations (Table 1), as files name them."""

from typing import Any

from recipe.edm2.networks.precond import Precond

KINDS = ("G",)


def build_network(kind: str, **arguments: Any) -> Precond:
    """A network of that kind on torch's default device.

    Args:
        kind: one of `KINDS`.
        arguments: of `Precond`.

    Raises:
        ValueError: an unknown kind, or arguments that contradict each other.
    """
    if kind == "G":
        return Precond(**arguments)
    raise ValueError(f"kind of network {kind!r}: must be one of {', '.join(KINDS)}")
