"""Migrations: every service's tables, brought to the newest revision by Alembic as the role that owns them.

One process migrates at a time (an advisory lock); a statement waits 4 s for a lock and runs 30 s at most, so that a
migration cannot stop the release that is serving. Afterwards the service's plain role is granted what it needs on every
table: nothing that would let it step around row-level security.

`python -m services.runtime.migrations <service>` is how: a program of its own, so that serving needs nothing of this.
"""

import sys
import time
from importlib.resources import files
from pathlib import Path

import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config
from procrastinate.schema import SchemaManager
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection, NullPool, create_engine, make_url, text

from services.runtime.database import async_url
from services.runtime.settings import PostgresUrl, read_settings

_LOCK = text("select pg_try_advisory_lock(hashtext('parley migrations'))")
_LOCK_SECONDS = 120
_LOCK_LOOK_SECONDS = 0.2
_ENVIRONMENT = Path(__file__).parent / "migration_environment"


def migrate(package: str, url: str, *, service_role: str) -> None:
    """Brings the database of `package` ("services.auth") to its newest revision and grants its tables to `service_role`.

    Idempotent; several at once wait for each other.
    """
    engine = create_engine(
        async_url(url),
        poolclass=NullPool,
        connect_args={"connect_timeout": 10, "options": "-c lock_timeout=4s -c statement_timeout=30s"},
    )
    with engine.connect() as connection:
        _wait_for_turn(connection)
        config = alembic_config(package)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        _grant(connection, service_role)
    engine.dispose()


def _wait_for_turn(connection: Connection) -> None:
    """Takes the lock of migrations, which stays with the session.

    By looking, with no transaction between: an index that is built concurrently waits for every transaction there is, and
    one that waited here for whoever builds it would be a deadlock.
    """
    end = time.monotonic() + _LOCK_SECONDS
    while not connection.execute(_LOCK).scalar_one():
        connection.rollback()
        if time.monotonic() > end:
            raise TimeoutError("another process has been migrating this database for two minutes")
        time.sleep(_LOCK_LOOK_SECONDS)
    connection.commit()


def alembic_config(package: str) -> Config:
    """Alembic's configuration for a service: its own revisions, the environment of all."""
    config = Config()
    # A percent sign is the configuration's own.
    config.set_main_option("script_location", str(_ENVIRONMENT).replace("%", "%%"))
    config.set_main_option("version_locations", str(files(package) / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return config


def _grant(connection: Connection, role: str) -> None:
    quoted = connection.dialect.identifier_preparer.quote(role)
    for grant in (
        "usage on schema public",
        "select, insert, update, delete on all tables in schema public",
        "usage on all sequences in schema public",
        "execute on all functions in schema public",
    ):
        connection.execute(text(f"grant {grant} to {quoted}"))
    connection.execute(text(f"revoke insert, update, delete on alembic_version from {quoted}"))
    connection.commit()


def isolate_by_user(table: str, column: str = "user_id") -> None:
    """Inside `upgrade()`: confines every statement on the table to the rows of the transaction's user.

    A transaction of the service itself (Database.service_transaction) sees all rows; one that says nothing sees none.
    """
    # After a RESET a setting is '', which is no uuid: nullif before the cast. In selects of their own, so that a statement
    # reads the settings once and not for every row.
    mine = f"{column} = (select nullif(current_setting('parley.user_id', true), '')::uuid)"
    service = "(select current_setting('parley.scope', true) = 'service')"
    op.execute(f"alter table {table} enable row level security")
    op.execute(f"alter table {table} force row level security")
    op.execute(f"create policy {table}_of_user on {table} using ({mine} or {service}) with check ({mine} or {service})")


def keep_for_service(table: str) -> None:
    """Inside `upgrade()`: only transactions of the service itself see this table: keys, leases and the like."""
    service = "current_setting('parley.scope', true) = 'service'"
    op.execute(f"alter table {table} enable row level security")
    op.execute(f"alter table {table} force row level security")
    op.execute(f"create policy {table}_of_service on {table} using ({service}) with check ({service})")


_FENCE = """
create function refuse_purged_users() returns trigger language plpgsql as $$
declare
  writer uuid;
begin
  for writer in select distinct user_id from written loop
    perform pg_advisory_xact_lock_shared(hashtextextended('parley purge ' || writer, 0));
    -- In a statement of its own, which sees what was committed while this one waited.
    if exists (select from purged_users where purged_users.user_id = writer) then
      raise exception 'the user was deleted' using errcode = 'check_violation', constraint = 'purged_users';
    end if;
  end loop;
  return null;
end
$$
"""


def fence_purged_users(*tables: str) -> None:
    """Inside `upgrade()`: refuses new rows of users who were purged (services/runtime/purging.py), in these tables.

    Tables whose rows refer to one of these by a foreign key need no fence of their own.
    """
    op.create_table(
        "purged_users",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("purge_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("held_keys", sa.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
        sa.PrimaryKeyConstraint("user_id", name="purged_users_pkey"),
    )
    isolate_by_user("purged_users")
    op.execute(_FENCE)
    for table in tables:
        # Once a statement, and not for every row.
        op.execute(
            f"create trigger {table}_of_purged after insert on {table} referencing new table as written"
            " for each statement execute function refuse_purged_users()"
        )


def create_job_tables() -> None:
    """Inside `upgrade()`: the tables of the job queue (services/runtime/jobs.py). Jobs hold ids only."""
    raw = op.get_bind().connection.cursor()
    raw.execute(SchemaManager.get_schema())
    raw.close()


class MigrationSettings(BaseSettings):
    """Where to migrate, and for whom."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    database_url: PostgresUrl
    """The service's database as its plain role, which is granted the tables."""
    migration_database_url: PostgresUrl
    """The same database as the role that owns the tables."""


def main() -> None:
    """Migrates the database of the service that the command line names."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.exit("usage: python -m services.runtime.migrations <service>")
    settings = read_settings(MigrationSettings)
    role = make_url(settings.database_url.get_secret_value()).username
    if role is None:
        sys.exit("bad settings: DATABASE_URL: must name the role that the service connects as")
    migrate(f"services.{sys.argv[1]}", settings.migration_database_url.get_secret_value(), service_role=role)


if __name__ == "__main__":
    main()
