"""Measurements beside the peers; docs/performance.md says how to run them."""
