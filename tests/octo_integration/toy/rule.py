"""A rule for λ of somebody else."""


def thirds(k: int, size: int) -> float:
    return 1.0 if k <= size / 3 else 0.25
