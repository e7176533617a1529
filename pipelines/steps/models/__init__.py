"""The models, what they are written as, and how they are measured."""
