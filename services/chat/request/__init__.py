"""From the requests of the contract to what the domain takes: reading them, checking them, and whose they may be."""
