"""Memory: what an assistant remembers of its user. In this release the turns of conversations, the context for the next.

Owns the turns in its own Postgres and the working set, a copy of their latest part, in Redis. Invariant: Postgres alone
decides; the working set only spares reading it, so that Redis gone, emptied or restored from yesterday costs time and
never a wrong context. It refuses to know how replies are written, and to remember anything of a deleted conversation.
"""
