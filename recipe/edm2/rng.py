"""Counter-based random numbers: each value is a function of its key alone.

Everything random about a training example must depend only on (seed, batch number, sample id), never on the rank, the
microbatch or the device that happens to process it. A stateful generator cannot promise that; Philox4x32-10 (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011) maps a 64-bit key and a 128-bit counter to 128 random bits.
The integers are the same on every device; the normals made from them agree to the rounding of log, cos and sin.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# One tag per use, so that no two of them share numbers. Never reuse or renumber: results would change.
SIGMA, NOISE, LATENT, AUGMENT, LABEL_DROP, DROPOUT, SAMPLE_NOISE, SAMPLE_CHURN, X_FLIP, SAMPLE_LABEL = range(10)

_MASK = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox on four counter words and two key words.

    All words are int64 tensors with values in [0, 2^32) that broadcast against each other; so are the results.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps around in int64, but its 64 bits are right: mask after the shift.
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        high0, low0 = (product0 >> 32) & _MASK, product0 & _MASK
        high1, low1 = (product1 >> 32) & _MASK, product1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def random_bits(seed: int | Tensor, use: int, batch: int, ids: Tensor, count: int) -> Tensor:
    """Random 32-bit words [N, count] in int64, a function of (seed, use, batch, id) and the position alone.

    Args:
        seed: 64 bits: a number, or an int64 tensor [N].
        use: one of this module's tags.
        batch: batch number or step, in [0, 2^32).
        ids: int64 [N], in [0, 2^32).
        count: words per id.
    """
    assert 0 <= batch <= _MASK, batch
    blocks = -(-count // 4)
    device = ids.device
    seeds = torch.as_tensor(seed, dtype=torch.int64, device=device).expand(ids.shape)[:, None]
    position = torch.arange(blocks, device=device)
    counter = (position, ids[:, None], torch.tensor(batch, device=device), torch.tensor(use, device=device))
    words = philox4x32(counter, (seeds & _MASK, (seeds >> 32) & _MASK))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).reshape(len(ids), blocks * 4)[:, :count]


def uniform(seed: int | Tensor, use: int, batch: int, ids: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in (0, 1], float32 [N, *shape]; arguments as in `random_bits`."""
    bits = random_bits(seed, use, batch, ids, math.prod(shape))
    return _to_uniform(bits).reshape(len(ids), *shape)


def normal(seed: int | Tensor, use: int, batch: int, ids: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Unit normals (Box-Muller), float32 [N, *shape]; arguments as in `random_bits`."""
    count = math.prod(shape)
    pairs = -(-count // 2)
    z = box_muller(_to_uniform(random_bits(seed, use, batch, ids, 2 * pairs)))
    return z[:, :count].reshape(len(ids), *shape)


def box_muller(u: Tensor) -> Tensor:
    """As many independent unit normals [N, 2K] as uniform numbers [N, 2K] in (0, 1], made pair by pair."""
    pairs = u.reshape(len(u), -1, 2)
    radius = (-2 * pairs[..., 0].log()).sqrt()
    angle = 2 * math.pi * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).reshape(u.shape)


def _to_uniform(bits: Tensor) -> Tensor:
    return bits.float() * 2.0**-32 + 2.0**-33  # never 0, whose logarithm is infinite
