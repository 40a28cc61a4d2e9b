"""The table of the MCP servers that users keep.

Invariants: a label is unique per user whatever its case; headers are there only sealed, bound to this row and user.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from services.chat.schema import metadata

LABEL_INDEX: Final = "mcp_servers_user_label_key"
REQUEST_INDEX: Final = "mcp_servers_user_request_key"

mcp_servers = sa.Table(
    "mcp_servers",
    metadata,
    sa.Column("id", sa.Uuid(as_uuid=False), primary_key=True, server_default=sa.text("uuidv7()")),
    sa.Column("user_id", sa.Uuid(as_uuid=False), nullable=False),
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
    # What the list is sorted by, too.
    sa.Index(LABEL_INDEX, "user_id", sa.text("lower(label)"), unique=True),
    sa.Index(REQUEST_INDEX, "user_id", "request_id", unique=True, postgresql_where=sa.text("request_id is not null")),
)
