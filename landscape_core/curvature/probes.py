"""Random vectors with E[v v'] = I, for stochastic estimators."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Distribution = Literal["rademacher", "gaussian"]
Seed = int | torch.Generator


def generator(seed: Seed, device: torch.device) -> torch.Generator:
    """Return a generator on `device`: a new one from an int, or the one that was given."""
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            raise ValueError(f"the generator must be on {device}, got {seed.device}")
        return seed
    return torch.Generator(device).manual_seed(seed)


def probe(
    n: int, dtype: torch.dtype, rng: torch.Generator, distribution: Distribution = "rademacher"
) -> Tensor:
    """One random vector with zero mean and unit covariance, shape (n,), on `rng`'s device.

    >>> probe(4, torch.float32, generator(0, torch.device("cpu"))).abs()
    tensor([1., 1., 1., 1.])
    """
    if distribution not in get_args(Distribution):
        options = " or ".join(map(repr, get_args(Distribution)))
        raise ValueError(f"distribution must be {options}, got {distribution!r}")
    if distribution == "rademacher":
        bits = torch.randint(0, 2, (n,), generator=rng, device=rng.device)
        return bits.to(dtype) * 2 - 1
    return torch.randn(n, generator=rng, device=rng.device, dtype=dtype)
