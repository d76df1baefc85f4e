"""Which dtype layers compute in."""
