"""Repeats a step of decodes alone many times at once: for simulators, to which nothing new happens in such a stretch.

Leaves a scheduler exactly as planning and completing each step would have, as long as no more than `quiet_steps` are
repeated: nobody waits, no block is taken, filled or given back, nobody ends. Knows the scheduler's insides.
"""

from __future__ import annotations

from cluster.replica.scheduler import Scheduler
from cluster.replica.sequence import Phase


def quiet_steps(scheduler: Scheduler) -> int:
    """How many steps just like the one in flight could come before it without anything but contexts changing.

    The caller, who knows which tokens will be sampled, makes sure besides that none of them ends a sequence.
    """
    if len(scheduler._flights) != 1 or len(scheduler._waiting) or len(scheduler._residents.lanes) != 1:
        return 0
    decoding = scheduler._residents.lanes[0].decoding
    flight = scheduler._flights[0]
    if flight.plan.num_prefill_tokens or len(flight.sequences) != len(decoding):
        return 0
    quiet = scheduler.config.context_length
    for sequence in flight.sequences:
        request = sequence.request
        if sequence.phase is not Phase.DECODE or request.credit is not None:
            return 0
        known = len(sequence.tokens)
        quiet = min(
            quiet,
            sequence.capacity - sequence.num_computed,
            sequence.next_registered - 1 - known,
            request.max_length - 2 - known,
        )
    return max(0, quiet)


def repeat_step(scheduler: Scheduler, count: int, now: float) -> None:
    """Have `count` steps like the one in flight come before it, the last of them completed at `now`.

    Each sequence samples its last token again and again. Step observers hear nothing of it.
    """
    flight = scheduler._flights[0]
    for sequence in flight.sequences:
        sequence.tokens.extend(sequence.tokens[-1:] * count)
        sequence.num_computed += count
    flight.planned_at = scheduler._completed_at = now
    scheduler._share.add(now, 0.0)
