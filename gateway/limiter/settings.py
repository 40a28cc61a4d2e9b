"""The settings of the limiter: how many calls of which class, and where it serves."""

from collections.abc import Mapping

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from gateway.limiter.windows import Window, Windows
from services.runtime.log import LogFormat
from services.runtime.settings import Address, RedisSettings
from services.runtime.tls import TlsSettings


class LimiterSettings(RedisSettings, TlsSettings):
    """Each limit is `calls/span`, several separated by commas, or `off`."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    listen_address: Address
    """Where the edges ask, host:port."""
    metrics_address: Address
    """Where Prometheus metrics are served, host:port."""
    limit_general: Windows = (Window(60, 60),)
    """Calls of one user that cost little."""
    limit_model: Windows = (Window(20, 60), Window(100, 3_600))
    """Calls of one user that cost tokens of a model."""
    limit_sign_in: Windows = (Window(10, 60), Window(100, 3_600))
    """Calls of one address that try a password or a code."""
    limit_registration: Windows = (Window(10, 60), Window(50, 3_600))
    """Accounts that one address may make."""
    limit_public: Windows = (Window(120, 60),)
    """Calls of one address that need no identity and cost little."""
    limit_exchange: Windows = (Window(600, 60),)
    """Calls of one address with a name and password, or another issuer's token. Its user's limit counts them as well."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    """Least level of our own log lines."""
    log_format: LogFormat = "auto"
    """`text`, `json`, or `auto`: text in a terminal."""

    def windows(self) -> Mapping[str, tuple[Window, ...]]:
        """The windows by class, as the edge names it."""
        return {
            "general": self.limit_general,
            "model": self.limit_model,
            "sign_in": self.limit_sign_in,
            "registration": self.limit_registration,
            "public": self.limit_public,
            "exchange": self.limit_exchange,
        }
