"""Which part knows which environment variable: what it is given from the environment and from `.env`.

Invariant: a part is given what it knows, what every process needs, and nothing else, so that no service sees another's
secret. The names stand here instead of being read from the settings classes, because importing those costs a second of
every start; a test keeps them equal.
"""

from collections.abc import Mapping

SERVER = frozenset(
    {
        "DATABASE_POOL_SIZE",
        "DRAIN_SECONDS",
        "DRAIN_WAIT_SECONDS",
        "LOG_FORMAT",
        "LOG_LEVEL",
        "SLOW_CALL_SECONDS",
    }
)
AUTH = frozenset(
    {
        "ACCESS_TOKEN_LIFETIME_SECONDS",
        "ARGON2_MEMORY_KIB",
        "ARGON2_PARALLELISM",
        "ARGON2_TIME_COST",
        "EXTERNAL_ISSUERS_FILE",
        "AUDIT_RETENTION_SECONDS",
        "EDGE_NETWORKS",
        "EDGE_PROXIES",
        "JOB_CONCURRENCY",
        "OPEN_SESSIONS_PER_USER",
        "PASSWORD_HASH_QUEUE",
        "PASSWORD_HASH_THREADS",
        "PASSWORD_HASH_WAIT_SECONDS",
        "PASSWORD_TOKEN_LIFETIME_SECONDS",
        "PHONE_CODES_PER_DAY",
        "PHONE_CODE_LIFETIME_SECONDS",
        "PHONE_CODE_RESEND_SECONDS",
        "PURGE_TIMEOUT_SECONDS",
        "REFRESH_GRACE_SECONDS",
        "REFRESH_TOKEN_LIFETIME_SECONDS",
        "SEALING_KEY",
        "SIGN_IN_FREE_FAILURES",
        "SIGN_IN_FREE_FAILURES_PER_ADDRESS",
        "SIGN_IN_FREE_FAILURES_PER_NAME",
        "SIGNING_KEY_PUBLISH_AHEAD_SECONDS",
        "SIGNING_KEY_ROTATION_SECONDS",
        "SWEEP_INTERVAL_SECONDS",
    }
)
CHAT = frozenset(
    {
        "ASSISTANT_INSTRUCTIONS",
        "CONTEXT_TOKEN_BUDGET",
        "GENERATION_DEADLINE_SECONDS",
        "HEARTBEAT_SECONDS",
        "JOB_CONCURRENCY",
        "LEASE_RENEW_SECONDS",
        "LEASE_SECONDS",
        "MAX_GENERATIONS",
        "MAX_TASKS",
        "MAX_TOOL_CALLS",
        "MAX_TOOL_ROUNDS",
        "MCP_ALLOW_PRIVATE_ADDRESSES",
        "MCP_CONNECT_TIMEOUT_SECONDS",
        "MCP_MODE",
        "MEMORY_TIMEOUT_SECONDS",
        "MEMORY_TOKEN_BUDGET",
        "MEMORY_TOOLS_ENABLED",
        "READER_RETENTION_SECONDS",
        "READER_STALL_SECONDS",
        "SEALING_KEY",
        "TITLES_ENABLED",
        "TITLE_MODEL",
        "TOKEN_BUDGET_PER_DAY",
        "TOOL_TIMEOUT_SECONDS",
    }
)
MEMORY = frozenset(
    {
        "DEFAULT_CONTEXT_TOKENS",
        "DEFAULT_MEMORY_TOKENS",
        "EMBEDDINGS_ENABLED",
        "EMBEDDING_BATCH",
        "EMBEDDING_DIMENSIONS",
        "EMBEDDING_INPUT_TOKENS",
        "EMBEDDING_MODEL",
        "EMBEDDING_TIMEOUT_SECONDS",
        "EVICTION_SWEEP_SECONDS",
        "EXPIRY_SWEEP_SECONDS",
        "EXTRACTION_CONCURRENCY",
        "EXTRACTION_DELAY_SECONDS",
        "EXTRACTION_ENABLED",
        "EXTRACTION_FACTS",
        "EXTRACTION_MESSAGES",
        "EXTRACTION_MODEL",
        "EXTRACTION_OUTPUT_TOKENS",
        "EXTRACTION_TIMEOUT_SECONDS",
        "EXTRACTION_TOKENS",
        "EXPORT_STALL_SECONDS",
        "FACTS_LIMIT",
        "FACT_VERSIONS_LIMIT",
        "GREATEST_CONTEXT_TOKENS",
        "GREATEST_MEMORY_TOKENS",
        "IMPORTED_MESSAGES_LIMIT",
        "PORTRAIT_DELAY_SECONDS",
        "RECALL_CANDIDATES",
        "RECALL_FACTS_WEIGHT",
        "RECALL_MEANING_WEIGHT",
        "RECALL_NEIGHBOUR_WEIGHT",
        "RECALL_PREVIOUS_WEIGHT",
        "RECALL_RANK_CONSTANT",
        "RECALL_TIMEOUT_SECONDS",
        "RECALL_TIME_WEIGHT",
        "RECALL_WORDS_WEIGHT",
        "SUMMARIES_ENABLED",
        "SUMMARY_AFTER_MESSAGES",
        "SUMMARY_CHARACTERS",
        "SUMMARY_DELAY_SECONDS",
        "SUMMARY_EVERY_MESSAGES",
        "SUMMARY_INPUT_TOKENS",
        "SUMMARY_MODEL",
        "SUMMARY_OUTPUT_TOKENS",
        "UPKEEP_LONGEST_PAUSE_SECONDS",
        "UPKEEP_RETRY_SECONDS",
        "WORKING_SET_BYTES",
        "WORKING_SET_MESSAGES",
        "WORKING_SET_TTL_SECONDS",
    }
)
SMS = frozenset(
    {
        "ANSWER_TIMEOUT_SECONDS",
        "CALLS_LIMIT",
        "DECISIONS_PER_DAY",
        "DECISION_MODEL",
        "DECISION_OUTPUT_TOKENS",
        "DECISION_REPLY_CHARACTERS",
        "PUBLIC_URL",
        "RECONCILE_SECONDS",
        "REPLY_WITHIN_SECONDS",
        "SEND_TIMEOUT_SECONDS",
        "SEND_TRIES",
        "SMS_CONSOLE_FILE",
        "SMS_JOB_CONCURRENCY",
        "SMS_MAX_SEGMENTS",
        "SMS_NUMBER",
        "SMS_NUMBER_CODES_PER_HOUR",
        "SMS_NUMBER_TEXTS_PER_HOUR",
        "SMS_PROVIDER",
        "SMS_SENDER_NAME",
        "SMS_USER_TEXTS_PER_DAY",
        "TWILIO_ACCOUNT_SID",
        "TWILIO_AUTH_TOKEN",
        "TWILIO_BASE_URL",
        "TWILIO_MESSAGING_SERVICE_SID",
        "UNKNOWN_AFTER_SECONDS",
        "UNMATCHED_DAYS",
        "WEBHOOK_SIGNATURES",
    }
)
REDIS = frozenset({"REDIS_CONNECTIONS", "REDIS_RETRY_SECONDS", "REDIS_TIMEOUT_SECONDS"})
PEER = frozenset({"ENDED_SESSIONS_GRACE_SECONDS", "PEER_TIMEOUT_SECONDS"})
OPENAI = frozenset(
    {
        "OPENAI_API",
        "OPENAI_API_KEY",
        "OPENAI_BACKGROUND",
        "OPENAI_BASE_URL",
        "OPENAI_CONNECT_TIMEOUT_SECONDS",
        "OPENAI_MAX_CONNECTIONS",
        "OPENAI_MAX_OUTPUT_TOKENS",
        "OPENAI_MAX_RETRIES",
        "OPENAI_MODEL",
        "OPENAI_REASONING_EFFORT",
        "OPENAI_RETRY_DELAY_SECONDS",
        "OPENAI_TEMPERATURE",
        "OPENAI_TIMEOUT_SECONDS",
    }
)
EDGE = frozenset(
    {
        "ALLOWED_HOSTS",
        "BASIC_AUTH_ENABLED",
        "COOKIE_AUTH_ENABLED",
        "CORS_ALLOWED_ORIGINS",
        "EDGE_ACCESS_LOG",
        "EDGE_CONCURRENCY",
        "EDGE_PROXIES",
        "EDGE_TLS_CERTIFICATE_FILE",
        "EDGE_TLS_KEY_FILE",
        # Chat's, which the edge must outlast.
        "GENERATION_DEADLINE_SECONDS",
        "HEARTBEAT_SECONDS",
        "HEALTH_CHECK_INTERVAL_SECONDS",
        "JWKS_REFRESH_SECONDS",
        "LIMITER_TIMEOUT_SECONDS",
        "LIMITS_ENABLED",
        "MAX_ANSWER_BYTES",
        "MAX_BODY_BYTES",
        "MAX_CONNECTIONS",
        "MAX_STREAMS",
        "RECEIVE_TIMEOUT_SECONDS",
        "REQUEST_TIMEOUT_SECONDS",
        "SESSION_COOKIES",
        "STREAM_IDLE_TIMEOUT_SECONDS",
    }
)
LIMITER = frozenset(
    {
        "LIMIT_EXCHANGE",
        "LIMIT_GENERAL",
        "LIMIT_MODEL",
        "LIMIT_PUBLIC",
        "LIMIT_REGISTRATION",
        "LIMIT_SIGN_IN",
        "LOG_FORMAT",
        "LOG_LEVEL",
    }
)
SIMULATOR = frozenset(
    {"SIMULATOR_CONTROL", "SIMULATOR_EMBEDDING_MODEL", "SIMULATOR_FIRST_TOKEN_MS", "SIMULATOR_INTERVAL_MS"}
)

KNOWN: Mapping[str, frozenset[str]] = {
    "auth": SERVER | AUTH,
    "chat": SERVER | PEER | REDIS | OPENAI | CHAT,
    "memory": SERVER | PEER | REDIS | OPENAI | MEMORY,
    "sms": SERVER | PEER | OPENAI | SMS,
    "edge": EDGE,
    "limiter": LIMITER | REDIS,
    "simulator": SIMULATOR,
}

# What a command beside the suite reads, which may stand in the environment of a suite too.
OF_COMMANDS = frozenset({"PARLEY_ADMIN_PASSWORD"})

# What the suite itself decides for a part, whatever the environment says.
MANAGED = frozenset(
    {
        "AUTH_ENDPOINTS",
        "AUTH_TARGET",
        "CHAT_ENDPOINTS",
        "CHAT_TARGET",
        "DATABASE_URL",
        "EDGE_ADDRESS",
        "EDGE_ADMIN_ADDRESS",
        "EXTERNAL_TOKENS_ENABLED",
        "LIMITER_ENDPOINTS",
        "LISTEN_ADDRESS",
        "MCP_ENDPOINTS",
        "MCP_LISTEN_ADDRESS",
        "MEMORY_ENDPOINTS",
        "MEMORY_TARGET",
        "METRICS_ADDRESS",
        "MIGRATION_DATABASE_URL",
        "REDIS_URL",
        "SERVICE_TLS_CA_FILE",
        "SERVICE_TLS_CERTIFICATE_FILE",
        "SERVICE_TLS_KEY_FILE",
        "SMS_TARGET",
        "SIMULATOR_HOST",
        "SIMULATOR_PORT",
        "SMS_ENDPOINTS",
        "WORKLOAD_CREDENTIAL_FILE",
        "WORKLOAD_DIGESTS_FILE",
    }
)

# What a process needs from the machine: never a setting of ours.
MACHINE = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
        *("VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    }
)
MACHINE_PREFIXES = ("LC_", "PYTHON", "GRPC_", "COVERAGE_")


def machine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that every child is given."""
    return {
        name: value for name, value in environment.items() if name.upper() in MACHINE or name.startswith(MACHINE_PREFIXES)
    }


def passed_on(part: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that one part knows, under its exact names."""
    by_name = {name.upper(): value for name, value in environment.items()}
    return {name: by_name[name] for name in sorted(KNOWN[part]) if name in by_name}
