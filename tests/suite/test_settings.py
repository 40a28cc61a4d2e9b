"""What a person may set: read, refused by name, passed to whom it concerns, and listed in .env.example."""

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from services.runtime.sealing import sealing_keys
from suite.checks import CLASSES, problems_of_parts, settings_class
from suite.databases import ServiceDatabase
from suite.errors import SuiteError
from suite.folder import DataFolder
from suite.output import Terminal
from suite.plan import Plan
from suite.settings import SuiteSettings, check_settings, read_environment, read_settings
from suite.variables import KNOWN, MANAGED, passed_on
from tests.suite_process import ROOT

DATABASE = ServiceDatabase("postgresql://s:p@/d", "postgresql://o:p@/d", service_role="s")
REDIS = "redis://127.0.0.1:6379/0"


def names(settings: type[BaseSettings], prefix: str = "") -> set[str]:
    return {f"{prefix}{name.upper()}" for name in settings.model_fields}


def example_lines() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = [line[1:].partition("=") for line in lines if line.startswith("#") and not line.startswith("# ")]
    return {name: value for name, _, value in pairs}


def plan(environment: dict[str, str], data: Path) -> Plan:
    data_folder = DataFolder(data)
    data_folder.credentials.mkdir(parents=True)
    return Plan(read_settings(environment), environment, data_folder, Terminal())


def service_environment(of: Plan, service: str, index: int = 0) -> dict[str, str]:
    return dict(of.service_part(service, index, DATABASE, redis_url=REDIS).program.environment)


def test_everything_wrong_is_named_at_once_without_its_value() -> None:
    wrong = {
        "PARLEY_EDGE_PORT": "eighty",
        "PARLEY_CHAT_PROCESSES": "17",
        "PARLEY_EGDE_PORT": "1",
        "DATABASE_URL": "mysql://root:hush@x",
        "OPENAI_BASE_URL": "no url",
    }
    with pytest.raises(SuiteError) as refusal:
        read_settings(wrong)
    line = str(refusal.value)
    assert refusal.value.exit_code == 2
    for name in wrong:
        assert f"{name}: " in line
    assert "did you mean PARLEY_EDGE_PORT?" in line
    assert "hush" not in line
    assert "\n" not in line


def test_what_a_command_reads_keeps_no_suite_from_starting(folder: Path) -> None:
    of = plan({"PARLEY_ADMIN_PASSWORD": "hush"}, folder / "data")
    assert "hush" not in repr([service_environment(of, service) for service in ("auth", "chat", "memory", "sms")])


def test_the_host_is_an_address() -> None:
    assert read_settings({"PARLEY_HOST": "localhost"}).parley_host == "127.0.0.1"
    assert read_settings({"PARLEY_HOST": "[::1]"}).parley_host == "::1"
    assert check_settings({"PARLEY_HOST": "my machine"})[1][0].startswith("PARLEY_HOST: must be an IP address")


def test_half_a_pair_of_database_urls_is_refused() -> None:
    assert check_settings({"CHAT_DATABASE_URL": "postgresql://a@/b"})[1] == [
        "CHAT_MIGRATION_DATABASE_URL: needed with CHAT_DATABASE_URL, the URL of the role that owns the tables"
    ]
    assert check_settings({"AUTH_MIGRATION_DATABASE_URL": "postgresql://a@/b"})[1] == [
        "AUTH_DATABASE_URL: needed with AUTH_MIGRATION_DATABASE_URL, the URL of the service's plain role"
    ]


def test_ports_that_meet_are_refused_also_those_of_later_processes() -> None:
    met = check_settings({"PARLEY_AUTH_PROCESSES": "11"})[1]
    assert [problem.partition(":")[0] for problem in met] == ["PARLEY_CHAT_PORT", "PARLEY_CHAT_METRICS_PORT"]
    beyond = check_settings({"PARLEY_MEMORY_PORT": "65530", "PARLEY_MEMORY_PROCESSES": "7"})[1]
    assert beyond == ["PARLEY_MEMORY_PORT: its last process would need port 65536"]


def test_the_environment_wins_over_the_file_and_empty_is_unset(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    file = folder / ".env"
    file.write_text("PARLEY_EDGE_PORT=1111\nPARLEY_AUTH_PORT=2222\nPARLEY_HOST=\nOPENAI_MODEL='a model'\n")
    monkeypatch.setenv("PARLEY_EDGE_PORT", "3333")
    monkeypatch.setenv("PARLEY_AUTH_PORT", "")
    environment = read_environment(file)
    settings = read_settings(environment)
    assert (settings.parley_edge_port, settings.parley_auth_port, settings.parley_host) == (3333, 2222, "127.0.0.1")
    assert environment["OPENAI_MODEL"] == "a model"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("LOG_LEVEL=INFO\nPARLEY_EDGE_PORT 9090\n", "line 2: write NAME=value"),
        ("\n# why\n\nLEASE_SECOND=5\n", "line 4: LEASE_SECOND is no setting, did you mean LEASE_SECONDS?"),
        ("PATH=/bin\n", "line 1: PATH is no setting"),
    ],
)
def test_a_line_of_the_file_that_sets_nothing_is_refused(folder: Path, text: str, told: str) -> None:
    file = folder / ".env"
    file.write_text(text)
    with pytest.raises(SuiteError) as refused:
        read_environment(file)
    assert (str(refused.value), refused.value.exit_code) == (f"{file}: {told}", 2)


@pytest.mark.parametrize("length", [10, 120])
def test_the_edge_has_room_for_a_socket_however_long_the_path(folder: Path, length: int) -> None:
    data = folder / ("x" * length)
    edge = DataFolder(data).edge
    assert len(str(edge / "jwks.sock").encode()) <= 103
    assert edge.is_relative_to(data) == (length == 10)
    shutil.rmtree(edge, ignore_errors=True)


def test_the_simulator_answers_only_where_no_provider_is_named(folder: Path) -> None:
    assert read_settings({}).is_simulated
    assert not read_settings({"OPENAI_API_KEY": "k"}).is_simulated
    assert not read_settings({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}).is_simulated
    simulated = plan({"PARLEY_SIMULATOR_PORT": "8123"}, folder / "a")
    named = plan({"OPENAI_BASE_URL": "http://model/v1"}, folder / "b")
    for service in ("chat", "memory", "sms"):
        assert service_environment(simulated, service)["OPENAI_BASE_URL"] == "http://127.0.0.1:8123/v1"
        assert service_environment(named, service)["OPENAI_BASE_URL"] == "http://model/v1"
        assert service_environment(named, service)["OPENAI_API_KEY"]


def test_a_service_gets_its_own_secrets_only(folder: Path) -> None:
    environment = {"OPENAI_API_KEY": "sk-hush", "DATABASE_URL": "postgresql://admin:hush@h/d", "SOMETHING_ELSE": "hush"}
    whole = plan(environment, folder)
    chat, memory, auth = (service_environment(whole, name) for name in ("chat", "memory", "auth"))
    edge = dict(whole.edge_configuration().environment)
    assert chat["OPENAI_API_KEY"] == memory["OPENAI_API_KEY"] == "sk-hush"
    for other in (auth, edge, dict(whole.edge_part().program.environment)):
        assert "hush" not in str(other)
    assert "admin" not in f"{chat} {memory}"
    credential = {name: Path(env["WORKLOAD_CREDENTIAL_FILE"]) for name, env in (("chat", chat), ("memory", memory))}
    assert credential["chat"] != credential["memory"]
    assert "WORKLOAD_CREDENTIAL_FILE" not in auth
    digests = Path(auth["WORKLOAD_DIGESTS_FILE"])
    for path in credential.values():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_text() not in digests.read_text()


def test_credentials_are_the_same_at_every_start(folder: Path) -> None:
    first = service_environment(plan({}, folder / "data"), "chat")
    secret = Path(first["WORKLOAD_CREDENTIAL_FILE"]).read_text()
    again = Plan(read_settings({}), {}, DataFolder(folder / "data"), Terminal())
    assert Path(service_environment(again, "chat")["WORKLOAD_CREDENTIAL_FILE"]).read_text() == secret


@pytest.mark.parametrize("service", ["auth", "chat"])
def test_a_sealing_key_is_made_once_or_given_and_is_one_services_alone(folder: Path, service: str) -> None:
    whole = plan({}, folder / "data")
    made = service_environment(whole, service)["SEALING_KEY"]
    again = Plan(read_settings({}), {}, DataFolder(folder / "data"), Terminal())
    assert service_environment(again, service, 1)["SEALING_KEY"] == made
    assert len(sealing_keys(made)) == 1
    assert (folder / "data" / "credentials" / f"{service}.sealing-key").stat().st_mode & 0o777 == 0o600
    others = [service_environment(whole, other) for other in ("auth", "chat", "memory") if other != service]
    for other in (*others, whole.edge_configuration()):
        assert made not in str(other)
    given = plan({"SEALING_KEY": "B" * 43 + "="}, folder / "given")
    assert service_environment(given, service)["SEALING_KEY"] == "B" * 43 + "="


def test_every_process_of_chat_serves_mcp_and_the_edge_knows_all(folder: Path) -> None:
    whole = plan({"PARLEY_CHAT_PROCESSES": "2", "PARLEY_CHAT_MCP_PORT": "7100"}, folder)
    listening = [service_environment(whole, "chat", index)["MCP_LISTEN_ADDRESS"] for index in range(2)]
    assert listening == ["127.0.0.1:7100", "127.0.0.1:7101"]
    assert whole.edge_configuration().environment["MCP_ENDPOINTS"] == ",".join(listening)


def test_every_process_is_an_endpoint_of_its_own_and_the_edge_and_its_peers_know_all(folder: Path) -> None:
    whole = plan({"PARLEY_MEMORY_PROCESSES": "2", "PARLEY_MEMORY_PORT": "6000"}, folder)
    listening = [service_environment(whole, "memory", index)["LISTEN_ADDRESS"] for index in range(2)]
    assert listening == ["127.0.0.1:6000", "127.0.0.1:6001"]
    assert whole.edge_configuration().environment["MEMORY_ENDPOINTS"] == ",".join(listening)
    assert service_environment(whole, "chat")["MEMORY_TARGET"] == "ipv4:" + ",".join(listening)


@pytest.mark.parametrize("part", CLASSES)
def test_the_suite_knows_every_variable_of_every_part(part: str) -> None:
    prefix = "SIMULATOR_" if part == "simulator" else ""
    assert names(settings_class(part), prefix) - MANAGED == KNOWN[part]


def test_the_example_lists_exactly_the_known_settings() -> None:
    known = names(SuiteSettings).union(*KNOWN.values())
    assert set(example_lines()) == known


def test_every_line_of_the_example_says_why() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    for before, line in pairwise(lines):
        if line.startswith("#") and not line.startswith("# "):
            assert before.startswith("# "), line


def test_the_values_of_the_example_are_valid_and_the_defaults() -> None:
    stated = {name: value for name, value in example_lines().items() if value}
    assert problems_of_parts(stated) == []
    settings = read_settings({name: value for name, value in stated.items() if name in names(SuiteSettings)})
    assert settings.model_dump() == SuiteSettings.model_construct(parley_data=Path(".parley")).model_dump()
    for part in CLASSES:
        prefix = "SIMULATOR_" if part == "simulator" else ""
        fields = settings_class(part).model_fields
        for name, value in passed_on(part, stated).items():
            default = fields[name.removeprefix(prefix).lower()].default
            if isinstance(default, int | float) and not isinstance(default, bool):
                assert float(value) == default, name


def test_problems_of_services_and_edge_are_named_at_once_and_each_once() -> None:
    problems = problems_of_parts(
        {
            "LOG_LEVEL": "LOUD",
            "OPENAI_MAX_RETRIES": "-1",
            "REDIS_CONNECTIONS": "0",
            "CORS_ALLOWED_ORIGINS": "not an origin",
            "ARGON2_TIME_COST": "x",
            "SIMULATOR_INTERVAL_MS": "-5",
        }
    )
    named = [problem.partition(":")[0].removeprefix("SIMULATOR_") for problem in problems]
    assert sorted(named) == sorted(
        ["LOG_LEVEL", "OPENAI_MAX_RETRIES", "REDIS_CONNECTIONS", "CORS_ALLOWED_ORIGINS", "ARGON2_TIME_COST", "INTERVAL_MS"]
    )


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"GENERATION_DEADLINE_SECONDS": "600"},
            "REQUEST_TIMEOUT_SECONDS (130) must be above GENERATION_DEADLINE_SECONDS (600)",
        ),
        (
            {"REQUEST_TIMEOUT_SECONDS": "120"},
            "REQUEST_TIMEOUT_SECONDS (120) must be above GENERATION_DEADLINE_SECONDS (120)",
        ),
        (
            {"HEARTBEAT_SECONDS": "40"},
            "STREAM_IDLE_TIMEOUT_SECONDS (90) must be at least 3 x HEARTBEAT_SECONDS (40)",
        ),
        (
            {"STREAM_IDLE_TIMEOUT_SECONDS": "44"},
            "set it to 45 or more, or lower HEARTBEAT_SECONDS",
        ),
    ],
)
def test_an_edge_less_patient_than_chat_is_refused_with_what_to_change(wrong: dict[str, str], told: str) -> None:
    (problem,) = problems_of_parts(wrong)
    assert told in problem


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"GENERATION_DEADLINE_SECONDS": "600", "REQUEST_TIMEOUT_SECONDS": "610"},
        {"GENERATION_DEADLINE_SECONDS": "20", "REQUEST_TIMEOUT_SECONDS": "30"},
        {"HEARTBEAT_SECONDS": "1", "STREAM_IDLE_TIMEOUT_SECONDS": "3"},
    ],
)
def test_an_edge_that_outlasts_chat_is_taken(right: dict[str, str]) -> None:
    assert problems_of_parts(right) == []


def test_every_process_of_chat_listens_on_ports_of_its_own(folder: Path) -> None:
    environment = {"PARLEY_CHAT_PROCESSES": "2"}
    claims = [claim.port for claim in read_settings(environment).claims()]
    assert len(claims) == len(set(claims))
    both = [service_environment(plan(environment, folder / str(index)), "chat", index) for index in (0, 1)]
    for name in ("LISTEN_ADDRESS", "METRICS_ADDRESS", "MCP_LISTEN_ADDRESS"):
        assert both[0][name] != both[1][name], name
    met = check_settings({"PARLEY_CHAT_PROCESSES": "2", "PARLEY_CHAT_MCP_PORT": "9162"})[1]
    assert len(met) == 1
    assert "PARLEY_CHAT_MCP_PORT" in met[0]


def test_the_limiter_counts_in_the_suites_redis_and_the_edge_knows_it(folder: Path) -> None:
    whole = plan({"PARLEY_LIMITER_PORT": "7300", "LIMIT_MODEL": "5/minute"}, folder)
    limiter = whole.limiter_part(redis_url="redis://there").program.environment
    assert (limiter["LISTEN_ADDRESS"], limiter["REDIS_URL"]) == ("127.0.0.1:7300", "redis://there")
    assert limiter["LIMIT_MODEL"] == "5/minute"
    edge = whole.edge_configuration().environment
    assert edge["LIMITER_ENDPOINTS"] == "127.0.0.1:7300"
    assert "LIMIT_MODEL" not in edge
    for said, meant in (("false", False), ("0", False), ("Off", False), ("true", True)):
        assert plan({"LIMITS_ENABLED": said}, folder / said).is_limited is meant


def test_the_edge_asks_about_foreign_tokens_only_where_there_are_issuers(folder: Path) -> None:
    assert plan({}, folder / "none").edge_configuration().environment["EXTERNAL_TOKENS_ENABLED"] == "false"
    some = plan({"EXTERNAL_ISSUERS_FILE": "issuers.json"}, folder / "some")
    assert some.edge_configuration().environment["EXTERNAL_TOKENS_ENABLED"] == "true"
    assert service_environment(some, "auth")["EXTERNAL_ISSUERS_FILE"] == "issuers.json"
    assert "EXTERNAL_ISSUERS_FILE" not in service_environment(some, "chat")


def test_each_part_shows_a_certificate_of_its_own(folder: Path) -> None:
    whole = plan({"PARLEY_CERTIFICATES": str(folder / "certs")}, folder / "data")
    parts = {name: service_environment(whole, name) for name in ("auth", "chat", "memory")}
    parts["edge"] = dict(whole.edge_configuration().environment)
    parts["limiter"] = dict(whole.limiter_part(redis_url="redis://there").program.environment)
    for name, environment in parts.items():
        assert environment["SERVICE_TLS_KEY_FILE"] == str(folder / "certs" / f"{name}.key")
        assert environment["SERVICE_TLS_CA_FILE"] == str(folder / "certs" / "ca.pem")
    assert parts["edge"]["EDGE_TLS_CERTIFICATE_FILE"] == str(folder / "certs" / "public.pem")
    assert whole.edge_url.startswith("https://")
    own = plan({"EDGE_TLS_CERTIFICATE_FILE": "mine.pem", "EDGE_TLS_KEY_FILE": "mine.key"}, folder / "own")
    assert own.edge_configuration().environment["EDGE_TLS_CERTIFICATE_FILE"] == "mine.pem"
    assert "SERVICE_TLS_KEY_FILE" not in own.edge_configuration().environment
