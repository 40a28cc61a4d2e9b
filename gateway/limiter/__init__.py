"""The limiter: counts the calls of users and addresses for every edge, and says which are too many.

It owns the windows and nothing else: the edge asks it (Envoy's rate limit API) before a call goes on, with the class of the
call from the contract and whose it is. Invariant: in no span of a window's length are more calls let through than the window
allows, whichever edges they came by; a call that is refused is counted nowhere. Without Redis users are let through, and
what is limited by address (sign-in, registration, the exchange) is counted by each limiter for itself.
"""
