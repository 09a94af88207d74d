"""Readers of the published collections, and of a table or folder of one's own."""
