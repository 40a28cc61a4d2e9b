"""Chat: conversations, their messages, and the replies that are being written.

Owns the conversations of every user and the turns in them. Invariant: a turn belongs to the service and not to the call that
began it, so a lost connection loses nothing and a repeated call repeats nothing. It refuses to know how memory remembers and
who may sign in: it asks those services.
"""
