"""The tables of auth. What must hold whatever the code does is a constraint here.

Unique names are unique by index, whatever their case, so that two registrations at once cannot both win. A refresh token is
kept as the digest of a random value: the table grants nothing to who reads it.
"""

from sqlalchemy import (
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
    Column("password_hash", Text, nullable=False),
    # Grows with every new password: who checked the old one at the same time is refused.
    Column("credential_version", Integer, nullable=False, server_default=text("1")),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("is_admin", Boolean, nullable=False, server_default=text("false")),
    Column("create_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    Column("update_time", DateTime(timezone=True), nullable=False, server_default=NOW),
    UniqueConstraint("username_key", name="users_username_key"),
    UniqueConstraint("email_key", name="users_email_key"),
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
        "end_cause in ('logout', 'revoked', 'password_changed', 'token_reused', 'too_many')",
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
# A page of one user's open sessions, and the count of them at a sign-in.
Index("sessions_user_id_idx", sessions.c.user_id, sessions.c.id, postgresql_where=sessions.c.end_time.is_(None))
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
