"""Tasks: the to-do list that a user and the assistant share, by gRPC, as tools of the model, and for the MCP server."""
