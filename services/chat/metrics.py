"""What chat counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

RUNNING = Gauge("parley_chat_running_generations", "Replies being written")
REPLIES = Counter("parley_chat_replies", "Replies ended, by how: COMPLETED, CANCELLED or the reason of the failure", ["end"])
TOKENS = Counter("parley_chat_tokens", "Tokens that the provider counted", ["direction"])
TOOL_CALLS = Counter("parley_chat_tool_calls", "Calls of tools that we ran, by how they ended", ["status"])
TIME_TO_FIRST_TOKEN = Histogram(
    "parley_chat_time_to_first_token_seconds",
    "From the arrival of a call to the first text of its reply",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
)
