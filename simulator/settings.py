"""The settings of the simulator's process: SIMULATOR_* variables and command-line options.

Owns their names, defaults and bounds. Command line over environment over default.
"""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from simulator.plan import MAX_DELAY_MS


class Settings(BaseSettings):
    """An OpenAI-compatible simulator for work without a key, for tests and for load: rule-based, no model."""

    model_config = SettingsConfigDict(
        env_prefix="SIMULATOR_",
        frozen=True,
        cli_prog_name="python -m simulator",
        cli_parse_args=True,
        cli_implicit_flags=True,
        cli_kebab_case=True,
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8099, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    control: bool = Field(default=False, description="open /_control, the door for tests")
    first_token_ms: float = Field(default=20, ge=0, le=MAX_DELAY_MS, description="delay of the first token")
    interval_ms: float = Field(default=5, ge=0, le=MAX_DELAY_MS, description="delay between tokens")
    embedding_model: str | None = Field(
        default=None, min_length=1, description="sentence-transformers model behind /v1/embeddings, by name or folder"
    )
