"""Standing sessions.

One purpose a migration; the file is named number_noun.py. It runs beside the previous release, so:
- add: a column is nullable or has a constant default; an index on a table with rows is built CONCURRENTLY in a migration of
  its own (with op.get_context().autocommit_block()); a constraint is added NOT VALID, and validated in the next migration.
- drop or rename: never in one release. First stop using it, release, then drop. A rename is an add, a copy and a drop.
- backfill: in batches, in a job, not here: statements are cut after 30 s and locks after 4 s.
- a table with rows of users: isolate_by_user("table") in the migration that creates it.
There is no downgrade: mend forward.
"""

import sqlalchemy as sa
from alembic import op

from services.runtime.migrations import isolate_by_user

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    pass
