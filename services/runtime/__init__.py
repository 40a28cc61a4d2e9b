"""What every process of the suite needs, and nothing that knows a service or a table.

`process` reads settings and runs; `server` serves; `interceptors` wraps every call with identity, access, field rules,
errors, log and metrics; `database` and `migrations` own the way to Postgres; `channels` and `peers` the way to other
services, and `membership` puts them together; `duties` and `jobs` are work beside the calls.
"""
