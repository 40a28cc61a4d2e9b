"""A service of the tests, with a database: one table of users' notes, one of its own, and the job queue."""
