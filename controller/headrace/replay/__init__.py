"""`headrace replay`: a trace of requests against routing policies, in virtual time.

The picker is the real one, from the Director down; the servers are the simulator's engine. Nothing waits: a clock jumps
from event to event, so that a run gives the same figures on any machine, however busy."""
