"""The operator's console: server-rendered pages of nouns, a small JSON API, and nothing that bypasses the service."""
