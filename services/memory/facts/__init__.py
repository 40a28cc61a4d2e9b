"""Facts: what is known of a user, one sentence each, with the messages that it was learned from and what it said before."""
