"""Random vectors with E[v v'] = I, for stochastic estimators."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Distribution = Literal["rademacher", "gaussian", "sphere"]
Seed = int | torch.Generator


def generator(seed: Seed, device: torch.device) -> torch.Generator:
    """Return a generator on `device`: a new one from an int, or the one that was given."""
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            raise ValueError(f"the generator must be on {device}, got {seed.device}")
        return seed
    return torch.Generator(device).manual_seed(int(seed))


def probe(
    n: int, dtype: torch.dtype, rng: torch.Generator, distribution: Distribution = "rademacher"
) -> Tensor:
    """One random vector with zero mean and unit covariance, shape (n,), on `rng`'s device.

    ``"sphere"`` is uniform on the sphere of radius sqrt(n).

    >>> probe(4, torch.float32, generator(0, torch.device("cpu"))).abs()
    tensor([1., 1., 1., 1.])
    """
    if distribution not in get_args(Distribution):
        options = ", ".join(map(repr, get_args(Distribution)))
        raise ValueError(f"distribution must be one of {options}, got {distribution!r}")
    if distribution == "rademacher":
        # A random bit for each sign, shifted to where a float32 has it, with 1.0 put below it:
        # four times as fast as a draw for each.
        device = rng.device
        words = torch.randint(
            -(2**31),
            2**31,
            ((n + 31) // 32, 1),
            generator=rng,
            device=device,
            dtype=torch.int32,
        )
        bits = words << torch.arange(32, dtype=torch.int32, device=device)
        ones = bits.bitwise_and_(-(2**31)).bitwise_or_(0x3F800000).view(torch.float32)
        return ones.view(-1)[:n].to(dtype)
    v = torch.randn(n, generator=rng, device=rng.device, dtype=dtype)
    return v if distribution == "gaussian" else v * (n**0.5 / v.norm())


def nearby(
    theta: Tensor, rng: torch.Generator, distribution: Distribution = "rademacher"
) -> Tensor:
    """A point close to theta, shape (n,), at which no parameter is what it is there."""
    away = probe(len(theta), theta.dtype, rng, distribution)
    return theta + away * (0.02 * theta.abs() + 1e-3)


def probes_block(
    count: int,
    n: int,
    dtype: torch.dtype,
    rng: torch.Generator,
    distribution: Distribution = "rademacher",
) -> Tensor:
    """Return `count` independent probes as columns, shape (n, count)."""
    return torch.stack([probe(n, dtype, rng, distribution) for _ in range(count)], dim=1)
