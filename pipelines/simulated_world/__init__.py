"""A seeded world of devices and the mobile SDK events that they send: the demo's input; no step needs it."""
