"""Planning of fields: what a field is, what it reads of each clip, and what is left to do in it."""
