"""What an earlier system holds, read and loaded into this one: `parley import`.

source (a file becomes tables) -> layouts, mapping (which table and column is what) -> values, people, sayings, errands (rows
become what the services take) -> loading (in which order), report (what became of it).
"""
