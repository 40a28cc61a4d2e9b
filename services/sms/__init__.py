"""The sms service: text messages in and out, who wants none, calls, and the one history.

Invariants: no message is sent twice; no send is claimed after its receiver said stop; an incoming text is answered once, or
not. It refuses to know a person: whose a number is says auth, what to answer says chat.
"""
