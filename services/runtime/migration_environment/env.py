"""The environment of every service's migrations (Alembic runs this file). See services/runtime/migrations.py."""

from alembic import context
from sqlalchemy import Connection

connection = context.config.attributes["connection"]
if not isinstance(connection, Connection):
    raise TypeError("Migrations run through services.runtime.migrations.migrate, which brings its connection.")

# Each migration commits by itself: a long row of them holds no lock for long, and a failed one leaves those before it.
context.configure(connection=connection, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
