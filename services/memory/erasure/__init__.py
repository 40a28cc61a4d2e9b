"""Erasure: what a user wants forgotten is gone when the call returns, and does not come back."""
