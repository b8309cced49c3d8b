"""Making weights smaller as they are loaded: what may be asked for, what a weight then takes. Knows no tensors."""

from __future__ import annotations

from typing import Literal

Quantization = Literal["none", "int8", "int4"]
"""none: as the checkpoint has them. int8: one scale for each output. int4: a scale and a minimum for each group of 32
neighbours along the inputs. With int4 the embedding and the head are int8: there an error costs the most."""

GROUP = 32
"""Neighbours along the inputs that share a scale; ranks cut weights at multiples of it."""

IntegerForm = Literal["int8", "int4"]
"""What one weight is made into."""


def cut_quantum(quantization: Quantization) -> int:
    """At multiples of what columns and rows are dealt to ranks."""
    return 1 if quantization == "none" else GROUP


def integer_bytes(form: IntegerForm, rows: int, columns: int) -> int:
    """Bytes of a weight [rows, columns] with its scales."""
    if form == "int8":
        return rows * (columns + 4)
    groups = -(-columns // GROUP)
    return rows * groups * (GROUP // 2 + 4)
