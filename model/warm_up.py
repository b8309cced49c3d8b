"""`python -m model.warm_up`: compile the CPU kernels once, so that no worker has to. Knows only how to start that."""

from __future__ import annotations

import time


def main() -> None:
    """Compile, or find compiled, and say how long it took."""
    started = time.monotonic()
    from model.shard import warm_up_kernels

    warm_up_kernels()
    print(f"kernels are compiled ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
