"""Every service's migrations on a real Postgres, and the command that begins a new one."""

import asyncio
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, NullPool, create_engine, exc, text

from services.runtime.database import async_url, open_database
from services.runtime.migrations import alembic_config, migrate
from services.runtime.new_revision import new_revision
from suite.databases import ServiceDatabase, prepare_database
from suite.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
# Every service that keeps rows must bring its migrations: one without fails here.
SERVICES = sorted(f"services.{path.parent.name}" for path in (ROOT / "services").glob("*/schema.py"))
PACKAGES = [*SERVICES, "tests.runtime.scratch"]
QUEUE = "procrastinate_"


def test_services_with_tables_are_found() -> None:
    assert {"services.auth", "services.chat", "services.memory"} <= set(SERVICES)


async def _empty(postgres: EmbeddedPostgres, package: str, purpose: str) -> ServiceDatabase:
    name = f"migrate_{package.rpartition('.')[2]}_{purpose}"
    return await prepare_database(postgres.admin_url, name=name, passwords="not-a-secret")


def _migrated(package: str, database: ServiceDatabase) -> None:
    migrate(package, database.migration_url, service_role=database.service_role)


def _connect(database: ServiceDatabase) -> Connection:
    return create_engine(async_url(database.migration_url), poolclass=NullPool).connect()


@pytest.fixture(scope="module")
async def fresh(postgres: EmbeddedPostgres) -> dict[str, ServiceDatabase]:
    """Each package's database, brought from empty to head by two processes at once."""
    databases = {package: await _empty(postgres, package, "fresh") for package in PACKAGES}
    for package, database in databases.items():
        both = [asyncio.to_thread(_migrated, package, database) for _ in range(2)]
        await asyncio.gather(*both)
    return databases


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_one_head_and_every_file_is_named_number_noun(package: str) -> None:
    scripts = ScriptDirectory.from_config(alembic_config(package))
    assert len(scripts.get_heads()) == 1
    revisions = list(scripts.walk_revisions())
    assert [one.revision for one in revisions] == [f"{number:04}" for number in range(len(revisions), 0, -1)]
    for one in revisions:
        assert Path(one.path).name.startswith(f"{one.revision}_"), one.path
        assert one.doc, f"{one.path} does not say what it is for"


@pytest.mark.parametrize("package", PACKAGES)
def test_empty_comes_to_head_and_again_changes_nothing(fresh: dict[str, ServiceDatabase], package: str) -> None:
    head = ScriptDirectory.from_config(alembic_config(package)).get_current_head()
    _migrated(package, fresh[package])
    with _connect(fresh[package]) as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalars().all() == [head]


def _metadata(package: str) -> MetaData:
    """All tables of a service: parts of it that are packages keep their own beside their code."""
    metadata = importlib.import_module(f"{package}.schema").metadata
    for path in (ROOT / package.replace(".", "/")).glob("*/schema.py"):
        importlib.import_module(f"{package}.{path.parent.name}.schema")
    assert isinstance(metadata, MetaData)
    assert metadata.tables
    return metadata


@pytest.mark.parametrize("package", SERVICES)
def test_tables_are_what_the_schema_says(fresh: dict[str, ServiceDatabase], package: str) -> None:
    metadata = _metadata(package)

    def ours(_object: object, name: str | None, kind: str, reflected: bool, _other: object) -> bool:  # noqa: FBT001
        return not (reflected and kind == "table" and (name or "").startswith(QUEUE))

    with _connect(fresh[package]) as connection:
        options = {"include_object": ours, "compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


# What alembic's comparison does not see, taken from the catalogue of a database that create_all made.
CONSTRAINTS = text(
    "select conrelid::regclass::text || ' ' || conname || ' ' || pg_get_constraintdef(oid) from pg_constraint"
    " where connamespace = 'public'::regnamespace and contype in ('c', 'u', 'p', 'f', 'x')"
    " and conrelid::regclass::text !~ '^(procrastinate_|alembic_)'"
    " union select indexdef from pg_indexes where schemaname = 'public' and tablename !~ '^(procrastinate_|alembic_)'"
    " order by 1"
)


@pytest.mark.parametrize("package", SERVICES)
async def test_constraints_and_indexes_are_what_the_schema_says(
    fresh: dict[str, ServiceDatabase], postgres: EmbeddedPostgres, package: str
) -> None:
    created = await _empty(postgres, package, "created")
    metadata = _metadata(package)
    with _connect(created) as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
        connection.commit()
        expected = connection.execute(CONSTRAINTS).scalars().all()
    assert expected
    with _connect(fresh[package]) as connection:
        assert connection.execute(CONSTRAINTS).scalars().all() == expected


@pytest.mark.parametrize("package", SERVICES)
async def test_every_table_is_under_row_level_security(fresh: dict[str, ServiceDatabase], package: str) -> None:
    query = text(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
        " and relname !~ '^(procrastinate_|alembic_)' and not (relrowsecurity and relforcerowsecurity)"
    )
    with _connect(fresh[package]) as connection:
        assert connection.execute(query).scalars().all() == []


async def test_a_partition_that_is_named_is_no_way_around_the_policy(fresh: dict[str, ServiceDatabase]) -> None:
    partitions = text(
        "select oid::regclass::text from pg_class where relispartition and relkind = 'r'"
        " and relrowsecurity and relforcerowsecurity"
    )
    everywhere = text("select count(*) from pg_class where relispartition and relkind = 'r'")
    with _connect(fresh["services.memory"]) as connection:
        names = connection.execute(partitions).scalars().all()
        assert len(names) == connection.execute(everywhere).scalar_one() > 0
    database = open_database(fresh["services.memory"].url, pool_size=1)
    for name in names:
        with pytest.raises(exc.ProgrammingError, match="permission denied for schema"):
            async with database.service_transaction() as connection:
                await connection.execute(text(f"select from {name}"))
    await database.close()


async def test_messages_from_before_their_numbers_stay_as_they_are(postgres: EmbeddedPostgres) -> None:
    database = await _empty(postgres, "services.memory", "numbers")
    config, scope = alembic_config("services.memory"), text("select set_config('parley.scope', 'service', true)")
    conversation = text("insert into conversations (user_id, conversation_id, version) values (:user_id, :user_id, 1)")
    turn = text(
        "insert into turns (user_id, conversation_id, sequence, message_id, role, body, revision, token_count, create_time)"
        " values (:user_id, :user_id, :sequence, gen_random_uuid(), 'user', 'words', 0, 1, now())"
    )
    user = {"user_id": "6fa459ea-ee8a-4ca4-894e-db77e160355e"}
    with _connect(database) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(scope)
        connection.execute(conversation, user)
        connection.execute(turn, {**user, "sequence": 1})
        connection.commit()
    await asyncio.to_thread(_migrated, "services.memory", database)
    with _connect(database) as connection:
        connection.execute(scope)
        connection.execute(turn, {**user, "sequence": 2})
        numbers = connection.execute(text("select number from turns order by sequence")).scalars().all()
        assert numbers == [None, 1]
        is_valid = text("select indisvalid from pg_index where indexrelid = 'turns_number_idx'::regclass")
        assert connection.execute(is_valid).scalar_one()


@pytest.mark.parametrize("package", PACKAGES)
async def test_the_service_role_may_work_and_not_rule(fresh: dict[str, ServiceDatabase], package: str) -> None:
    database = open_database(fresh[package].url, pool_size=1)
    await database.check_role()
    tables = text(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
        " and relname <> 'alembic_version' and not has_table_privilege(oid, 'select, insert, update, delete')"
    )
    async with database.service_transaction() as connection:
        assert (await connection.execute(tables)).scalars().all() == []
    for statement in ("create table x (y int)", "delete from alembic_version", "alter table alembic_version add x int"):
        with pytest.raises(exc.ProgrammingError, match=r"permission denied|must be owner"):
            async with database.service_transaction() as connection:
                await connection.execute(text(statement))
    await database.close()


@pytest.fixture
def package_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package `sample_service` with a place for migrations."""
    folder = tmp_path / "sample_service"
    (folder / "migrations").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("sample_service", None)


async def test_a_new_revision_follows_the_newest_and_runs(package_folder: Path, postgres: EmbeddedPostgres) -> None:
    first, second = new_revision("sample_service", "notes"), new_revision("sample_service", "archived notes of the year")
    assert [first.name, second.name] == ["0001_notes.py", "0002_archived_notes_of_the_year.py"]
    assert first.parent == package_folder / "migrations"
    assert "isolate_by_user" in first.read_text()
    assert 'down_revision = "0001"' in second.read_text()
    database = await _empty(postgres, "sample_service", "new")
    await asyncio.to_thread(_migrated, "sample_service", database)
    with _connect(database) as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == "0002"
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--config", str(ROOT / "pyproject.toml")]
    # A new one imports what most need, before it is used.
    checked = subprocess.run(  # noqa: ASYNC221, S603 - a fraction of a second
        [*ruff, "--ignore", "D103,INP001,N999,F401", first, second], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.usefixtures("package_folder")
@pytest.mark.parametrize("noun", ["", "Notes", "../evil", "a-b", "notes!", " x"])
def test_a_noun_that_makes_no_file_name_is_refused(noun: str) -> None:
    with pytest.raises(ValueError, match="lowercase words"):
        new_revision("sample_service", noun)


@pytest.mark.usefixtures("package_folder")
async def test_a_failing_migration_leaves_those_before_it_and_its_lock_free(
    postgres: EmbeddedPostgres,
) -> None:
    new_revision("sample_service", "good")
    bad = new_revision("sample_service", "bad")
    bad.write_text(
        bad.read_text().replace("    pass", '    op.execute("create table half (x int)")\n    op.execute("nonsense")')
    )
    database = await _empty(postgres, "sample_service", "bad")
    for _ in range(2):
        with pytest.raises(exc.ProgrammingError, match="nonsense"):
            await asyncio.to_thread(_migrated, "sample_service", database)
    with _connect(database) as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == "0001"
        assert connection.execute(text("select to_regclass('half')")).scalar_one() is None
    bad.write_text(bad.read_text().replace('down_revision = "0001"', "down_revision = None"))
    with pytest.raises(CommandError, match=r"[Mm]ultiple head"):
        await asyncio.to_thread(_migrated, "sample_service", database)
