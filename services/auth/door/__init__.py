"""The door: trades what the edge cannot verify by itself (a name and password, another issuer's token) for a token of ours.

It owns who is known by such credentials, and for how long a password that was right once need not be hashed again.
Invariant: what it gives is an access token like any other, of a session that can be listed and ended; a password, a secret
and another issuer's token go no further than this.
"""
