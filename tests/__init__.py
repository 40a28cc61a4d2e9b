"""The tests of everything, on real parts."""
