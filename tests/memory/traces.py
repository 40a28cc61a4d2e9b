"""What is left of a word anywhere: in every table of memory, whoever's row, and in every key of Redis."""

from psycopg import sql
from redis.asyncio import Redis

from suite.databases import ServiceDatabase
from tests.memory.database import opened

CANARY = "Kryptozebrafink"


async def rows_with(database: ServiceDatabase, text: str = CANARY) -> list[str]:
    """Every row that holds the text in any column: as it is, as a lexeme or as bytes; with the name of its table."""
    async with opened(database) as connection:
        lexemes = await (await connection.execute("select tsvector_to_array(lexemes_of(%s))", [text])).fetchone()
        assert lexemes is not None
        assert lexemes[0]
        sought = {text.lower(), text.encode().hex(), text.lower().encode().hex(), *lexemes[0]}
        cursor = await connection.execute(
            "select quote_ident(nspname) || '.' || quote_ident(relname), relname, nspname from pg_class"
            " join pg_namespace on pg_namespace.oid = relnamespace where relkind in ('r', 'p', 'm')"
            " and nspname not in ('pg_catalog', 'information_schema')"
        )
        tables, found, seen = await cursor.fetchall(), [], 0
        for name, table, schema in tables:
            rows = await connection.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(schema, table)))
            for (row,) in await rows.fetchall():
                seen += 1
                found += [f"{name}: {row}"] if any(one in row.lower() for one in sought) else []
    assert seen, "nothing was looked at"
    assert {"turns", "facts", "summaries", "embeddings", "upkeep"} <= {table for _, table, _ in tables}
    return found


async def keys_with(url: str, text: str = CANARY) -> list[str]:
    """Every key of Redis whose name or value holds the text, in any case."""
    found = []
    async with Redis.from_url(url) as redis:
        async for key in redis.scan_iter(count=1000):
            held = await redis.dump(key) if await redis.type(key) != b"string" else await redis.get(key)
            if text.lower().encode() in key.lower() + (held or b"").lower():
                found.append(key.decode())
    return found
