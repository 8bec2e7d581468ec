"""Pool replacement under traffic: weights move in steps, gates measure, a failed gate takes everything back.

`machine` decides, `weights` and `routes` say what a route becomes, `statistics` and `gates` judge what was measured:
all pure. `cluster`, `measure` and `runner` do the I/O; `command` is `headrace pool replace`."""
