"""Why int8 scales cover 32 inputs: `python tests/bench/group_size.py` writes CSV to stdout.

Relative root mean square errors of synthetic matrices: what FP8 (the official format) costs, and what int8 with one
scale per group adds to the FP8 values, for several group sizes.
"""

import csv
import sys

import torch
from torch import Tensor

from v4cli.store.formats import decode_int8, encode_int8, fake_fp8

SHAPE = (1024, 1024)
GROUPS = (32, 64, 128)


def matrices() -> dict[str, Tensor]:
    """Weights from well-behaved to hard."""
    torch.manual_seed(0)
    plain = torch.randn(SHAPE) * 0.02
    outliers = plain.clone()
    outliers[:, ::97] *= 8
    return {
        "gauss": plain,
        "student_t4": torch.distributions.StudentT(4.0).sample(SHAPE) * 0.02,
        "row_scales": plain * torch.exp(torch.randn(SHAPE[0], 1) * 0.7),
        "column_scales": plain * torch.exp(torch.randn(1, SHAPE[1]) * 0.5),
        "column_outliers": outliers,
    }


def error(values: Tensor, truth: Tensor) -> str:
    return f"{(values - truth).norm() / truth.norm():.4%}"


def main() -> None:
    out = csv.writer(sys.stdout)
    out.writerow(("weights", "fp8", *(f"int8_per_{group}" for group in GROUPS)))
    for name, w in matrices().items():
        official = fake_fp8(w)
        added = (error(decode_int8(*encode_int8(official, group)), official) for group in GROUPS)
        out.writerow((name, error(official, w), *added))


if __name__ == "__main__":
    main()
