"""What is wrong with the settings of the services, the edge and the simulator, all of it at once.

Each of them refuses bad settings by itself, when it starts. Only then, or when a setting of the suite is bad, everybody's
are looked at here: reading their settings classes takes more than a second, which a good start need not pay.
"""

import importlib
import os
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from suite.settings import explain
from suite.variables import MANAGED, machine_environment, passed_on

CLASSES = {
    "auth": ("services.auth.settings", "AuthSettings"),
    "chat": ("services.chat.settings", "ChatSettings"),
    "memory": ("services.memory.settings", "MemorySettings"),
    "sms": ("services.sms.settings", "SmsSettings"),
    "edge": ("gateway.settings", "EdgeSettings"),
    "limiter": ("gateway.limiter.settings", "LimiterSettings"),
    "simulator": ("simulator.settings", "Settings"),
}
# Stand-ins for what the suite decides later; problems with them are nobody's setting.
STAND_INS = {
    **dict.fromkeys((name for name in MANAGED if not name.startswith("SERVICE_TLS_")), "127.0.0.1:1"),
    "DATABASE_URL": "postgresql://x@/x",
    "MIGRATION_DATABASE_URL": "postgresql://x@/x",
    "OPENAI_API_KEY": "x",
    "SEALING_KEY": "A" * 43 + "=",
    "REDIS_URL": "redis://x",
    "SIMULATOR_HOST": "127.0.0.1",
    "SIMULATOR_PORT": "1",
    "EDGE_ADMIN_ADDRESS": "127.0.0.1:2",
    "EXTERNAL_TOKENS_ENABLED": "false",
}


def settings_class(part: str) -> type[BaseSettings]:
    """The class that reads a part's settings."""
    module, name = CLASSES[part]
    found: type[BaseSettings] = getattr(importlib.import_module(module), name)
    return found


def problems_of_parts(environment: Mapping[str, str]) -> list[str]:
    """Every problem with what the environment says to services and edge; each said once."""
    found: dict[str, None] = {}
    for part in CLASSES:
        stated = {**machine_environment(environment), **STAND_INS, **passed_on(part, environment)}
        found.update(dict.fromkeys(_problems(settings_class(part), stated)))
    return list(found)


def _problems(settings: type[BaseSettings], stated: Mapping[str, str]) -> list[str]:
    """Settings classes read the process's environment, so it is theirs for the moment."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(stated)
    problems: list[str] = []
    try:
        settings(_cli_parse_args=False)
    except ValidationError as error:
        problems = explain(error)
    except SettingsError as error:
        # Raised for a field of a structured type, with the field's name in quotes and no place of its own for it.
        problems = [str(error).split('"')[1].upper() + ": is not written as it should be"]
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return [problem for problem in problems if problem.partition(":")[0] not in MANAGED]
