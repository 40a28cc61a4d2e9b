"""MCP servers that users keep."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

from services.runtime.migrations import isolate_by_user

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "mcp_servers",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=sa.text("uuidv7()")),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("header_names", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
        sa.Column("sealed_headers", sa.LargeBinary),
        sa.Column("allowed_tools", pg.ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'::text[]")),
        sa.Column("approval", sa.Text, nullable=False, server_default="never"),
        sa.Column("is_enabled", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("request_id", sa.Text),
        sa.Column("request_digest", sa.LargeBinary),
        sa.Column("create_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("update_time", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("label ~ '^[A-Za-z0-9_-]{1,32}$'", name="mcp_servers_label_check"),
        sa.CheckConstraint("char_length(url) between 1 and 2000", name="mcp_servers_url_check"),
        sa.CheckConstraint("approval in ('never', 'always')", name="mcp_servers_approval_check"),
        sa.CheckConstraint("(sealed_headers is null) = (header_names = '{}'::text[])", name="mcp_servers_headers_check"),
        sa.CheckConstraint("(request_id is null) = (request_digest is null)", name="mcp_servers_request_check"),
    )
    op.create_index("mcp_servers_user_label_key", "mcp_servers", ["user_id", sa.text("lower(label)")], unique=True)
    op.create_index(
        "mcp_servers_user_request_key",
        "mcp_servers",
        ["user_id", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id is not null"),
    )
    isolate_by_user("mcp_servers")
