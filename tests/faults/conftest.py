"""Chat processes for the tests of faults."""

from tests.faults.stand import stand

__all__ = ["stand"]
