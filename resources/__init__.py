"""The outside world: Spark, lake storage, model store, expectations adapter, destinations."""
