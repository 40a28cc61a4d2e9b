"""auth: who somebody is. Owns accounts, passwords, sessions, refresh tokens, signing keys, and every token of the suite.

    accounts          registration, sign-in, passwords, the caller's own account
    users             accounts as administrators and their owners change them; first_admin makes the first administrator
    deletions         a user's end: here at once, in every other service until it has confirmed
    phones            phone numbers, verified by a code
    sign_in_delays    how sign-ins that fail are slowed
    audit             what was noted of all that
    sessions          open sessions: listed, refreshed, ended
    tokens            what is written into a token, and signed
    signing_keys      the keys that sign, published before they sign and after
    ended_sessions    which sessions ended lately, told to every service
    upkeep            keys in time, no rows that nobody needs
    workloads         which service may have a token for which other

Access tokens are verified offline by everybody; the truth about a session is this service's database.
"""
