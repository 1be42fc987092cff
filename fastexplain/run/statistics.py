"""Statistics of neurons from the sums that a sweep keeps."""

from __future__ import annotations

import numpy as np

# A layer file's arrays that the statistics are made of.
SUMMED = ("sums", "positive", "minimum", "maximum")

# Variance over mean square below which skewness and kurtosis have fewer than three digits.
_SPREAD = 1e-6


def moments_of(arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Numbers of `Statistics`, by name, from a layer file's arrays; float64 `[neurons]` each."""
    first, second, third, fourth, mean_positive = arrays["sums"].astype(np.float64) / count
    minimum, maximum = (arrays[name].astype(np.float64) for name in ("minimum", "maximum"))
    # Central moments from the raw ones, by the binomial theorem. Where the spread is small
    # beside the mean they drown in rounding, the fourth long before the second.
    variance = np.where(minimum < maximum, np.maximum(second - first**2, 0.0), 0.0)
    third_central = third - 3 * first * second + 2 * first**3
    fourth_central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    known = np.where(variance > _SPREAD * second, variance, np.nan)
    return {
        "mean": first,
        "variance": variance,
        "skewness": third_central / known**1.5,
        "kurtosis": fourth_central / known**2,
        "fraction_positive": arrays["positive"] / count,
        "mean_positive": mean_positive,
        "minimum": minimum,
        "maximum": maximum,
    }
