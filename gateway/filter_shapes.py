"""How Envoy writes a filter: the few shapes that all of ours have."""

from pathlib import Path
from typing import Any

Config = dict[str, Any]
HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_HERE = Path(__file__).parent


def on_demand(name: str, file: str, script: str) -> Config:
    """A Lua filter that runs only on routes that switch it on."""
    lua = {"@type": f"{HTTP}.lua.v3.Lua", "source_codes": {file: {"inline_string": script}}}
    return {"name": name, "disabled": True, "typed_config": lua}


def switched_on(file: str) -> Config:
    """On a route: the script of a file, which is off elsewhere."""
    return {"@type": f"{HTTP}.lua.v3.LuaPerRoute", "name": file}


def lua_file(file: str) -> str:
    """The text of a Lua file beside this module."""
    return (_HERE / file).read_text()


def lua(name: str, script: str) -> Config:
    """A Lua filter that runs on every request."""
    return named(name, {"@type": f"{HTTP}.lua.v3.Lua", "default_source_code": {"inline_string": script}})


def overwrite(name: str, value: str) -> Config:
    """Sets a header, whatever was there."""
    return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def add_if_absent(name: str, value: str) -> Config:
    """Sets a header unless it is there."""
    return {"append": {"header": {"key": name, "value": value}, "append_action": "ADD_IF_ABSENT"}}


def make_filter(name: str, message: str, **fields: object) -> Config:
    """One of Envoy's HTTP filters, under its own name."""
    return named(f"envoy.filters.http.{name}", {"@type": f"{HTTP}.{name}.v3.{message}", **fields})


def named(name: str, typed_config: Config) -> Config:
    """A filter under a name of ours."""
    return {"name": name, "typed_config": typed_config}
