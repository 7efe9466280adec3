"""NOVA's video model: the part that PAR takes over, with the released layout of its weights."""
