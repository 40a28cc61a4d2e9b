"""Transfer: everything that is remembered of a user goes out as records, and records come in."""
