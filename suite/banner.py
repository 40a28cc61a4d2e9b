"""What is printed once everything is ready: what runs where, and commands to paste."""

from collections.abc import Sequence

from suite.plan import Plan
from suite.settings import SERVICES, ServicePlaces


def banner(plan: Plan, *, notes: Sequence[str], seconds: float) -> str:
    """The whole text, without colour."""
    settings = plan.settings
    lines = [
        "",
        f"Parley is ready after {seconds:.1f} s. Ctrl-C stops it.",
        "",
        f"  The edge       {plan.edge_url} (REST, SSE, gRPC, gRPC-Web); documentation at {plan.edge_url}/docs",
        *(_service_line(settings.service(name)) for name in SERVICES),
        f"  The model      {_model(plan)}",
        f"  Texts          {_texts(plan)}",
        *(f"  {note}" for note in notes),
        f"  Data and logs  {plan.folder.path}",
        "",
        "First words, to paste into another terminal:",
        "",
        *(f"  {line}" for line in _first_words(plan.edge_url)),
        "",
    ]
    return "\n".join(lines)


def _service_line(places: ServicePlaces) -> str:
    return f"  {places.name.capitalize():<14} gRPC at {places.endpoints}; metrics at {places.metrics_endpoints}"


def _model(plan: Plan) -> str:
    settings = plan.settings
    if settings.is_simulated:
        return (
            f"SIMULATED: no OPENAI_API_KEY is set, so the simulator on port {settings.parley_simulator_port}"
            " answers by rules"
        )
    return settings.openai_base_url or "api.openai.com, with your OPENAI_API_KEY"


def _texts(plan: Plan) -> str:
    if plan.environment.get("SMS_PROVIDER", "console") == "console":
        return f"written to {plan.environment.get('SMS_CONSOLE_FILE', plan.folder.texts)}: no SMS_PROVIDER is set"
    return "sent by Twilio, with your TWILIO_ACCOUNT_SID"


def _first_words(url: str) -> list[str]:
    register = '{"username":"ada","email":"ada@example.com","password":"correct horse"}'
    login = '{"username":"ada","password":"correct horse"}'
    return [
        f"curl -s {url}/api/v1/auth/register -H 'Content-Type: application/json' -d '{register}'",
        f"TOKEN=$(curl -s {url}/api/v1/auth/login -H 'Content-Type: application/json' -d '{login}' \\",
        '  | python3 -c \'import json, sys; print(json.load(sys.stdin)["tokens"]["access_token"])\')',
        f"curl -N {url}/api/v1/chat/stream -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\",
        '  -d \'{"message":"Hello! What can you do?"}\'',
    ]
