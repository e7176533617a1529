"""The audience factory: from mobile SDK events to delivered audience segments."""
