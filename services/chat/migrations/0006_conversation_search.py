"""What finding conversations, titling them and listing them for administrators needs.

The words of a message are kept by a trigger and not by a generated column, which would rewrite the table under a lock. Rows
from before have none: the search makes theirs as it reads them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0006"
down_revision = "0005"

# A named collation, so that case and letters do not depend on the locale of the database. Cut, since a tsvector holds 1 MB.
_WORDS_OF = """
create function words_of(words text) returns tsvector language sql immutable strict parallel safe as $$
  select to_tsvector('simple', regexp_replace(
    lower(normalize(left(words, 100000), NFKC) collate "pg_catalog"."pg_c_utf8"), '[^[:alnum:]]+', ' ', 'g'))
$$
"""
# What is being written changes often, and an earlier version is not searched: neither has words.
_KEEP_MESSAGE_WORDS = """
create function keep_message_words() returns trigger language plpgsql as $$
begin
  if new.status = 'generating' or new.supersede_time is not null then
    new.words := ''::tsvector;
  else
    new.words := words_of(new.text);
  end if;
  return new;
end
$$
"""
_KEEP_TITLE_WORDS = """
create function keep_title_words() returns trigger language plpgsql as $$
begin
  new.words := words_of(new.title);
  return new;
end
$$
"""


def upgrade() -> None:
    op.execute(_WORDS_OF)
    _keep_words_of_messages()
    _keep_words_of_titles()
    # Conversations from before keep their titles; those of the previous release get the same when this one ends their turn.
    op.add_column("conversations", sa.Column("is_title_asked", sa.Boolean, nullable=False, server_default=sa.true()))
    op.alter_column("conversations", "is_title_asked", server_default=sa.false())
    op.create_index("conversations_latest_idx", "conversations", [sa.text("latest_time desc"), sa.text("id desc")])


def _keep_words_of_messages() -> None:
    op.add_column("messages", sa.Column("words", pg.TSVECTOR))
    op.execute(_KEEP_MESSAGE_WORDS)
    op.execute(
        "create trigger messages_words before insert or update of text, status, supersede_time on messages"
        " for each row execute function keep_message_words()"
    )


def _keep_words_of_titles() -> None:
    op.add_column("conversations", sa.Column("words", pg.TSVECTOR))
    op.execute(_KEEP_TITLE_WORDS)
    op.execute(
        "create trigger conversations_words_of_new before insert on conversations"
        " for each row execute function keep_title_words()"
    )
    op.execute(
        "create trigger conversations_words before update of title on conversations"
        " for each row when (old.title is distinct from new.title) execute function keep_title_words()"
    )
