"""Schedules: plain functions of the step k = 1, 2, ..."""

import math
from collections.abc import Callable


def exponential_batch(first: int, num_examples: int, full_at: int = 500) -> Callable[[int], int]:
    """m_k = min(⌊m₁ 2^((k−1)/b)⌋, N), with b such that m_k reaches N at k = `full_at`: K-FAC's growing batches.

    The step at `full_at` itself and all later ones get N exactly, whatever the rounding of the power.

    Args: first: m₁, the size at step 1. num_examples: N.
    Returns: k ↦ m_k, nowhere decreasing.
    References: [MartensGrosse2015] sec. 13.
    """
    for name, value, least in (("first", first, 1), ("num_examples", num_examples, 1), ("full_at", full_at, 2)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}; got {value!r}.")
    if first > num_examples:
        raise ValueError(f"the first batch of {first} examples is larger than the {num_examples} there are.")
    doublings = math.log2(num_examples / first) / (full_at - 1)  # 1 / b

    def size(step: int) -> int:
        if step < 1:
            raise ValueError(f"steps are counted from 1; got {step}.")
        return num_examples if step >= full_at else min(math.floor(first * 2 ** ((step - 1) * doublings)), num_examples)

    return size
