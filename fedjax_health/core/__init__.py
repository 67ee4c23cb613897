"""Floor 0: the types, keys and tree operations that every other package stands on."""
