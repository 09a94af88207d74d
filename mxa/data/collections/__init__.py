"""How each published collection, or a table or folder of one's own, is read."""
