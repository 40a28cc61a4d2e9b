"""The log of a reply: its events, the Redis stream that holds them, and everybody who reads them."""
