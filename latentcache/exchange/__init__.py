"""Caches given to other trainers in the forms that they read, and taken in from those forms."""
