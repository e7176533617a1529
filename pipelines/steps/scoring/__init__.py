"""Every device's probability, on Spark."""
