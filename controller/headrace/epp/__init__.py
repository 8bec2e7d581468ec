"""`headrace epp`: the endpoint picker's process. Puts conversation, scheduling and data layer together."""
