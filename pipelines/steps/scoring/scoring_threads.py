"""Threads of the libraries that score: as many per task as Spark counts CPUs for it, not one per core.

DJL's `num_threads` and `num_interop_threads` are `threads` and INTEROP_THREADS here. XGBoost and ONNX Runtime
take theirs when a bundle is loaded, and do not tell; the others are limited and counted here.
"""

import sys

import pyarrow as pa
import threadpoolctl

from pipelines.steps.errors import BundleError

INTEROP_THREADS = 1
"""PyTorch's threads for operations side by side: none of our networks has any, and the number is fixed
once the first one starts."""


def limit_threads(threads: int) -> None:
    """Limits every thread pool of this process that is loaded, for good: it belongs to one task at a time."""
    pa.set_cpu_count(threads)
    threadpoolctl.threadpool_limits(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
        if torch.get_num_interop_threads() != INTEROP_THREADS:
            torch.set_num_interop_threads(INTEROP_THREADS)


def count_threads() -> dict[str, int]:
    """Library → threads it would use in this process; PyTorch's only where it is loaded."""
    counts = {"arrow": pa.cpu_count()}
    for pool in threadpoolctl.threadpool_info():
        name = f"{pool['user_api']} ({pool['internal_api']})"
        counts[name] = max(pool["num_threads"], counts.get(name, 0))
    torch = sys.modules.get("torch")
    if torch is not None:
        counts |= {"torch": torch.get_num_threads(), "torch_interop": torch.get_num_interop_threads()}
    return counts


def require_threads(threads: int) -> dict[str, int]:
    """The counts, none above `threads`.

    Raises:
        BundleError: A library would use more.
    """
    counts = count_threads()
    if any(count > threads for count in counts.values()):
        raise BundleError(
            "a library in this worker would use more threads than its task has CPUs",
            found=counts,
            expected=f"{threads} at most",
            remedy="unset OMP_NUM_THREADS and the like on the executors, or score with more threads",
        )
    return counts
