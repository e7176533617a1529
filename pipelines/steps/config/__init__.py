"""What a user writes, checked before anything starts."""
