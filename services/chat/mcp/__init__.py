"""MCP, both ways: the servers whose tools the model may use, and the suite's own server at /mcp."""
