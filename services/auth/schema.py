"""The tables of auth. What must hold whatever the code does is a constraint here.

Unique names are unique by index, whatever their case, so that two registrations at once cannot both win. A refresh token is
kept as the digest of a random value: the table grants nothing to who reads it.
"""

from sqlalchemy import (
    ARRAY,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

metadata = MetaData()

NOW = text("now()")
NEW_ID = text("uuidv7()")

users = Table(
    "users",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True, server_default=NEW_ID),
    Column("username", Text, nullable=False),
    Column("email", Text, nullable=False),
    # Columns, and not an index on lower(…): row-level security keeps a condition that calls a function which is not
    # leakproof from using an index, and every sign-in would read the whole table.
    Column("username_key", Text, Computed("lower(username)", persisted=True), nullable=False),
    Column("email_key", Text, Computed("lower(email)", persisted=True), nullable=False),
    # In E.164, once a code that was sent there came back.
    Column("phone_number", Text),
    # Empty until its owner has set a password: nobody signs in with that.
    Column("password_hash", Text, nullable=False),
    # Grows with every new password: who checked the old one at the same time is refused.
    Column("credential_version", Integer, nullable=False, server_default=text("1")),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("is_admin", Boolean, nullable=False, server_default=text("false")),
    # What tokens on behalf of the user name, so that they end like a session's. Another one after each deactivation; null
    # before the first, when it is made of the id.
    Column("standing_id", Uuid(as_uuid=False)),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("update_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    UniqueConstraint("username_key", name="users_username_key"),
    UniqueConstraint("email_key", name="users_email_key"),
    UniqueConstraint("phone_number", name="users_phone_number_key"),
    # An administrator's search by the beginning of a name: a range, compared by bytes, which is leakproof.
    Index("users_username_prefix_idx", "username_key", postgresql_ops={"username_key": "text_pattern_ops"}),
    Index("users_email_prefix_idx", "email_key", postgresql_ops={"email_key": "text_pattern_ops"}),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True, server_default=NEW_ID),
    Column(
        "user_id",
        Uuid(as_uuid=False),
        ForeignKey("users.id", name="sessions_user_id_fkey", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("user_agent", Text, nullable=False),
    # `sign_in` has refresh tokens. The others stand for credentials that come with every call, one a user and kind.
    Column("kind", Text, nullable=False, server_default=text("'sign_in'")),
    # How often its tokens were refreshed. A refresh token of an older generation was used up.
    Column("generation", Integer, nullable=False, server_default=text("1")),
    Column("rotate_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("last_used_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("expire_time", DateTime(timezone=True), nullable=False),
    Column("end_time", DateTime(timezone=True)),
    Column("end_cause", Text),
    CheckConstraint("(end_time is null) = (end_cause is null)", name="sessions_end_check"),
    CheckConstraint(
        "end_cause in ('logout', 'revoked', 'password_changed', 'token_reused', 'too_many', 'deactivated', 'role_lost')",
        name="sessions_end_cause_check",
    ),
    CheckConstraint("char_length(user_agent) <= 200", name="sessions_user_agent_check"),
    CheckConstraint("kind in ('sign_in', 'basic', 'external')", name="sessions_kind_check"),
)
Index(
    "sessions_standing_key",
    sessions.c.user_id,
    sessions.c.kind,
    unique=True,
    postgresql_where=text("end_time is null and kind <> 'sign_in'"),
)
# A page of one user's open sessions, the count of them at a sign-in, and the cascade from users, which asks for all.
Index("sessions_user_id_id_idx", sessions.c.user_id, sessions.c.id)
# The feed of ended sessions, and the sweep.
Index("sessions_end_time_idx", sessions.c.end_time, postgresql_where=sessions.c.end_time.is_not(None))
Index("sessions_expire_time_idx", sessions.c.expire_time)

# Rows never change: what a token is worth follows from its generation and its session's.
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column(
        "session_id",
        Uuid(as_uuid=False),
        ForeignKey("sessions.id", name="refresh_tokens_session_id_fkey", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("user_id", Uuid(as_uuid=False), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("expire_time", DateTime(timezone=True), nullable=False),
    CheckConstraint("octet_length(digest) = 32", name="refresh_tokens_digest_check"),
)
# The cascade from sessions.
Index("refresh_tokens_session_id_idx", refresh_tokens.c.session_id)
# The sweep.
Index("refresh_tokens_expire_time_idx", refresh_tokens.c.expire_time)

# Null: the user has no preference, and the default holds.
preferences = Table(
    "preferences",
    metadata,
    Column(
        "user_id",
        Uuid(as_uuid=False),
        ForeignKey("users.id", name="preferences_user_id_fkey", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("language", Text),
    Column("tts_voice", Text),
    Column("auto_reply_enabled", Boolean),
    Column("notifications_enabled", Boolean),
    Column("conversation_timeout_seconds", Integer),
    Column("model", Text),
    Column("reasoning_effort", Text),
    Column("memory_enabled", Boolean),
    Column("instructions", Text),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("update_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    CheckConstraint("conversation_timeout_seconds between 60 and 604800", name="preferences_timeout_check"),
    CheckConstraint("reasoning_effort in ('minimal', 'low', 'medium', 'high')", name="preferences_reasoning_effort_check"),
    CheckConstraint("char_length(instructions) <= 4000", name="preferences_instructions_check"),
)

# Who somebody is at another issuer of tokens.
external_identities = Table(
    "external_identities",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column(
        "user_id",
        Uuid(as_uuid=False),
        ForeignKey("users.id", name="external_identities_user_id_fkey", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    CheckConstraint("char_length(subject) between 1 and 255", name="external_identities_subject_check"),
)
# The cascade from users.
Index("external_identities_user_id_idx", external_identities.c.user_id)

# A key signs from its activate_time until its successor's.
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("private_key", LargeBinary, nullable=False),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("activate_time", DateTime(timezone=True), nullable=False),
)
Index("signing_keys_activate_time_key", signing_keys.c.activate_time, unique=True)

# What ended without leaving a session's row: sessions of deleted users, and standings of those who were deactivated.
ended_identities = Table(
    "ended_identities",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("end_time", DateTime(timezone=True), nullable=False, server_default=NOW),
)
Index("ended_identities_end_time_idx", ended_identities.c.end_time)

# One-time tokens by which a password is set, as digests of random values.
password_tokens = Table(
    "password_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column(
        "user_id",
        Uuid(as_uuid=False),
        ForeignKey("users.id", name="password_tokens_user_id_fkey", ondelete="CASCADE"),
        nullable=False,
    ),
    Column("expire_time", DateTime(timezone=True), nullable=False),
    # A user has one: a new one takes its place.
    UniqueConstraint("user_id", name="password_tokens_user_id_key"),
    CheckConstraint("octet_length(digest) = 32", name="password_tokens_digest_check"),
)
Index("password_tokens_expire_time_idx", password_tokens.c.expire_time)

# The code that a user waits for or has waited for lately, and how many were sent in this window of time.
phone_verifications = Table(
    "phone_verifications",
    metadata,
    Column(
        "user_id",
        Uuid(as_uuid=False),
        ForeignKey("users.id", name="phone_verifications_user_id_fkey", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("phone_number", Text, nullable=False),
    # A keyed hash: six digits are guessed from a plain one. Null once it was used.
    Column("code_digest", LargeBinary),
    Column("attempts_left", SmallInteger, nullable=False),
    Column("sent_count", SmallInteger, nullable=False, server_default=text("1")),
    Column("window_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("resend_time", DateTime(timezone=True), nullable=False),
    Column("expire_time", DateTime(timezone=True), nullable=False),
    CheckConstraint("attempts_left >= 0", name="phone_verifications_attempts_check"),
)
# Of the release before, which counts by it what is sent to one number.
Index("phone_verifications_phone_number_idx", phone_verifications.c.phone_number)
# The sweep.
Index("phone_verifications_window_time_idx", phone_verifications.c.window_time)

# How many codes were sent to a number in this window of time, whoever asked: by a keyed hash, which tells nobody the number,
# and without a user, so that it stays when they go.
code_counts = Table(
    "code_counts",
    metadata,
    Column("number_key", LargeBinary, primary_key=True),
    Column("sent_count", Integer, nullable=False, server_default=text("1")),
    Column("window_time", DateTime(timezone=True), nullable=False, server_default=NOW),
)
Index("code_counts_window_time_idx", code_counts.c.window_time)

# Sign-ins that failed, by keyed digests of what they have in common: a name, an address, or both.
sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    # Of the name, where there is one: what is forgotten with the account.
    Column("name_key", LargeBinary),
    Column("failures", Integer, nullable=False),
    Column("delay_until", DateTime(timezone=True), nullable=False),
    Column("update_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    # When somebody last signed in with this name from this address.
    Column("success_time", DateTime(timezone=True)),
    CheckConstraint("failures >= 0", name="sign_in_failures_failures_check"),
)
Index("sign_in_failures_name_key_idx", sign_in_failures.c.name_key)
Index("sign_in_failures_update_time_idx", sign_in_failures.c.update_time)

# Users who are being deleted, or were. Ids only; kept as long as the audit log, of which it is a part.
deletions = Table(
    "deletions",
    metadata,
    Column("user_id", Uuid(as_uuid=False), primary_key=True),
    Column("request_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("complete_time", DateTime(timezone=True)),
)
Index("deletions_request_time_idx", deletions.c.request_time)

deletion_services = Table(
    "deletion_services",
    metadata,
    Column(
        "user_id",
        Uuid(as_uuid=False),
        ForeignKey("deletions.user_id", name="deletion_services_user_id_fkey", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("service", Text, primary_key=True),
    Column("confirm_time", DateTime(timezone=True)),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_reason", Text, nullable=False, server_default=text("''")),
)

# No foreign key: what was noted outlives the user. Neither secrets nor content; `address` is forgotten with the user.
audit_events = Table(
    "audit_events",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True, server_default=NEW_ID),
    Column("event_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("kind", Text, nullable=False),
    Column("user_id", Uuid(as_uuid=False)),
    Column("actor_id", Uuid(as_uuid=False)),
    Column("address", Text),
    Column("details", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
)
Index("audit_events_user_id_idx", audit_events.c.user_id, audit_events.c.id)
Index("audit_events_actor_id_idx", audit_events.c.actor_id, audit_events.c.id)
Index("audit_events_event_time_idx", audit_events.c.event_time)
