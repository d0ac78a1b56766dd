"""HTTP: the inference door (raw ASGI) and the admin door (Starlette)."""
