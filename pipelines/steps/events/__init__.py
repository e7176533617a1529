"""Raw rows become `app_events`: found, read, cleaned, counted."""
