"""The domain: plain functions over Spark, Arrow and torch values.

Nothing here may import dagster, great_expectations, `assets` or `resources`: Spark executors
import only this package.
"""
